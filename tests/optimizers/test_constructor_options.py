# SPDX-License-Identifier: Apache-2.0
"""Options that are not given: what the docstrings say, and what MXNet's own take."""

import ast
import inspect
import re

import mxnet as mx
import pytest
from family import CLASSES, WITH_BUILT_IN

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.optimizers.base import FusedOptimizer

OPTIMIZERS = sorted(CLASSES)


def documented(cls):
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
        if option != "decoupled_wd" or name != "AdamW":
            assert found == default and (found is None) == (default is None), option


@pytest.mark.skipif(IS_MXNET_1, reason="which has other defaults, in part")
@pytest.mark.parametrize("member", WITH_BUILT_IN, ids=str)
def test_defaults_are_those_of_the_built_in(member):
    ours = mx.optimizer.create(member.name)
    theirs = mx.optimizer.create(member.built_in)
    apart = ("use_fused_step", "aggregate_num", "clip_weights", "lazy_update")
    options = inspect.signature(type(theirs).__init__).parameters
    compared = [o for o in options if hasattr(theirs, o) and hasattr(ours, o) and o not in apart]
    assert compared
    for option in compared:
        assert getattr(ours, option) == getattr(theirs, option), option
    assert ours.learning_rate == theirs.learning_rate


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_arrives(name):
    """A value that is not the default, by its name, is what the optimizer has."""
    other = {float: 0.25, int: 3, bool: True, type(None): 0.5}
    for option, default in {**documented(FusedOptimizer), **documented(CLASSES[name])}.items():
        special = {"state_dtype": "float16", "momentum": 0.25}
        value = special.get(option, other[type(default)])
        if option == "use_fused_step" or (option == "decoupled_wd" and name == "AdamW"):
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
