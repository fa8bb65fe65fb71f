# SPDX-License-Identifier: Apache-2.0
"""The table of options against constructors, docstrings and MXNet's own optimizers."""

import inspect
import re

import mxnet as mx
import pytest
from family import CLASSES, WITH_BUILT_IN

import mxadamax
from mxadamax import checkpoints, conversion
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.optimizers.arithmetic import built_in_class
from mxadamax.optimizers.base import FusedOptimizer
from mxadamax.optimizers.options import BY_NAME, OPTIONS, OWN_OPTIONS, RANGES, Range, Resume

pytestmark = pytest.mark.quick


def test_the_constructor_takes_what_the_table_has():
    found = inspect.signature(FusedOptimizer.__init__).parameters
    ours = {name: p for name, p in found.items() if name not in ("self", "kwargs")}
    of_mxnet = {"rescale_grad", "wd", "clip_gradient", "multi_precision"}
    assert {*ours, *of_mxnet} == {option.name for option in OPTIONS}
    for name, parameter in ours.items():
        # The subclasses give these two.
        if name not in ("learning_rate", "use_fused_step"):
            assert parameter.default == BY_NAME[name].default, name
    optimizer = mxadamax.SGD()
    for name in of_mxnet:
        assert getattr(optimizer, name) == BY_NAME[name].default, name


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_docstring_has_the_ranges_of_the_table(option):
    text = inspect.getdoc(FusedOptimizer)
    if isinstance(option.values, Range):
        values = str(option.values).replace("in ", "", 1).replace(" or None", ", or None")
        stated = re.search(rf"^{option.name} : float, in (.*?)(, default .*)?$", text, re.MULTILINE)
        stated = stated or re.search(rf"``{option.name}`` \((?:in\s)?([^`]*?)\),", text)
        assert re.sub(r"\s", " ", stated[1]).strip("in ") == values
    else:
        assert re.search(rf"^{option.name} : |``{option.name}``", text, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_option_of_an_optimizer_is_in_a_table(name):
    """A new one is to say what becomes of it in checkpoints and conversions."""
    options = conversion._options(CLASSES[name])
    # Conversions carry what the built-in has, too.
    built_in = built_in_class(CLASSES[name].built_in)
    carried = set() if built_in is None else set(map(conversion.our_name, vars(built_in())))
    assert set(options) <= {*BY_NAME, *CLASSES[name].ranges, *carried}
    for option in OWN_OPTIONS:
        default = options.get(option.name, option.default)
        # Optimizers have defaults of their own where the table has none.
        assert option.default in (default, inspect.Parameter.empty), option.name


@pytest.mark.skipif(IS_MXNET_1, reason="which has fewer options, in part")
@pytest.mark.parametrize("member", WITH_BUILT_IN, ids=str)
def test_which_options_a_built_in_has(member):
    built_in = mx.optimizer.create(member.built_in)
    for option in OPTIONS:
        # Some built-ins have `lazy_update` and `correct_bias` as well, and all `use_fused_step`.
        attribute = "lr" if option.name == "learning_rate" else option.name
        if option.in_built_in:
            assert hasattr(built_in, attribute), option.name
        elif option.name not in ("lazy_update", "use_fused_step"):
            assert not hasattr(built_in, attribute), option.name


def test_what_a_file_decides_follows_from_the_table():
    """An option for which there is no check in its place would be taken from anywhere."""
    assert {option.resume for option in OPTIONS} == set(Resume)
    of_the_program = {"rescale_grad", "numerics", "use_fused_step", "aggregate_num"}
    of_the_program |= {"allow_np_array", "_by_lists"}
    assert set(checkpoints._OF_THE_PROGRAM) == of_the_program
    assert conversion._IN_ANY_BUILT_IN == {"state_dtype": None, "ema_decay": None, "amsgrad": False}
    assert set(RANGES) == {"rescale_grad", "wd", "clip_gradient", "clip_global_norm", "ema_decay"}


@pytest.mark.parametrize(
    ("name", "values", "setting"),
    [
        ("maximize", (False, True), (False, True)),
        ("state_dtype", (None, "int8", "float16"), (None, "int8", "float16")),
        ("ema_decay", (None, 0.0, 0.5), (False, True, True)),
        ("momentum", (0.0, 0.5), (False, True)),
        ("clip_weights", (None, 0.5), (False, True)),
    ],
)
def test_what_file_and_program_must_agree_on(name, values, setting):
    assert tuple(map(BY_NAME[name].setting, values)) == setting


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, None),
        ({"clip_global_norm": 1.0}, "clip_global_norm"),
        ({"skip_nonfinite": True}, "skip_nonfinite"),
        ({"clip_global_norm": 1.0, "skip_nonfinite": True}, "clip_global_norm"),
    ],
)
def test_which_option_needs_the_whole_model(options, found):
    assert mxadamax.SGD(**options)._whole_model_option == found
