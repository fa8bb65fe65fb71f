# SPDX-License-Identifier: Apache-2.0
"""The table of optimizers: a new one is a row here, and most tests hold it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Sequence

import mxadamax
from mxadamax.compatibility import IS_MXNET_1

import mxnet as mx
import pytest

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
class Member:
    """An optimizer with options that select a rule.

    Parameters
    ----------
    name : str
        Its name in MXNet's registry.
    built_in : str or None
        The built-in whose `step` it equals to the last bit; None where MXNet has none.
    options : dict
        Options that both take, beside those of the tests.
    ours : dict
        Options that only ours takes and needs, to do as the built-in does.
    variants : sequence of dict
        More options to compare with.
    ulps : int
        How many units in the last place a step may differ from MXNet's fused operator; 0 where there
        is none.
    """

    name: str
    built_in: str | None
    options: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    variants: Sequence[dict[str, Any]] = ()
    ulps: int = 4

    def __str__(self) -> str:
        return " ".join(
            [self.name, *(f"{k}={v}" for k, v in {**self.options, **self.ours}.items())]
        )

    def create(self, **options: Any) -> mx.optimizer.Optimizer:
        """Ours."""
        return mx.optimizer.create(self.name, **{**self.options, **self.ours, **options})

    def create_built_in(self, use_fused_step: bool = False, **options: Any):
        """MXNet 2's, by default the one whose `step` is called.

        Those that always make states of float32 are given states like the weight.
        """
        assert self.built_in is not None
        found = built_in(
            self.built_in, use_fused_step=use_fused_step, **{**self.options, **options}
        )
        if self.built_in in ("adadelta", "adagrad", "rmsprop"):
            found.create_state = self.create().create_state
        return found

    def create_fused_built_in(self, **options: Any) -> mx.optimizer.Optimizer:
        """MXNet's, whose update is one of MXNet's operators."""
        if not IS_MXNET_1:
            return self.create_built_in(use_fused_step=True, **options)
        if self.built_in not in FUSED_IN_MXNET_1:
            pytest.skip("MXNet 1 has no such operator")
        # Of which the default is another one there.
        momentum = {"momentum": 0.9} if self.built_in == "nag" else {}
        return mx.optimizer.create(self.built_in, **{**momentum, **self.options, **options})


FUSED_IN_MXNET_1 = ("adam", "sgd", "nag")
"""The built-ins of MXNet 1 whose operators compute what MXNet 2's do."""

MOMENTS = (
    {"beta1": 0.0, "beta2": 0.0},
    {"epsilon": 0.0},
    {"epsilon": 1e-3},
    {"begin_num_update": 500},
)

FAMILY = [
    Member("adamax_ext", "adamax", variants=MOMENTS, ulps=0),
    Member("adam_ext", "adam", variants=MOMENTS),
    Member("amsgrad_ext", None, variants=MOMENTS),
    # The `step` of the built-in decays a weight that has been updated already.
    Member("adamw_ext", "adamw", {"wd": 0.0}, variants=[*MOMENTS, {"correct_bias": False}]),
    Member(
        "nadam_ext",
        "nadam",
        ours={"schedule_per_parameter": True},
        variants=[*MOMENTS, {"schedule_decay": 0.5}],
        ulps=0,
    ),
    Member("adabelief_ext", "adabelief", variants=[*MOMENTS, {"correct_bias": False}], ulps=6),
    Member("rmsprop_ext", "rmsprop", variants=[{"rho": 0.0}, {"clip_weights": 0.3}]),
    Member(
        "rmsprop_ext",
        "rmsprop",
        {"centered": True, "epsilon": 1e-3},
        variants=[{"momentum": 0.0}, {"clip_weights": 0.3}, {"rho": 0.5}],
    ),
    Member("adagrad_ext", "adagrad", variants=[{"epsilon": 0.0}], ulps=0),
    Member("adadelta_ext", "adadelta", variants=[{"rho": 0.0}, {"epsilon": 1e-3}], ulps=0),
    Member("sgd_ext", "sgd"),
    Member("sgd_ext", "sgd", {"momentum": 0.9}, variants=[{"momentum": 0.123}]),
    Member("nag_ext", "nag", variants=[{"momentum": 0.0}, {"momentum": 0.123}]),
]
WITH_BUILT_IN = [member for member in FAMILY if member.built_in]
