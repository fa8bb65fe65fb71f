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
RENAMED = {
    "rmsprop": {"gamma1": "rho", "gamma2": "momentum"},
    "adagrad": {"eps": "epsilon"},
    "lars": {"eps": "epsilon"},
}
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
    optimizer = CLASSES[name](numerics="portable")
    options = {**documented(FusedOptimizer), **documented(CLASSES[name])}
    assert len(options) > 8
    for option, default in options.items():
        found = optimizer.learning_rate if option == "learning_rate" else getattr(optimizer, option)
        if default is None and option in ("numerics", "schedule_per_parameter"):
            continue
        if option == "learning_rate" and default is None:
            default = 0.01
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
        special.update(numerics="portable", schedule_per_parameter=True)
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
    if IS_MXNET_1:
        # There is no learning rate among them.
        assert (mxadamax.SGD(0.25).momentum, mxadamax.SGD(0.25).learning_rate) == (0.25, 0.01)
    else:
        assert mxadamax.SGD(0.5, 0.25).momentum == 0.25
    assert mxadamax.SGD(0.5, 0.25, numerics="portable").momentum == 0.25


@pytest.mark.parametrize("name", BUILT_IN)
def test_arguments_and_defaults_are_those_of_the_built_in(name):
    """Of the installed MXNet, by its own names."""
    if name not in mx.optimizer.Optimizer.opt_registry:
        pytest.skip(f"this MXNet has no {name}")
    theirs, ours = mx.optimizer.create(name), mx.optimizer.create(f"{name}_ext")
    assert ours.learning_rate == theirs.learning_rate
    found = inspect.signature(type(theirs).__init__).parameters
    for parameter in list(found.values())[1:]:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            continue
        option = RENAMED.get(name, {}).get(parameter.name, parameter.name)
        if option not in ("learning_rate", *NOT_COMPARED):
            assert getattr(ours, option) == parameter.default, option
        # By its name there, and not by two names.
        value = not parameter.default if isinstance(parameter.default, bool) else 0.25
        if option in NOT_COMPARED or isinstance(parameter.default, str):
            continue
        given = mx.optimizer.create(f"{name}_ext", **{parameter.name: value})
        assert getattr(given, "lr" if option == "learning_rate" else option) == value
        if option != parameter.name and IS_MXNET_1:
            with pytest.raises(TypeError, match=f"both '{parameter.name}' and '{option}'"):
                mx.optimizer.create(f"{name}_ext", **{parameter.name: value, option: value})


def test_arguments_in_wrong_places_are_refused():
    with pytest.raises(TypeError, match="adam_ext: got 8 positional arguments, expected at most"):
        mxadamax.Adam(*8 * [0.5])
    with pytest.raises(TypeError, match="two values for the argument 'beta1'"):
        mxadamax.Adam(0.5, 0.25, beta1=0.5)


def test_numerics_are_checked():
    with pytest.raises(ValueError, match="adam_ext: numerics must be 'builtin' or 'portable', or"):
        mxadamax.Adam(numerics="other")
    with pytest.raises(ValueError, match="lion_ext: numerics must be 'portable' or None, got 'bu"):
        mxadamax.Lion(numerics="builtin")
    assert mxadamax.Adam().numerics == mxadamax.Adam(numerics=None).numerics == "builtin"
    assert mxadamax.Adam(amsgrad=True).numerics == mxadamax.Lion().numerics == "portable"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_scheduler_without_a_learning_rate(name):
    """As the built-in: MXNet 1's has none of its own in six cases."""
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
    assert theirs == ours
    assert ours[4] == ours[0] / 4
    if IS_MXNET_1 and name in ("adadelta", "adagrad", "ftml", "ftrl", "nag", "sgd"):
        assert ours[0] == 0.37
