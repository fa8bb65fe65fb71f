# SPDX-License-Identifier: Apache-2.0
"""The dtype of each parameter's states: one for all, by patterns of names, or by a function."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from common import Run, leaves, nd, parameters_of
from mxnet import autograd, gluon

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1, gluon_arrays, seed_all
from mxadamax.dtypes import BFLOAT16
from mxadamax.optimizers import native_step, state_dtypes
from mxadamax.optimizers.state_layout import arrays_of

pytestmark = pytest.mark.quick

DTYPES = ("float16", "bfloat16", "int8")


def on_store_here():
    """Arguments of a Trainer that updates on a key-value store, also with one device."""
    return {"kvstore": mx.kv.create("local"), "update_on_kvstore": True}


def dtype_name(array):
    return "bfloat16" if array.dtype == BFLOAT16 else np.dtype(array.dtype).name


def first_dtype(state):
    """That of a state's first array, which tells how the rule's own are stored."""
    return dtype_name(next(arrays_of(state)))


# The parameters of a model, by where they are in it: the embedding and one layer are large.
LARGE = {"0.weight", "1.weight"}
SMALL = {"1.bias", "2.gamma", "2.beta", "3.weight", "3.bias"}


class Training:
    """An embedding, dense layers and batch normalization in a Trainer."""

    def __init__(self, options, name="adam_ext", sparse=False, trainer=gluon.Trainer, **kwargs):
        seed_all(0)
        self.net = gluon.nn.HybridSequential()
        self.net.add(
            gluon.nn.Embedding(100, 64, sparse_grad=sparse),
            gluon.nn.Dense(128, in_units=64, flatten=False),
            gluon.nn.BatchNorm(in_channels=128, axis=2),
            gluon.nn.Dense(10, in_units=128, flatten=False),
        )
        self.net.initialize(mx.init.Xavier())
        self.parameters = {
            name: parameter
            for name, parameter in parameters_of(self.net).items()
            if parameter.grad_req != "null"
        }
        names = sorted(self.parameters)
        options = {"learning_rate": 0.01, "param_idx2name": dict(enumerate(names)), **options}
        trained = [self.parameters[name] for name in names]
        self.trainer = trainer(trained, name, options, **kwargs)

    def go(self, steps, factor=1.0):
        for step in steps if isinstance(steps, range) else range(steps):
            words = np.random.RandomState(step).randint(0, 100, (8, 5))
            with autograd.record():
                loss = (self.net(gluon_arrays.array(words)) ** 2).sum() * factor
            loss.backward()
            self.trainer.step(8)
        return self

    def states(self) -> dict[str, Any]:
        on_store = self.trainer._update_on_kvstore
        updater = self.trainer._kvstore._updater if on_store else self.trainer._updaters[0]
        return {name: updater.states[k] for k, name in enumerate(sorted(self.parameters))}

    def dtypes(self):
        return {name: first_dtype(state) for name, state in self.states().items()}

    def everything(self):
        """The bits of weights and states."""
        found = {name: [p.data().asnumpy().tobytes()] for name, p in self.parameters.items()}
        for name, state in self.states().items():
            found[name] += [array.asnumpy().tobytes() for array in arrays_of(state)]
        return found


# What is chosen


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dtype_leaves_small_arrays_alone(dtype):
    found = Training({"state_dtype": dtype}).go(2).dtypes()
    assert found == {**dict.fromkeys(LARGE, dtype), **dict.fromkeys(SMALL, "float32")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_array(dtype):
    optimizer = mxadamax.Adam(state_dtype=dtype)
    found = [
        first_dtype(optimizer.create_state(0, mx.nd.ones(shape)))
        for shape in ((4095,), (4096,), (64, 64), (63, 65))
    ]
    assert found == ["float32", dtype, dtype, "float32"]


@pytest.mark.skipif(not IS_MXNET_1, reason="Gluon 2 has no sparse gradients")
@pytest.mark.parametrize("on_store", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dtype_leaves_embeddings_with_sparse_gradients_alone(dtype, on_store):
    options = {"state_dtype": dtype, "aggregate_num": 1 if on_store else np.inf}
    kwargs = on_store_here() if on_store else {}
    training = Training(options, sparse=True, **kwargs).go(3)
    assert bool(training.trainer._update_on_kvstore) == on_store
    found = training.dtypes()
    assert (found["0.weight"], found["1.weight"]) == ("float32", dtype)
    # A dict decides alone.
    every = {"state_dtype": {".*": "bfloat16"}}
    assert set(Training(every, sparse=True).go(3).dtypes().values()) == {"bfloat16"}


def parameter_with_sparse_gradients(shape):
    found = gluon.Parameter("w", shape=shape)
    found.initialize()
    # Gluon 2 has none.
    found._grad_stype = "row_sparse"
    return found


def test_weights_that_are_sparse_or_whose_gradients_are():
    parameter = parameter_with_sparse_gradients((100, 64))
    weight = mx.nd.ones((100, 64))
    optimizer = mxadamax.Adam(state_dtype="int8", param_dict={0: parameter})
    assert first_dtype(optimizer.create_state(0, weight)) == "float32"
    assert first_dtype(optimizer.create_state(1, weight)) == "int8"
    assert first_dtype(optimizer.create_state(1, weight.tostype("row_sparse"))) == "float32"


def test_a_sparse_gradient_that_nobody_knew_of():
    """With 16 bits as before; in 8 bits refused, before anything is written."""
    weight = mx.nd.ones((100, 64))
    grad = mx.nd.sparse.row_sparse_array((np.ones((2, 64), "float32"), [1, 5]), shape=(100, 64))
    for dtype in DTYPES:
        updater = mx.optimizer.get_updater(mxadamax.Adam(state_dtype=dtype))
        if dtype == "int8":
            with pytest.raises(ValueError, match="parameter 0: gradient is row_sparse, expected"):
                updater(0, grad, weight)
            continue
        updater(0, grad, weight.copy())
        assert first_dtype(updater.states[0]) == dtype
    assert np.all(weight.asnumpy() == 1)


@pytest.mark.parametrize("weight_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_arrays_of_16_bits(dtype, weight_dtype):
    """Without masters their states have 16 bits in any case, and are rounded worse without."""
    weight = mx.nd.cast(
        mx.nd.ones((7,)), dtype=BFLOAT16 if weight_dtype == "bfloat16" else "float16"
    )
    state = mxadamax.Adam(state_dtype=dtype).create_state_multi_precision(0, weight)
    assert first_dtype(state) == dtype
    options = {"state_dtype": dtype, "multi_precision": True}
    _, own = mxadamax.Adam(**options).create_state_multi_precision(0, weight)
    assert first_dtype(own) == "float32"


def test_patterns():
    """As in MXNet's `Mixed`: `re.match`, and the first one counts."""
    names = ["embed_weight", "embed_bias", "dense0_weight", "gamma"]
    optimizer = mxadamax.Adam(
        param_idx2name=dict(enumerate(names)),
        state_dtype={"embed.*bias": None, "embed": "int8", ".*weight": "bfloat16", "amma": "int8"},
    )
    weight = mx.nd.ones((3,))
    found = [first_dtype(optimizer.create_state(k, weight)) for k in range(4)]
    assert found == ["int8", "float32", "bfloat16", "float32"]


