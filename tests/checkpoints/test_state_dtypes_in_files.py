# SPDX-License-Identifier: Apache-2.0
"""Files of states in low precision: those of earlier versions, and of programs that chose others."""

import copy
import io
import pickle

import mxnet as mx
import numpy as np
import pytest
from common import nd
from mxnet import autograd, gluon

import mxadamax
from mxadamax._mxnet.compatibility import gluon_arrays
from mxadamax.optimizers.base import FusedOptimizer
from mxadamax.optimizers.state_layout import arrays_of

pytestmark = pytest.mark.quick

SHAPES = {"large": (64, 80), "small": (33,), "other": (70, 64)}
DTYPES = ("float16", "bfloat16", "int8")


class Training:
    """Parameters with gradients that depend on the step only."""

    def __init__(self, state_dtype, name="adam_ext", dtype="float32", trainer=None, **options):
        self.parameters = {}
        for key, shape in SHAPES.items():
            self.parameters[key] = gluon.Parameter(key, shape=shape, dtype=dtype)
            self.parameters[key].initialize(mx.init.One())
        options = {"learning_rate": 0.01, "state_dtype": state_dtype, **options}
        self.trainer = gluon.Trainer(list(self.parameters.values()), name, options, **trainer or {})

    def go(self, steps):
        for step in steps:
            rng = np.random.RandomState(step)
            with autograd.record():
                loss = 0
                for key, parameter in self.parameters.items():
                    values = rng.standard_normal(SHAPES[key]).astype(parameter.dtype)
                    loss = (
                        loss
                        + (parameter.data() * gluon_arrays.array(values, dtype=values.dtype)).sum()
                    )
            loss.backward()
            self.trainer.step(1)
        return self

    @property
    def updater(self):
        on_store = self.trainer._update_on_kvstore
        return self.trainer._kvstore._updater if on_store else self.trainer._updaters[0]

    def like(self, other):
        for key, parameter in self.parameters.items():
            parameter.set_data(other.parameters[key].data())
        return self

    def everything(self):
        states = self.updater.states.values()
        return [p.data().asnumpy().tobytes() for p in self.parameters.values()] + [
            a.asnumpy().tobytes() for state in states for a in arrays_of(state)
        ]

    def dtypes(self):
        states = self.updater.states
        first = (next(arrays_of(states[k])) for k in range(len(SHAPES)))
        return [str(np.dtype(array.dtype)) for array in first]


@pytest.fixture
def by_an_earlier_version(monkeypatch):
    """What is pickled meanwhile is as before `state_dtype` was chosen by parameter."""

    def pickled(optimizer):
        state = optimizer_state(optimizer)
        assert state["_format"] == 2
        for name in ("_parameter_names", "_sparse_gradients", "_loaded_state_dtypes"):
            state.pop(name, None)
        return {**state, "_format": 1, "state_dtype": state["state_dtype"][".*"]}

    optimizer_state = FusedOptimizer.__getstate__
    return lambda: monkeypatch.setattr(FusedOptimizer, "__getstate__", pickled), monkeypatch.undo


KINDS = [
    {},
    {"ema_decay": 0.9, "clip_global_norm": 3.0, "skip_nonfinite": True},
    {"dtype": "float16"},
    {"dtype": "float16", "multi_precision": True},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["load_states", "Trainer.load_states", "set_states"])
