# SPDX-License-Identifier: Apache-2.0
"""AdaBelief."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, List, Sequence, Tuple

from mxnet.ndarray import NDArray, sqrt, square

from .adam import MomentOptimizer
from .arithmetic import Arithmetic, BySeries, by_storage
from .base import register


@register("adabelief_ext", "adabelief")
class AdaBelief(MomentOptimizer):
    r"""AdaBelief: Adam that divides by the gradient's deviation from its average.

    For each weight, with `t` counting its updates from 1::

        grad = clip(grad * rescale_grad + wd * weight, -clip_gradient, clip_gradient)
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * (grad - m)**2 + epsilon
        lr = lr * sqrt(1 - beta2**t) / (1 - beta1**t)        # unless correct_bias=False
        weight -= lr * m / (sqrt(v) + epsilon)

    Weights and states equal those of the installed MXNet's built-in ``adabelief`` bit for bit, with
    ``numerics='portable'`` those of the `step` of MXNet 2's, which is this formula. As in the
    built-in, and unlike in its documentation, `clip_gradient` bounds the sum of gradient and weight
    decay.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.001
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    beta1 : float, in [0, 1), default 0.9
        Decay rate of the first moment `m`.
    beta2 : float, in [0, 1), default 0.999
        Decay rate of `v`, the second moment of the gradient's distance from `m`.
    epsilon : float, in [0, inf), default 1e-6
        Added to `v` and to the denominator.
    correct_bias : bool, default True
        False skips the bias correction.
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
    State for each weight: a tuple ``(m, v)`` of two arrays of its shape and dtype, the built-in's.

    Source: J. Zhuang et al., *AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed
    Gradients*, arXiv 2010.07468, algorithm 2.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "adabelief_ext", {"epsilon": 1e-12})
    >>> trainer.optimizer.epsilon
    1e-12
    """

    portable = Arithmetic("adabelief", clip_after_wd=True)
    builtin: ClassVar[BySeries] = {
        2: Arithmetic("adabelief_mxnet2", by_operator=True, listed=("lr", "wd"), clip_after_wd=True)
    }

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        correct_bias: bool = True,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            correct_bias=correct_bias,
            use_fused_step=use_fused_step,
            **kwargs,
        )
        self.check_hyperparameters()

    def arithmetics_of(
        self, weights: Sequence[NDArray], grads: Sequence[NDArray]
    ) -> List[Arithmetic]:
        dense = self.arithmetic
        if dense.rule != "adabelief_mxnet2":
            return []
        rows = replace(dense, rule="adabelief_rows_mxnet2", listed=())
        return by_storage(grads, dense, rows)

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Tuple[NDArray, NDArray], s: SimpleNamespace
    ) -> None:
        m, v = state
        if s.rule == "adabelief_mxnet2":
            m[:] = s.beta1 * (m - grad) + grad
            distance = square(m - grad)
            v[:] = s.beta2 * (v - distance) + distance + s.epsilon
            weight -= s.lr * (m / (sqrt(v) + s.epsilon))
            return
        if s.rule == "adabelief_rows_mxnet2":
            s.one_minus_beta1, s.one_minus_beta2 = 1 - s.beta1, 1 - s.beta2
        m[:] = s.beta1 * m + s.one_minus_beta1 * grad
        v[:] = s.beta2 * v + s.one_minus_beta2 * square(grad - m) + s.epsilon
        weight -= s.lr * (m / (sqrt(v) + s.epsilon))
