# SPDX-License-Identifier: Apache-2.0
"""The optimizers that most tests go through: those of ``mxadamax verify``, with more options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import mxnet as mx

import mxadamax
from mxadamax.commands.verify import PEERS, Peer
from mxadamax.compatibility import IS_MXNET_1

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
class Member(Peer):
    """An optimizer with options that select a rule.

    Parameters
    ----------
    variants : sequence of dict
        More options to compare with.
    """

    variants: Sequence[dict[str, Any]] = ()

    @property
    def ulps(self) -> int:
        """How far a step may be from MXNet's fused operator; 0 where there is none."""
        # Where that cancels no digits: test_parity.py tells where.
        return 6 if self.built_in == "adabelief" else self.fused_ulps


MOMENTS = (
    {"beta1": 0.0, "beta2": 0.0},
    {"epsilon": 0.0},
    {"epsilon": 1e-3},
    {"begin_num_update": 500},
)

VARIANTS = {
    "adamax_ext": MOMENTS,
    "adam_ext": MOMENTS,
    "amsgrad_ext": MOMENTS,
    "adamw_ext wd=0.0": [*MOMENTS, {"correct_bias": False}],
    "nadam_ext": [*MOMENTS, {"schedule_decay": 0.5}],
    "adabelief_ext": [*MOMENTS, {"correct_bias": False}],
    "rmsprop_ext": [{"rho": 0.0}, {"clip_weights": 0.3}],
    "rmsprop_ext centered=True epsilon=0.001": [
        {"momentum": 0.0},
        {"clip_weights": 0.3},
        {"rho": 0.5},
    ],
    "adagrad_ext": [{"epsilon": 0.0}],
    "adadelta_ext": [{"rho": 0.0}, {"epsilon": 1e-3}],
    "sgd_ext": [],
    "sgd_ext momentum=0.9": [{"momentum": 0.123}],
    "nag_ext": [{"momentum": 0.0}, {"momentum": 0.123}],
}
FAMILY = [Member(**vars(peer), variants=VARIANTS[str(peer)]) for peer in PEERS]
WITH_BUILT_IN = [member for member in FAMILY if member.built_in]
