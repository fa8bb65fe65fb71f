# SPDX-License-Identifier: Apache-2.0
"""AdaGrad."""

from types import SimpleNamespace
from typing import Any, ClassVar, Mapping, Sequence

from mxnet.ndarray import NDArray, sqrt, square

from .arithmetic import Arithmetic, BySeries
from .base import FusedOptimizer, Scalars, register
from .options import NOT_NEGATIVE, Range


@register("adagrad_ext", "adagrad")
class AdaGrad(FusedOptimizer):
    r"""AdaGrad: steps shrink with the sum of all squared gradients.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        history += grad**2
        weight -= lr * grad / (sqrt(history) + epsilon)

    Weights and states equal those of the installed MXNet's built-in ``adagrad`` bit for bit, with
    ``numerics='portable'`` those of the `step` of MXNet 2's, which is this formula.
    It accepts float64 weights; the built-in's state is always float32.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.01
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    epsilon : float, in [0, inf), default 1e-6
        Added to the denominator.
    use_fused_step : bool, default True
        False uses MXNet's operators instead of the native kernel: slow, the same bits.
    **kwargs
        Options of every optimizer; see :class:`mxadamax.optimizers.base.FusedOptimizer`.

    Raises
    ------
    TypeError
        If an argument does not exist.
    ValueError
        If a hyperparameter is out of its range.

    Notes
    -----
    State for each weight: one array ``history`` of its shape and dtype, the built-in's.

    Source: J. Duchi, E. Hazan, Y. Singer, *Adaptive Subgradient Methods for Online Learning and
    Stochastic Optimization*, Journal of Machine Learning Research 12, 2011.

    Examples
    --------
    With a constant gradient, step `t` is ``1 / sqrt(t)`` of the first:

    >>> weight, grad = mx.nd.zeros((1,)), mx.nd.array([-8.0])
    >>> update = mx.optimizer.get_updater(mxadamax.AdaGrad(learning_rate=1.0))
    >>> for _ in range(4):
    ...     update(0, grad, weight)
    ...     print(round(float(weight.asscalar()), 3))
    1.0
    1.707
    2.284
    2.784
    """

    portable = Arithmetic("adagrad")
    builtin: ClassVar[BySeries] = {1: Arithmetic("adagrad_mxnet1", decay_in_rule="coupled")}
    ranges: ClassVar[Mapping[str, Range]] = {"epsilon": NOT_NEGATIVE}

    def __init__(
        self,
        learning_rate: Any = 0.01,
        epsilon: float = 1e-6,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self.epsilon = epsilon
        self.check_hyperparameters()

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {"lr": list(lrs), "epsilon": self.epsilon}

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: NDArray, s: SimpleNamespace
    ) -> None:
        state += square(grad)
        if s.rule == "adagrad_mxnet1":
            weight -= s.lr * (grad / sqrt(state + s.epsilon) + s.weight_decay * weight)
            return
        weight -= s.lr * (grad / (sqrt(state) + s.epsilon))