def test_names_are_those_that_a_program_gives():
    """Of indices first, then those of Gluon; a parameter without one has its number."""
    parameter = gluon.Parameter("inner", shape=(3,))
    parameter.initialize()
    weight = mx.nd.ones((3,))

    def asked(index, **options):
        names = []
        optimizer = mxadamax.Adam(state_dtype=lambda name, shape: names.append(name), **options)
        optimizer.create_state(index, weight)
        return names

    assert asked(0, param_dict={0: parameter}) == ["inner"]
    assert asked(0, param_dict={0: parameter}, param_idx2name={0: "outer"}) == ["outer"]
    assert asked(0, param_idx2name={0: "outer"}) == ["outer"]
    assert asked(7) == ["7"]
    assert asked("dense0_weight") == ["dense0_weight"]


def by_shape(name, shape):
    return "int8" if len(shape) == 2 and shape[0] == 100 else None


def test_a_function():
    found = Training({"state_dtype": by_shape}).go(2).dtypes()
    assert found.pop("0.weight") == "int8" and set(found.values()) == {"float32"}


def test_patterns_of_names_in_a_model():
    """Small arrays as well: a dict decides alone."""
    options = {"state_dtype": {"0": "int8", r"\d.weight": "float16", "2.gamma": "bfloat16"}}
    found = Training(options).go(2).dtypes()
    expected = {"0.weight": "int8", "1.weight": "float16", "3.weight": "float16"}
    expected["2.gamma"] = "bfloat16"
    assert found == {**dict.fromkeys(LARGE | SMALL, "float32"), **expected}


