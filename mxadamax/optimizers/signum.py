# SPDX-License-Identifier: Apache-2.0
"""Signum, and signSGD."""

import math
from types import SimpleNamespace
from typing import Any, ClassVar, Mapping, Optional, Sequence

from mxnet.ndarray import NDArray

from .arithmetic import Arithmetic, BySeries
from .base import Scalars, register
from .options import DECAY_RATE, NOT_NEGATIVE, Range
from .scalars import NO_L2
from .sgd import MomentumOptimizer


@register("signum_ext", "signum")
class Signum(MomentumOptimizer):
    r"""Signum: each weight moves by the learning rate, against the sign of the mean gradient.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        m = momentum * m - (1 - momentum) * grad
        weight = (1 - lr * wd_lh) * weight + lr * sign(m)

        weight = (1 - lr * (wd + wd_lh)) * weight - lr * sign(grad)        # momentum=0: signSGD

    The sign of zero and of NaN is zero. Weights and states equal those of the installed MXNet's
    built-in ``signum`` to the last bit, with ``numerics='portable'`` those of the `step` of
    MXNet 2's.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.01
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    momentum : float, in [0, 1), default 0.9
        Decay rate of the mean `m`. It can change from step to step, but not from 0.
    wd_lh : float, in [0, inf), default 0
        Weight decay that the gradient does not see, for all weights; `wd` counts besides.
    use_fused_step : bool, default True
        False computes with MXNet's operators instead of the native kernel; same bits.
    **kwargs
        What every optimizer takes; see :class:`mxadamax.optimizers.base.FusedOptimizer`.

    Raises
    ------
    TypeError
        For an argument that does not exist.
    ValueError
        For a hyperparameter out of its range.

    Notes
    -----
    State for each weight: one array ``m`` of its shape and dtype, the built-in's; None without
    momentum. Without momentum, `rescale_grad` and `clip_gradient` do not count, as in the built-in.

    Source: J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, *signSGD: Compressed
    Optimisation for Non-Convex Problems*, arXiv 1802.04434, algorithms 1 and 2.

    Examples
    --------
    >>> weight, grad = mx.nd.array([1.0, 1.0, 1.0]), mx.nd.array([0.1, -10.0, 0.0])
    >>> update = mx.optimizer.get_updater(mxadamax.Signum(learning_rate=0.5))
    >>> update(0, grad, weight)
    >>> weight.asnumpy()
    array([0.5, 1.5, 1. ], dtype=float32)
    """

    portable = Arithmetic("signum")
    builtin: ClassVar[BySeries] = {
        1: Arithmetic(
            "signum_mxnet1", by_operator=True, decay_in_rule="coupled", scale_in_rule=True
        ),
        2: Arithmetic("signum_mxnet2", by_operator=True),
    }
    portable_without = Arithmetic("signsgd")
    builtin_without: ClassVar[BySeries] = dict.fromkeys(
        (1, 2), Arithmetic("signsgd_mxnet", by_operator=True, decay_in_rule="coupled")
    )
    ranges: ClassVar[Mapping[str, Range]] = {"momentum": DECAY_RATE, "wd_lh": NOT_NEGATIVE}

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        wd_lh: float = 0.0,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        self.wd_lh = wd_lh
        super().__init__(
            momentum=momentum,
            learning_rate=learning_rate,
            use_fused_step=use_fused_step,
            **kwargs,
        )

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        found = {
            **super().scalars(lrs, updates),
            "one_minus_momentum": 1 - self.momentum,
            "wd_lh": self.wd_lh,
        }
        if not self._has_state:
            found["clip_gradient"] = math.inf
            if self.clip_global_norm is None:
                found["rescale_grad"] = -1.0 if self.maximize else 1.0
        return found

    def _weight_decay(
        self,
        lrs: Sequence[float],
        wds: Sequence[float],
        updates: Sequence[int],
        arithmetic: Arithmetic,
    ) -> Scalars:
        found = super()._weight_decay(lrs, wds, updates, arithmetic)
        if arithmetic.rule.startswith("signum_mxnet"):
            return found
        # With a momentum, or decoupled, `wd` has its own place.
        apart = self._has_state or self.decoupled_wd
        rates = [self.wd_lh + (0.0 if apart else wd) for wd in wds]
        if arithmetic.by_operator:
            return {**found, "weight_decay": rates}
        kept = [1 - lr * rate for lr, rate in zip(lrs, rates)]
        if self.decoupled_wd:
            kept = [x * (1 - lr * wd) for x, lr, wd in zip(kept, lrs, wds)]
        if not self._has_state:
            found["wd"] = NO_L2
        return {**found, "decay_factor": kept}

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Optional[NDArray], s: SimpleNamespace
    ) -> None:
        if state is None:
            kept = 1 - s.lr * s.weight_decay if s.rule == "signsgd_mxnet" else 1
            weight[:] = kept * weight - s.lr * ((grad > 0) - (grad < 0))
            return
        if s.rule == "signum_mxnet1":
            unseen = 1 - s.momentum
            decay = unseen * s.weight_decay * weight
            state[:] = s.momentum * state - decay - unseen * s.grad_scale * grad
        else:
            unseen = 1 - s.momentum if s.rule == "signum_mxnet2" else s.one_minus_momentum
            state[:] = s.momentum * state - unseen * grad
        kept = 1 if s.rule == "signum" else 1 - s.lr * s.wd_lh
        weight[:] = kept * weight + s.lr * ((state > 0) - (state < 0))
