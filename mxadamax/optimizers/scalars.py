# SPDX-License-Identifier: Apache-2.0
"""Compute the scalars of an update, by name: one for all parameters, or one for each."""

import math
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Union

from .options import bound_or_infinity

if TYPE_CHECKING:
    from .base import FusedOptimizer

Scalars = Dict[str, Union[float, List[float]]]

NO_L2 = -1.0
"""A value of `wd`: no L2 term is added to the gradient."""


def update_scalars(
    optimizer: "FusedOptimizer",
    lrs: Sequence[float],
    wds: Sequence[float],
    updates: Sequence[int],
) -> Scalars:
    """Compute the scalars for kernels and `reference_step`."""
    rescale_grad = optimizer.rescale_grad
    return {
        "rescale_grad": -rescale_grad if optimizer.maximize else rescale_grad,
        "clip_gradient": bound_or_infinity(optimizer.clip_gradient),
        **optimizer._weight_decay(lrs, wds, updates),
        **optimizer.scalars(lrs, updates),
    }


def ema_weight(decay: Optional[float], t: int) -> float:
    """Return the EMA weight of a weight after its update `t`."""
    if not decay or t == 1:
        return 1.0
    # 1 - decay**t, without cancellation if decay is near 1.
    return (1.0 - decay) / -math.expm1(t * math.log(decay))