# Steps in several parts

SHAPES = [(70, 64), (33,), (64, 80), (9, 5), (0,)]
MIXED = {"0": "int8", "1": "float16", "2": "bfloat16", "3": None}


def arrays(step):
    rng = np.random.RandomState(step)
    return [rng.standard_normal(shape).astype("float32") for shape in SHAPES]


def run_of(state_dtype, name="adam_ext", **options):
    options = {"learning_rate": 0.01, "wd": 0.1, "state_seed": 3, **options}
    return Run(mx.optimizer.create(name, state_dtype=state_dtype, **options), arrays(99))


def held(run, index):
    state = run.updater.states[index]
    return [array.asnumpy().tobytes() for array in (run.weights[index], *leaves(state))]


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}, {"decoupled_wd": True}], ids=str)
@pytest.mark.parametrize("name", ["adam_ext", "adamax_ext", "lamb_ext", "nadam_ext"])
def test_each_parameter_has_the_bits_of_a_step_of_one_dtype(name, options):
    mixed = run_of(MIXED, name, **options)
    alike = {d: run_of({".*": d} if d else None, name, **options) for d in (None, *DTYPES)}
    for step in range(5):
        for run in (mixed, *alike.values()):
            run.step(arrays(step))
    for index in range(len(SHAPES)):
        assert held(mixed, index) == held(alike[MIXED.get(str(index))], index)
    assert mixed.optimizer._index_update_count == dict.fromkeys(range(len(SHAPES)), 5)


def test_learning_rates_and_multipliers_in_parts():
    def make(state_dtype):
        run = run_of(state_dtype, "lion_ext")
        run.optimizer.set_lr_mult({0: 0.5, 2: 2.0})
        run.optimizer.set_wd_mult({1: 0.0})
        return run

    mixed, alike = make({"0": "int8"}), make(None)
    for run in (mixed, alike):
        for step in range(3):
            run.step(arrays(step))
    for index in (1, 2, 3):
        assert held(mixed, index) == held(alike, index)
    change = [run.weights[0].asnumpy() - arrays(99)[0] for run in (mixed, alike)]
    np.testing.assert_allclose(change[0], change[1], atol=0.011)


