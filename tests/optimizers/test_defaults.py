# SPDX-License-Identifier: Apache-2.0
"""What optimizers do where a program says nothing: as MXNet 2's, and as the guide says of 1.9's."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import mxnet as mx
import pytest
from family import WITH_BUILT_IN

import mxadamax  # noqa: F401
from mxadamax._mxnet.compatibility import IS_MXNET_1

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "optimizers.md"
NAMES = sorted({member.built_in for member in WITH_BUILT_IN})
OUR_NAMES = {"rmsprop": {"gamma1": "rho", "gamma2": "momentum"}, "adagrad": {"eps": "epsilon"}}
"""Of options that MXNet 1 calls otherwise."""

HOW_IT_IS_CALLED = {"use_fused_step", "aggregate_num"}


def defaults(name: str) -> dict[str, Any]:
    """The options of an optimizer by our names, those of its base classes too."""
    found: dict[str, Any] = {}
    for kind in mx.optimizer.Optimizer.opt_registry[name].__mro__[:-1]:
        for parameter in inspect.signature(kind.__init__).parameters.values():
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "self":
                renamed = OUR_NAMES.get(name, {}) if IS_MXNET_1 else {}
                found.setdefault(renamed.get(parameter.name, parameter.name), parameter.default)
    # The constructor makes a rate of None.
    return {**found, "learning_rate": mx.optimizer.create(name).learning_rate}


def differences(name: str) -> dict[str, tuple[Any, Any]]:
    """What the built-in and ours have for the options of the built-in, where they differ."""
    theirs, ours = defaults(name), defaults(f"{name}_ext")
    assert set(theirs) <= set(ours)
    return {
        option: (value, ours[option])
        for option, value in theirs.items()
        if value != ours[option] and option not in HOW_IT_IS_CALLED
    }


@pytest.mark.skipif(IS_MXNET_1, reason="MXNet 1's have other defaults")
@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_mxnet_2(name):
    assert differences(name) == {}


@pytest.mark.skipif(not IS_MXNET_1, reason="reads MXNet 1's defaults")
def test_the_guide_names_each_default_of_mxnet_1_that_is_another():
    row = re.compile(r"^\| `(\w+)` \| `(\w+)`[^|]* \| ([^|,]+)[^|]* \| ([^|]+) \|$", re.MULTILINE)
    table = GUIDE.read_text().split("| option | there | here |")[1].split("\n\n")[0]
    said = {(name, option): (there, here) for name, option, there, here in row.findall(table)}
    found = {
        (name, option): tuple(map(str, values))
        for name in NAMES
        if name in mx.optimizer.Optimizer.opt_registry
        for option, values in differences(name).items()
    }
    assert said == found


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduler_without_a_learning_rate(name):
    """As the built-in, but for four of MXNet 1, of which the guide says it."""
    if name not in mx.optimizer.Optimizer.opt_registry:
        pytest.skip(f"this MXNet has no {name}")

    def rates(registered: str) -> list[float]:
        scheduler = mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=0.37)
        optimizer = mx.optimizer.create(registered, lr_scheduler=scheduler)
        weight, update = mx.nd.ones((2,)), mx.optimizer.get_updater(optimizer)
        found = []
        for _ in range(5):
            update(0, mx.nd.ones((2,)), weight)
            found.append(optimizer.learning_rate)
        return found

    ours, theirs = rates(f"{name}_ext"), rates(name)
    assert ours[0] == mx.optimizer.create(f"{name}_ext").learning_rate
    assert ours[4] == ours[0] / 4
    if IS_MXNET_1 and name in ("adadelta", "adagrad", "nag", "sgd"):
        assert theirs == [rate / ours[0] * 0.37 for rate in ours]
    else:
        assert theirs == ours
