# SPDX-License-Identifier: Apache-2.0
"""The optimizers that most tests go through: those of ``mxadamax verify``, with more options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mxnet as mx

import mxadamax
from mxadamax.optimizers.info import OPTIMIZERS, OptimizerInfo

CLASSES = {
    name: found
    for name, found in vars(mxadamax).items()
    if name in mxadamax.__all__ and isinstance(found, type)
}
"""The optimizers of the package."""


def built_in(name: str, **options: Any) -> mx.optimizer.Optimizer:
    """The installed MXNet's built-in; where it has none, what equals ours.

    That is ours computed by MXNet's operators, one parameter after another.
    """
    member = next(m for m in FAMILY if m.built_in == name)
    return member.create_reference(**options)


def create(name: str, **options: Any) -> mx.optimizer.Optimizer:
    """Ours by its name, or what `built_in` says."""
    if name.endswith("_ext"):
        return mx.optimizer.create(name, **options)
    return built_in(name, **options)


Member = OptimizerInfo
FAMILY = OPTIMIZERS
PORTABLE_FAMILY = [replace(m, ours={**m.ours, "numerics": "portable"}) for m in FAMILY]
"""The same by formulas that do not depend on the installed MXNet."""

WITH_BUILT_IN = [member for member in FAMILY if member.built_in]