@pytest.mark.parametrize("bound", [0.5, 1e6])
def test_the_global_norm_in_parts(bound):
    """Clipping is scaling: of all gradients by the norm of all."""
    clipped, scaled = run_of(MIXED, clip_global_norm=bound), run_of(MIXED)
    for step in range(4):
        grads = arrays(step)
        norm = np.sqrt(sum(np.square(g.astype("float64")).sum() for g in grads))
        clipped.step(grads)
        scaled.optimizer.rescale_grad = min(1.0, bound / norm)
        scaled.step(grads)
        assert clipped.optimizer.gradient_norm == pytest.approx(norm, rel=1e-14)
        scaled.optimizer.rescale_grad = 1.0
    for index in range(len(SHAPES)):
        a, b = (run.weights[index].asnumpy() for run in (clipped, scaled))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_long_gradient_is_looked_at_in_pieces():
    long = np.linspace(-1, 1, 2**20 + 5, dtype="float32")
    optimizer = mxadamax.Adam(state_dtype={"0": "int8"}, clip_global_norm=1.0, skip_nonfinite=True)
    run = Run(optimizer, [np.ones_like(long), np.ones(3, "float32")])
    run.step([long, np.ones(3, "float32")])
    norm = np.sqrt(np.square(long.astype("float64")).sum() + 3)
    assert optimizer.gradient_norm == pytest.approx(norm, rel=1e-12)
    before = [held(run, index) for index in (0, 1)]
    long[-1] = np.nan
    run.step([long, np.ones(3, "float32")])
    assert optimizer.skipped_steps == 1
    assert [held(run, index) for index in (0, 1)] == before


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", range(4))
def test_skipped_steps_in_parts(where, bad):
    """Whichever part holds what is not finite, no part is updated, and no step is counted."""
    options = {"skip_nonfinite": True, "ema_decay": 0.9}
    disturbed, clean = run_of(MIXED, **options), run_of(MIXED, **options)
    for step in range(4):
        for run in (disturbed, clean):
            run.step(arrays(step))
        if step == 1:
            grads = arrays(50)
            grads[where].reshape(-1)[-1] = bad
            disturbed.step(grads)
    assert (disturbed.optimizer.skipped_steps, clean.optimizer.skipped_steps) == (1, 0)
    for index in range(len(SHAPES)):
        assert held(disturbed, index) == held(clean, index)


@pytest.mark.parametrize("trainer", [gluon.Trainer, mxadamax.Trainer])
def test_both_trainers_and_a_key_value_store(trainer):
    options = {"state_dtype": "bfloat16", "aggregate_num": 1}
    expected = Training({"state_dtype": "bfloat16"}).go(4).everything()
    on_store = Training(options, trainer=trainer, **on_store_here())
    assert Training({"state_dtype": "bfloat16"}, trainer=trainer).go(4).everything() == expected
    assert on_store.go(4).everything() == expected
    assert on_store.trainer._update_on_kvstore


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_master_weights(dtype):
    """A master has a float32 state if it is small, and what the pattern says with a dict."""
    for state_dtype, small in (("int8", "float32"), ({".*": "int8"}, "int8")):
        optimizer = mxadamax.Adam(state_dtype=state_dtype, multi_precision=True, ema_decay=0.5)
        updater = mx.optimizer.get_updater(optimizer)
        shapes = [(64, 64), (5,)]
        kind = BFLOAT16 if dtype == "bfloat16" else dtype
        weights = [mx.nd.cast(mx.nd.ones(shape), dtype=kind) for shape in shapes]
        for _ in range(3):
            updater([0, 1], [w.copy() for w in weights], weights)
        found = []
        for k, shape in enumerate(shapes):
            master, (own, average) = updater.states[k]
            assert (dtype_name(master), dtype_name(average)) == ("float32", "float32")
            assert master.shape == average.shape == shape
            assert np.all(master.asnumpy() < 1)
            found.append(first_dtype(own))
        assert found == ["int8", small]


def test_a_step_without_state_dtype_looks_at_nothing(monkeypatch):
    def refuse(*given):
        raise AssertionError("was called")

    for name in ("dtypes_of_step", "rows_of", "clip_coefficient"):
        monkeypatch.setattr(native_step, name, refuse)
    Training({"clip_global_norm": 1.0}, "adamax_ext").go(2)
    Training({}, "adamax_ext").go(2)


def test_a_state_is_looked_at_once(monkeypatch):
    looked = []
    original = state_dtypes._dtype_of
    monkeypatch.setattr(
        state_dtypes, "_dtype_of", lambda *given: looked.append(given[1]) or original(*given)
    )
    run = run_of(MIXED)
    for step in range(3):
        run.step(arrays(step))
    assert sorted(looked) == list(range(len(SHAPES)))
    # And each part keeps what it has found, as does the check of all.
    assert len(run.optimizer._part_caches) == 5
    # Not so another state of the same parameter.
    run.updater.states[1] = run.optimizer.create_state(1, run.weights[1])
    run.step(arrays(3))
    assert looked[len(SHAPES) :] == [1]


