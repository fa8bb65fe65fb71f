# SPDX-License-Identifier: Apache-2.0
"""AdaMax."""

from types import SimpleNamespace
from typing import Any, ClassVar, Mapping, Sequence, Tuple

from mxnet.ndarray import NDArray, maximum
from mxnet.ndarray import abs as absolute

from .arithmetic import Arithmetic, BySeries
from .base import FusedOptimizer, Scalars, register
from .options import DECAY_RATE, NOT_NEGATIVE, Range
from .traits import Traits, TraitsBySeries


@register("adamax_ext", "adamax", {"epsilon": 0.0})
class Adamax(FusedOptimizer):
    r"""AdaMax, the variant of Adam based on the infinity norm.

    For each weight, with `t` counting its updates from 1::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        m = beta1 * m + (1 - beta1) * grad
        u = maximum(beta2 * u, abs(grad))
        weight -= lr / (1 - beta1**t) * m / (u + epsilon)

    Weights and states equal those of the installed MXNet's built-in ``adamax`` bit for bit, with
    ``numerics='portable'`` those of the `step` of MXNet 2's, which is this formula.
    Unlike the built-in, it does not modify the gradient.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.002
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    beta1 : float, in [0, 1), default 0.9
        Decay rate of the first moment `m`.
    beta2 : float, in [0, 1), default 0.999
        Decay rate of the infinity norm `u`.
    epsilon : float, in [0, inf), default 1e-8
        Added to the denominator. With 0, a weight becomes NaN if all its gradients so far are zero.
    use_fused_step : bool, default True
        False uses MXNet's operators instead of the native kernel: slow, the same bits.
    **kwargs
        Options of every optimizer; see :class:`mxadamax.optimizers.base.FusedOptimizer`. With
        ``decoupled_wd=True`` it is AdaMax with AdamW's weight decay.

    Raises
    ------
    TypeError
        If an argument does not exist.
    ValueError
        If a hyperparameter is out of its range.

    Notes
    -----
    State for each weight: a tuple ``(m, u)`` of two arrays of its shape and dtype, the built-in's.

    Source: D. P. Kingma, J. Ba, *Adam: A Method for Stochastic Optimization*, arXiv 1412.6980,
    section 7.1, algorithm 2; `epsilon` as in MXNet 2.

    Examples
    --------
    The first step has the size of the learning rate, whatever the size of the gradient:

    >>> weight, grad = mx.nd.array([1.0, 1.0]), mx.nd.array([0.1, -10.0])
    >>> update = mx.optimizer.get_updater(mxadamax.Adamax(learning_rate=0.5))
    >>> update(0, grad, weight)
    >>> weight.asnumpy().round(5)
    array([0.5, 1.5], dtype=float32)
    """

    portable = Arithmetic("adamax")
    builtin: ClassVar[BySeries] = {1: Arithmetic("adamax_mxnet1", clip_after_wd=True)}
    traits: ClassVar[TraitsBySeries] = {2: Traits(writes_gradients=True)}
    ranges: ClassVar[Mapping[str, Range]] = {
        "beta1": DECAY_RATE,
        "beta2": DECAY_RATE,
        "epsilon": NOT_NEGATIVE,
    }

    def __init__(
        self,
        learning_rate: Any = 0.002,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.check_hyperparameters()

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        correction = {t: 1.0 - self.beta1**t for t in set(updates)}
        return {
            "lr": [lr / correction[t] for lr, t in zip(lrs, updates)],
            "beta1": self.beta1,
            "one_minus_beta1": 1.0 - self.beta1,
            "beta2": self.beta2,
            "epsilon": self.epsilon,
        }

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Tuple[NDArray, NDArray], s: SimpleNamespace
    ) -> None:
        m, u = state
        m[:] = s.beta1 * m + s.one_minus_beta1 * grad
        u[:] = maximum(s.beta2 * u, absolute(grad))
        if s.rule == "adamax_mxnet1":
            step, divisor = s.lr * m, u + s.epsilon
            # Where both are zero, no step is taken.
            weight -= step / (divisor + (step == 0) * (divisor == 0))
            return
        weight -= s.lr * (m / (u + s.epsilon))
