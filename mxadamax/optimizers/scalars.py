# SPDX-License-Identifier: Apache-2.0
"""Compute the scalars of an update, by name: one for all parameters, or one for each."""

import math
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Union

from .. import _native
from .options import bound_or_infinity

if TYPE_CHECKING:
    from .arithmetic import Arithmetic
    from .base import FusedOptimizer

Scalars = Dict[str, Union[float, List[float]]]

NO_L2 = -1.0
"""A value of `wd`: no L2 term is added to the gradient."""


def update_scalars(
    optimizer: "FusedOptimizer",
    lrs: Sequence[float],
    wds: Sequence[float],
    updates: Sequence[int],
    arithmetic: Optional["Arithmetic"] = None,
) -> Scalars:
    """Compute the scalars for a rule and `reference_step`.

    What `scalars` gives beyond that is for another rule of the same optimizer.
    """
    arithmetic = arithmetic or optimizer.arithmetic
    rescale_grad = -optimizer.rescale_grad if optimizer.maximize else optimizer.rescale_grad
    bound = gradient_bound(optimizer)
    found: Scalars = {
        "rescale_grad": rescale_grad,
        "clip_gradient": bound_or_infinity(bound),
        "grad_scale": 1.0,
        **optimizer._weight_decay(lrs, wds, updates, arithmetic),
        **optimizer.scalars(lrs, updates),
    }
    # The norm of all gradients is taken of rescaled ones.
    if arithmetic.scale_in_rule and bound is None and optimizer.clip_global_norm is None:
        found["rescale_grad"], found["grad_scale"] = 1.0, rescale_grad
    names = _native.rules[arithmetic.rule].scalars
    return {name: found[name] for name in names if name in found}


def gradient_bound(optimizer: "FusedOptimizer") -> Optional[float]:
    """`clip_gradient`; None for none, which is what MXNet's operators take 0 for."""
    arithmetic = optimizer.arithmetic
    takes_0_for_none = arithmetic.by_operator and not arithmetic.zero_is_a_bound
    if takes_0_for_none and optimizer.clip_gradient == 0:
        return None
    bound: Optional[float] = optimizer.clip_gradient
    return bound


def check_divisors(owner: str, lrs: Sequence[float]) -> None:
    """Refuse learning rates that a step cannot divide by; ValueError."""
    if 0 in lrs:
        raise ValueError(
            f"{owner}: the learning rate is 0 (learning_rate, or the scheduler's), expected "
            "another number, since a step divides by it"
        )


def ema_weight(decay: Optional[float], t: int) -> float:
    """Return the EMA weight of a weight after its update `t`."""
    if not decay or t == 1:
        return 1.0
    # 1 - decay**t, without cancellation if decay is near 1.
    return (1.0 - decay) / -math.expm1(t * math.log(decay))