def test_devices_have_states_of_their_own(monkeypatch):
    looked = []
    original = state_dtypes._dtype_of
    monkeypatch.setattr(
        state_dtypes, "_dtype_of", lambda *given: looked.append(given[1]) or original(*given)
    )

    def weights_on(devices):
        parameters = [gluon.Parameter(f"w{k}", shape=shape) for k, shape in enumerate(SHAPES[:4])]
        for parameter in parameters:
            parameter.initialize(mx.init.One(), ctx=devices)
        options = {"state_dtype": {"w0": "int8", "w1": "float16"}}
        trainer = gluon.Trainer(parameters, "adam_ext", options, kvstore=None)
        for step in range(3):
            with autograd.record():
                losses = [
                    (p.data(d) * gluon_arrays.array(g, ctx=d)).sum()
                    for d in devices
                    for p, g in zip(parameters, arrays(step))
                ]
            autograd.backward(losses)
            trainer.step(1)
        return [[p.data(d).asnumpy().tobytes() for p in parameters] for d in devices]

    one, two = weights_on([mx.cpu(0)]), weights_on([mx.cpu(0), mx.cpu(1)])
    assert two == [one[0], one[0]]
    # Each state once in three steps: those of one device, then those of two.
    assert sorted(looked) == sorted(3 * [0, 1, 2, 3])


# Refusals

PATTERNS = "state_dtype must have regular expressions of parameter names as keys, got "
NAMES = "['float16', 'bfloat16', 'int8'] or None"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("adam_ext", {".*": "float8"}, f"state_dtype must be one of {NAMES}, got 'float8' for '.*'"),
        ("adam_ext", {"a": None, "b": ["int8"]}, f"state_dtype must be one of {NAMES}, got ['int8'] for 'b'"),
        ("adam_ext", {5: "int8"}, PATTERNS + "5 (a int)"),
        ("adam_ext", {"(": "int8"}, PATTERNS + "'(' (missing ), unterminated subpattern at position 0)"),
        ("adam_ext", 8, f"state_dtype must be one of {NAMES}, a dict of them by pattern, or a function, got 8"),
        ("adam_ext", np.int8, f"state_dtype must be one of {NAMES}, a dict of them by pattern, or a function, got <class 'numpy.int8'>"),
        ("ftml_ext", {"a": None, ".*": "bfloat16"}, "state_dtype must be None with rule '{rule}', got 'bfloat16' for '.*'"),
        ("ftml_ext", {"a": None, ".*": "int8"}, "state_dtype must be None with rule '{rule}', got 'int8' for '.*'"),
    ],
)  # fmt: skip
def test_values_are_refused(name, value, message):
    rule = mx.optimizer.create(name).rule
    message = f"{name}: {message.replace('{rule}', rule)}"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        mx.optimizer.create(name, state_dtype=value)
    optimizer = mx.optimizer.create(name)
    weight = mx.nd.ones((3,))
    state = optimizer.create_state(0, weight)
    optimizer.state_dtype = value
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        optimizer.update([0], [weight], [weight.copy()], [state])


def in_int8(name, shape):
    return "int8"


