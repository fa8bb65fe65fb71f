# SPDX-License-Identifier: Apache-2.0
"""The optimizers that most tests go through: those of ``mxadamax verify``, with more options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mxnet as mx

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.optimizers.info import OPTIMIZERS, OptimizerInfo

CLASSES = {
    name: found
    for name, found in vars(mxadamax).items()
    if name in mxadamax.__all__ and isinstance(found, type)
}
"""The optimizers of the package."""


def built_in(name: str, **options: Any) -> mx.optimizer.Optimizer:
    """MXNet 2's built-in; in MXNet 1, whose built-ins compute something else, what stands for it.

    That is ours computed by MXNet's operators, one parameter after another, of which MXNet 2 shows
    that it equals the built-in.
    """
    if not IS_MXNET_1:
        return mx.optimizer.create(name, **options)
    if name == "nadam":
        options["schedule_per_parameter"] = True
    return mx.optimizer.create(
        f"{name}_ext", **{**options, "use_fused_step": False, "aggregate_num": 1}
    )


def create(name: str, **options: Any) -> mx.optimizer.Optimizer:
    """Ours by its name, or what `built_in` says."""
    if name.endswith("_ext"):
        return mx.optimizer.create(name, **options)
    return built_in(name, **options)


@dataclass(frozen=True)
class Member(OptimizerInfo):
    """An optimizer, or one of its rules."""

    @property
    def ulps(self) -> int:
        """How far a step may be from MXNet's fused operator; 0 where there is none."""
        # Where that cancels no digits: test_parity.py tells where.
        return 6 if self.built_in == "adabelief" else self.fused_ulps


FAMILY = [Member(**vars(info)) for info in OPTIMIZERS]
WITH_BUILT_IN = [member for member in FAMILY if member.built_in]
