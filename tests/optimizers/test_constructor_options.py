# SPDX-License-Identifier: Apache-2.0
"""Options of constructors: names, positions and defaults, as documented and as MXNet's."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import mxnet as mx
import pytest
from family import CLASSES, WITH_BUILT_IN

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.optimizers.base import FusedOptimizer

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "optimizers.md"
OPTIMIZERS = sorted(CLASSES)
BUILT_IN = sorted({member.built_in for member in WITH_BUILT_IN})
RENAMED = {"rmsprop": {"gamma1": "rho", "gamma2": "momentum"}, "adagrad": {"eps": "epsilon"}}
"""Options that MXNet 1 calls otherwise."""

NOT_COMPARED = {"use_fused_step", "aggregate_num"}
"""They say how a step is called, not what it computes."""


def documented(cls: type) -> dict[str, Any]:
    """The defaults in a docstring, by option."""
    found = re.findall(r"^    (\w+) : .*default ([^\s,]+)$", inspect.getdoc(cls), re.MULTILINE)
    found = found or re.findall(r"^(\w+) : .*default ([^\s,]+)$", inspect.getdoc(cls), re.MULTILINE)
    return {name: ast.literal_eval(text) for name, text in found}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_defaults_are_as_documented(name):
    optimizer = CLASSES[name]()
    options = {**documented(FusedOptimizer), **documented(CLASSES[name])}
    assert len(options) > 8
    for option, default in options.items():
        found = optimizer.learning_rate if option == "learning_rate" else getattr(optimizer, option)
        if option != "decoupled_wd" or name not in ("AdamW", "BERTAdam"):
            assert found == default and (found is None) == (default is None), option


REFUSED = {
    "GroupAdaGrad": ("clip_global_norm", "skip_nonfinite", "ema_decay"),
    "LBSGD": ("clip_global_norm", "skip_nonfinite"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_arrives(name):
    """A value that is not the default, by its name, is what the optimizer has."""
    other = {float: 0.25, int: 3, bool: True, type(None): 0.5}
    for option, default in {**documented(FusedOptimizer), **documented(CLASSES[name])}.items():
        if option in REFUSED.get(name, ()):
            continue
        special = {"state_dtype": "float16", "momentum": 0.25, "warmup_strategy": "sqrt"}
        value = special[option] if option in special else other[type(default)]
        if option == "use_fused_step" or (
            option == "decoupled_wd" and name in ("AdamW", "BERTAdam")
        ):
            value = option == "decoupled_wd"
        if option in ("amsgrad", "correct_bias") and default is True:
            value = name == "AMSGrad" and option == "amsgrad"
        if option == "state_dtype" and name not in ("Adam", "Adamax", "AMSGrad"):
            continue
        optimizer = CLASSES[name](**{option: value})
        found = optimizer.learning_rate if option == "learning_rate" else getattr(optimizer, option)
        assert found == value, option


def test_positions_are_those_of_the_built_in():
    """Where an option is not given by its name."""
    optimizer = mxadamax.Adam(0.5, 0.25, 0.75, 0.125)
    values = (optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.epsilon)
    assert values == (0.5, 0.25, 0.75, 0.125)
    assert mxadamax.SGD(0.5, 0.25).momentum == 0.25


def signature_defaults(name: str) -> dict[str, Any]:
    """The options of an optimizer by our names, those of its base classes too."""
    found: dict[str, Any] = {}
    for kind in mx.optimizer.Optimizer.opt_registry[name].__mro__[:-1]:
        for parameter in inspect.signature(kind.__init__).parameters.values():
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "self":
                renamed = RENAMED.get(name, {}) if IS_MXNET_1 else {}
                found.setdefault(renamed.get(parameter.name, parameter.name), parameter.default)
    # The constructor makes a rate of None.
    return {**found, "learning_rate": mx.optimizer.create(name).learning_rate}


def differences(name: str) -> dict[str, tuple[Any, Any]]:
    """What the built-in and ours have for the options of the built-in, where they differ."""
    theirs, ours = signature_defaults(name), signature_defaults(f"{name}_ext")
    assert set(theirs) <= set(ours)
    return {
        option: (value, ours[option])
        for option, value in theirs.items()
        if value != ours[option] and option not in NOT_COMPARED
    }


@pytest.mark.skipif(IS_MXNET_1, reason="MXNet 1's have other defaults")
@pytest.mark.parametrize("name", BUILT_IN)
def test_defaults_are_those_of_mxnet_2(name):
    assert differences(name) == {}


@pytest.mark.skipif(not IS_MXNET_1, reason="reads MXNet 1's defaults")
def test_documented_differences_from_the_defaults_of_mxnet_1():
    row = re.compile(r"^\| `(\w+)` \| `(\w+)`[^|]* \| ([^|,]+)[^|]* \| ([^|]+) \|$", re.MULTILINE)
    table = GUIDE.read_text().split("| option | there | here |")[1].split("\n\n")[0]
    said = {(name, option): (there, here) for name, option, there, here in row.findall(table)}
    found = {
        (name, option): tuple(map(str, values))
        for name in BUILT_IN
        if name in mx.optimizer.Optimizer.opt_registry
        for option, values in differences(name).items()
    }
    assert said == found


@pytest.mark.parametrize("name", BUILT_IN)
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