def test_without_the_fused_step():
    for value in (by_shape, {".*": "int8"}):
        message = "adam_ext: state_dtype must be None with use_fused_step=False, got "
        with pytest.raises(ValueError, match=message):
            mxadamax.Adam(state_dtype=value, use_fused_step=False)
    mxadamax.Adam(state_dtype={".*": None}, use_fused_step=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (in_int8, r"state_dtype must be None with rule 'ftml', got 'int8' from in_int8\('1.bias', \(128,\)\)"),
        (lambda name, shape: 7, r"state_dtype must be one of .* or None, got 7 from <lambda>\('1.bias', \(128,\)\)"),
    ],
    ids=["rule", "value"],
)  # fmt: skip
def test_what_a_function_returns_is_refused(value, message):
    """When it is asked, by the parameter's name."""
    names = {0: "0.weight", 1: "1.bias"}
    options = {"param_idx2name": names, "numerics": "portable"}
    optimizer = mxadamax.FTML(
        state_dtype=lambda name, shape: value(name, shape) if name == "1.bias" else None, **options
    )
    optimizer.create_state(0, mx.nd.ones((3,)))
    optimizer = mxadamax.FTML(state_dtype=value, **options)
    with pytest.raises(ValueError, match=rf"^ftml_ext: parameter 1 \('1.bias'\): {message}$"):
        optimizer.create_state(1, mx.nd.ones((128,)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_refusal_on_a_key_value_store_shows():
    """MXNet drops the exception: the next use of the weight raises it."""
    training = Training(
        {"state_dtype": in_int8, "aggregate_num": 1},
        "ftml_ext",
        **on_store_here(),
    )
    with pytest.raises(mx.MXNetError, match="ftml_ext: parameter 0 .*must be None with rule"):
        training.go(1)
        mx.nd.waitall()


def test_errors_name_the_parameter_whichever_part_it_is_in():
    """Nothing is written, nor counted."""
    run = run_of(MIXED)
    run.step(arrays(0))
    states = run.updater.states
    for index, make in {
        1: lambda: tuple(a.astype("float32") for a in states[1]),
        2: lambda: (states[2][0], states[2][0]),
        3: lambda: states[3][:1],
    }.items():
        before, right = [held(run, k) for k in range(len(SHAPES))], states[index]
        states[index] = make()
        with pytest.raises(ValueError, match=f"^adam_ext: parameter {index}: "):
            run.step(arrays(1))
        states[index] = right
        assert [held(run, k) for k in range(len(SHAPES))] == before
        assert set(run.optimizer._index_update_count.values()) == {1}
    run.step(arrays(1))


def test_an_array_in_two_parts_is_refused():
    run = run_of({"0": "int8", "1": None})
    weight = mx.nd.ones((3,))
    states = [run.optimizer.create_state(k, weight) for k in (0, 1)]
    with pytest.raises(ValueError, match="parameter 1: weight shares memory with the weight of"):
        run.optimizer.update([0, 1], [weight, weight], [weight.copy(), weight.copy()], states)


def test_scalars_of_all_parts_are_checked_before_any_is_updated():
    run = run_of(MIXED)
    run.step(arrays(0))
    before = [held(run, k) for k in range(len(SHAPES))]
    run.optimizer.set_lr_mult({3: np.finfo("float64").max})
    run.optimizer.lr = 1e10
    with pytest.raises(ValueError, match="^adam_ext: parameter 3: "):
        run.step(arrays(1))
    assert [held(run, k) for k in range(len(SHAPES))] == before


def test_changes_of_a_dict_are_not_seen():
    given = {".*": "int8"}
    optimizer = mxadamax.Adam(state_dtype=given)
    given[".*"] = "float8"
    assert optimizer.state_dtype == {".*": "int8"}
    optimizer.check_hyperparameters()


# Pickles


@pytest.mark.parametrize("value", [{"0": "int8", ".*": "bfloat16"}, by_shape], ids=["dict", "f"])
def test_pickles_keep_the_option(value):
    optimizer = mxadamax.Adam(state_dtype=value)
    assert pickle.loads(pickle.dumps(optimizer)).state_dtype == value


def test_a_server_chooses_as_the_worker():
    """By the names and gradients of parameters, which are not there."""
    training = Training({"state_dtype": {"0": "int8", ".*weight": "float16"}}).go(1)
    training.parameters["1.weight"]._grad_stype = "row_sparse"
    sent = pickle.loads(pickle.dumps(training.trainer.optimizer))
    # Once more on the way, as from a worker's file.
    sent = pickle.loads(pickle.dumps(sent))
    sent.idx2name = {}
    shapes = [training.parameters[name].shape for name in sorted(training.parameters)]

    def found():
        made = (sent.create_state(k, mx.nd.ones(shape)) for k, shape in enumerate(shapes))
        return dict(zip(sorted(training.parameters), map(first_dtype, made)))

    assert found() == training.dtypes()
    sent.state_dtype = "bfloat16"
    large = {"0.weight": "bfloat16"}
    assert found() == {**dict.fromkeys(training.parameters, "float32"), **large}


def test_a_function_that_pickle_cannot_store(tmp_path):
    """Says so where it is pickled; all else works."""
    training = Training({"state_dtype": lambda name, shape: by_shape(name, shape)}).go(1)
    message = r"^adam_ext: state_dtype is a function that pickle cannot store \(.*<lambda>.*\)"
    for save in (
        lambda: mxadamax.save_states(training.trainer, tmp_path / "states"),
        lambda: training.trainer.save_states(str(tmp_path / "states")),
        lambda: pickle.dumps(training.trainer.optimizer),
    ):
        with pytest.raises(ValueError, match=message):
            save()
    named = Training({"state_dtype": by_shape}).go(3)
    mxadamax.save_states(named.trainer, tmp_path / "states")
    mxadamax.load_states(training.trainer, tmp_path / "states")
    for name, parameter in training.parameters.items():
        parameter.set_data(named.parameters[name].data())
    steps = range(3, 6)
    for copied in (copy.copy, copy.deepcopy):
        optimizer = training.trainer.optimizer
        assert copied(optimizer).state_dtype is optimizer.state_dtype
    assert training.go(steps).everything() == named.go(steps).everything()


# Module


class ModuleTraining:
    """Two layers in a Module of MXNet 1, of which only the first weight is large."""

    def __init__(self, state_dtype, on_store, start=None):
        seed_all(0)
        data = mx.sym.var("data")
        hidden = mx.sym.FullyConnected(data, num_hidden=64, name="hidden")
        last = mx.sym.FullyConnected(hidden, num_hidden=10, name="last")
        self.module = mx.mod.Module(mx.sym.SoftmaxOutput(last, name="softmax"))
        self.module.bind([("data", (8, 64))], [("softmax_label", (8,))])
        self.module.init_params(mx.init.Xavier())
        if start is not None:
            self.module.set_params(*start)
        options = {"state_dtype": state_dtype, "aggregate_num": 1}
        store = mx.kv.create("local") if on_store else None
        self.module.init_optimizer(store, "adam_ext", options)
        assert self.module._update_on_kvstore == on_store

    @property
    def updater(self):
        on_store = self.module._update_on_kvstore
        return self.module._kvstore._updater if on_store else self.module._updater

    def go(self, steps):
        for step in steps:
            rng = np.random.RandomState(step)
            data, label = rng.rand(8, 64).astype("f"), rng.randint(0, 10, 8).astype("f")
            self.module.forward_backward(mx.io.DataBatch([nd(data)], [nd(label)]))
            self.module.update()
        return {name: a.asnumpy().tobytes() for name, a in self.module.get_params()[0].items()}

    def dtypes(self):
        return sorted(map(first_dtype, self.updater.states.values()))


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 has no Module")
@pytest.mark.parametrize("on_store", [False, True])
@pytest.mark.parametrize("dump", [False, True])
@pytest.mark.parametrize(
    ("state_dtype", "expected"),
    [("bfloat16", ["bfloat16"] + 3 * ["float32"]), ({"hidden": "int8"}, 2 * ["float32", "int8"])],
    ids=str,
)
def test_module(state_dtype, expected, on_store, dump):
    """By the names of its symbol, with updates on a key-value store as well."""
    module = ModuleTraining(state_dtype, on_store)
    module.go(range(3))
    assert module.dtypes() == sorted(expected)
    again = ModuleTraining(state_dtype, on_store, start=module.module.get_params())
    again.updater.set_states(module.updater.get_states(dump_optimizer=dump))
    if not dump:
        again.updater.optimizer.begin_num_update = again.updater.optimizer.num_update = 3
    assert again.go(range(3, 6)) == module.go(range(3, 6))
    assert again.dtypes() == module.dtypes()