@pytest.mark.parametrize("program", ["str", "dict", "function"])
def test_a_training_of_an_earlier_version_goes_on(
    program, way, dtype, options, by_an_earlier_version, tmp_path
):
    """In its dtype, which small arrays have as well."""
    if way == "set_states" and program != "str":
        pytest.skip("earlier versions had one dtype for all")
    before, now = by_an_earlier_version
    first = Training({".*": dtype}, **options).go(range(3))
    file = str(tmp_path / "states")
    before()
    if way == "set_states":
        content = first.updater.get_states()
    else:
        first.trainer.save_states(file)
    now()
    # Of the other programs none has it for all.
    given = {"str": dtype, "dict": {"large": dtype}, "function": only_large}[program]
    if program == "function" and dtype != "int8":
        given = {"float16": only_large_in_float16, "bfloat16": only_large_in_bfloat16}[dtype]
    second = Training(given, **options).like(first)
    if way == "load_states":
        mxadamax.load_states(second.trainer, file)
        assert second.trainer.optimizer.state_dtype == given
    elif way == "Trainer.load_states":
        second.trainer.load_states(file)
        assert second.trainer.optimizer.state_dtype == {".*": dtype}
    else:
        second.go([0]).like(first)
        second.updater.set_states(content)
        optimizer = second.trainer.optimizer
        optimizer._index_update_count.update(first.trainer.optimizer._index_update_count)
        optimizer.num_update = 3
    assert second.dtypes() == first.dtypes()
    assert second.go(range(3, 6)).everything() == first.go(range(3, 6)).everything()
    # And once more, by this version.
    mxadamax.save_states(second.trainer, file)
    third = Training(given, **options).like(second)
    mxadamax.load_states(third.trainer, file)
    assert third.go(range(6, 8)).everything() == first.go(range(6, 8)).everything()


def name_of(given):
    """The name of a test, alike in each process."""
    return getattr(given, "__name__", str(given))


def only_large(name, shape):
    return "int8" if name == "large" else None


def only_large_in_float16(name, shape):
    return "float16" if name == "large" else None


def only_large_in_bfloat16(name, shape):
    return "bfloat16" if name == "large" else None


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize(
    "state_dtype",
    [*DTYPES, {"other": "int8", ".*": "bfloat16"}, only_large],
    ids=name_of,
)
@pytest.mark.parametrize("way", ["load_states", "Trainer.load_states"])
def test_round_trips(way, state_dtype, options, tmp_path):
    first = Training(state_dtype, **options).go(range(3))
    file = str(tmp_path / "states")
    if way == "load_states":
        mxadamax.save_states(first.trainer, file)
    else:
        first.trainer.save_states(file)
    second = Training(state_dtype, **options).like(first)
    if way == "load_states":
        mxadamax.load_states(second.trainer, file)
    else:
        second.trainer.load_states(file)
    assert second.trainer.optimizer.state_dtype == state_dtype
    assert second.dtypes() == first.dtypes()
    assert second.go(range(3, 6)).everything() == first.go(range(3, 6)).everything()


# MXNet leaves files open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", ["save_states", "dump", "alone"])
def test_on_a_key_value_store(way, tmp_path):
    def make():
        store = {"kvstore": mx.kv.create("local"), "update_on_kvstore": True}
        return Training({"small": None, ".*": "int8"}, trainer=store, aggregate_num=1)

    first = make().go(range(3))
    second = make().like(first)
    file = str(tmp_path / "states")
    if way == "save_states":
        mxadamax.save_states(first.trainer, file)
        mxadamax.load_states(second.trainer, file)
    elif way == "dump":
        first.trainer.save_states(file)
        second.trainer.load_states(file)
    else:
        second.trainer._init_kvstore()
        second.trainer._init_params()
        first.trainer._kvstore.save_optimizer_states(file)
        second.trainer._kvstore.load_optimizer_states(file)
        optimizer = second.trainer.optimizer
        optimizer._index_update_count.update(first.trainer.optimizer._index_update_count)
        optimizer.num_update = 3
    assert second.dtypes() == ["int8", "float32", "int8"]
    assert second.go(range(3, 6)).everything() == first.go(range(3, 6)).everything()


def test_states_of_a_program_that_knew_other_gradients():
    """Float32 states of what is large, which only the gradients of that program explain."""
    first = Training({"large": None, ".*": "bfloat16"}).go(range(3))
    second = Training("bfloat16").go([0]).like(first)
    second.updater.set_states(first.updater.get_states())
    optimizer = second.trainer.optimizer
    optimizer._index_update_count.update(first.trainer.optimizer._index_update_count)
    optimizer.num_update = 3
    assert second.dtypes()[0] == "float32"
    assert second.go(range(3, 6)).everything() == first.go(range(3, 6)).everything()


