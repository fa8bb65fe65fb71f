# SPDX-License-Identifier: Apache-2.0
"""Lion."""

from types import SimpleNamespace
from typing import Any, ClassVar, Mapping, Sequence

from mxnet.ndarray import NDArray, sign, where

from .arithmetic import Arithmetic
from .base import FusedOptimizer, Scalars, register
from .options import DECAY_RATE, Range


@register("lion_ext")
class Lion(FusedOptimizer):
    r"""Lion: each weight moves by the learning rate in the direction of a sign.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient)
        weight -= lr * (sign(beta1 * m + (1 - beta1) * grad) + wd * weight)
        m = beta2 * m + (1 - beta2) * grad

    The sign of zero is zero. MXNet has no Lion.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.0001
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one. The paper uses a
        third to a tenth of AdamW's.
    beta1 : float, in [0, 1), default 0.9
        Weight of the moment in the direction of a step.
    beta2 : float, in [0, 1), default 0.99
        Decay rate of the moment `m`.
    use_fused_step : bool, default True
        False uses MXNet's operators instead of the native kernel: slow, the same bits.
    decoupled_wd : bool, default True
        Decay weights as in the paper, which uses three to ten times AdamW's `wd`. False adds
        ``wd * weight`` to the gradient instead, so a step sees only its effect on the sign.
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
    State for each weight: one array ``m`` of its shape and dtype. `state_dtype` can be
    ``'float16'`` or ``'bfloat16'``.

    Source: X. Chen et al., *Symbolic Discovery of Optimization Algorithms*, arXiv 2302.06675,
    algorithm 2.

    Examples
    --------
    >>> weight, grad = mx.nd.array([1.0, 1.0, 1.0]), mx.nd.array([0.1, -10.0, 0.0])
    >>> update = mx.optimizer.get_updater(mxadamax.Lion(learning_rate=0.5))
    >>> update(0, grad, weight)
    >>> weight.asnumpy()
    array([0.5, 1.5, 1. ], dtype=float32)
    """

    portable = Arithmetic("lion", decay_in_rule="decoupled")
    ranges: ClassVar[Mapping[str, Range]] = {"beta1": DECAY_RATE, "beta2": DECAY_RATE}

    def __init__(
        self,
        learning_rate: Any = 0.0001,
        beta1: float = 0.9,
        beta2: float = 0.99,
        use_fused_step: bool = True,
        decoupled_wd: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            use_fused_step=use_fused_step,
            decoupled_wd=decoupled_wd,
            **kwargs,
        )
        self.beta1 = beta1
        self.beta2 = beta2
        self.check_hyperparameters()

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {
            "lr": list(lrs),
            "beta1": self.beta1,
            "one_minus_beta1": 1.0 - self.beta1,
            "beta2": self.beta2,
            "one_minus_beta2": 1.0 - self.beta2,
        }

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: NDArray, s: SimpleNamespace
    ) -> None:
        direction = s.beta1 * state + s.one_minus_beta1 * grad
        state[:] = s.beta2 * state + s.one_minus_beta2 * grad
        # MXNet's sign of NaN is 0.
        direction = where(direction == direction, sign(direction), direction)
        weight -= s.lr * (direction + s.weight_decay * weight)