@pytest.mark.parametrize("written", ["bfloat16", {"other": None, ".*": "bfloat16"}], ids=str)
def test_the_file_decides_for_each_parameter(written, tmp_path):
    """The program's option stays, and counts for parameters that the file does not know."""
    first = Training(written).go(range(2))
    mxadamax.save_states(first.trainer, tmp_path / "states")
    program = {".*": "bfloat16"}
    second = Training(program).like(first)
    mxadamax.load_states(second.trainer, tmp_path / "states")
    optimizer = second.trainer.optimizer
    assert optimizer.state_dtype == program
    assert second.dtypes() == first.dtypes() != Training(program).go([0]).dtypes()
    assert second.go(range(2, 5)).everything() == first.go(range(2, 5)).everything()
    # Once more the same, and then another file, which says something else.
    mxadamax.save_states(first.trainer, tmp_path / "states")
    mxadamax.load_states(second.like(first).trainer, tmp_path / "states")
    assert second.go(range(5, 7)).everything() == first.go(range(5, 7)).everything()
    left_out = first.dtypes().index("float32")
    for state_dtype in (program, {".*": "int8"}):
        again = copy.copy(optimizer)
        if state_dtype is not program:
            # The option that is set anew counts for new states.
            again.state_dtype = state_dtype
        made = again.create_state(left_out, nd(np.ones(3, "float32")))
        assert made[0].dtype == (np.float32 if state_dtype is program else np.int8)
    third = Training(program).go(range(2))
    mxadamax.save_states(third.trainer, tmp_path / "states")
    mxadamax.load_states(second.like(third).trainer, tmp_path / "states")
    assert second.dtypes() == third.dtypes()
    assert second.go(range(2, 5)).everything() == third.go(range(2, 5)).everything()


@pytest.mark.parametrize("program", ["float16", {".*": "float16"}], ids=str)
def test_states_that_two_dtypes_can_mean(program, tmp_path):
    """Those of a float16 weight without a master have 16 bits anyway: the file's option tells."""
    first = Training({"small": None, ".*": "float16"}, dtype="float16").go(range(3))
    mxadamax.save_states(first.trainer, tmp_path / "states")
    second = Training(program, dtype="float16").like(first)
    mxadamax.load_states(second.trainer, tmp_path / "states")
    assert second.go(range(3, 6)).everything() == first.go(range(3, 6)).everything()


@pytest.mark.parametrize(
    ("written", "loading", "message"),
    [
        ("int8", None, "written with state_dtype='int8', but the trainer's adam_ext has state_dtype=None"),
        (None, "int8", "state_dtype=None, but the trainer's adam_ext has state_dtype='int8'"),
        (None, {".*": "int8"}, "state_dtype=None, but"),
        ({".*": "int8"}, None, "state_dtype={'.*': 'int8'}, but"),
        ("float16", "bfloat16", "state_dtype='float16', but"),
        ({".*": "float16"}, "bfloat16", r"'large'\): holds a state \(float16 .*, expected \(bfloat16 .* or \(float32 "),
        ("int8", {".*": "bfloat16"}, r"'large'\): holds a state \(int8 .*, expected .*\(bfloat16 "),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(written, loading, message, tmp_path):
    first = Training(written).go(range(2))
    mxadamax.save_states(first.trainer, tmp_path / "states")
    second = Training(loading).go([0])
    before = second.everything()
    with pytest.raises(ValueError, match=message):
        mxadamax.load_states(second.trainer, tmp_path / "states")
    assert second.everything() == before
    assert second.go([1]).trainer.optimizer.num_update == 2


@pytest.mark.parametrize("state_dtype", ["bfloat16", {"other": "int8"}, only_large], ids=name_of)
def test_states_alone(state_dtype, tmp_path):
    first = Training(state_dtype).go(range(3))
    (tmp_path / "states").write_bytes(first.updater.get_states())
    second = Training(state_dtype).like(first)
    progress = {"begin_num_update": 3}
    mxadamax.load_states(second.trainer, tmp_path / "states", "adam_ext", progress)
    assert second.dtypes() == first.dtypes()
    assert second.go(range(3, 6)).everything() == first.go(range(3, 6)).everything()
    broken = io.BytesIO(first.updater.get_states())
    states = pickle.load(broken)
    states[0] = states[0][:1]
    (tmp_path / "states").write_bytes(pickle.dumps(states))
    with pytest.raises(ValueError, match=r"'large'\): holds a state \(.*, expected \("):
        mxadamax.load_states(second.trainer, tmp_path / "states", "adam_ext", progress)
