# SPDX-License-Identifier: Apache-2.0
"""16-bit weights: conversion of every number, and updates with and without master weights."""

import mxnet as mx
import numpy as np
import pytest
from common import assert_same_bits, leaves
from family import PORTABLE_FAMILY as FAMILY
from family import built_in
from half_reference import ALL, TYPES, decoded, encoded
from instruction_sets import instruction_sets

import mxadamax
from mxadamax import _native_testing
from mxadamax._mxnet.compatibility import gluon_arrays
from mxadamax.dtypes import BFLOAT16

OPTIONS = {"wd": 0.013, "clip_gradient": 0.37, "rescale_grad": 1 / 3, "learning_rate": 0.0123}
SHAPES = [(1000,), (3, 7, 5), (513,), (1,), (20000,)]

types = pytest.mark.parametrize("name", TYPES)
members = pytest.mark.parametrize("member", FAMILY, ids=str)


@instruction_sets
@types
def test_every_number(name, instruction_set):
    found = _native_testing.decode(ALL, name, instruction_set)
    assert_same_bits(found, decoded(ALL, name))
    back = _native_testing.encode(found, name, instruction_set)
    nan = np.isnan(found)
    assert np.array_equal(back[~nan], ALL[~nan])
    assert np.all(np.isnan(decoded(back[nan], name)))


@instruction_sets
@types
def test_rounding(name, instruction_set):
    """Half way between neighbours, just beside, anywhere, too small, too large."""
    finite = decoded(ALL, name)
    finite = np.sort(finite[np.isfinite(finite)].astype(np.float64))
    with np.errstate(over="ignore"):
        middle = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
        ends = np.array(
            [65504, 65519.996, 65520, 65536, 1e30, 3.3895314e38, 3.396e38, 3.4e38, 1e-45]
        )
        values = np.concatenate(
            [
                middle,
                np.nextafter(middle, np.float32(np.inf)),
                np.nextafter(middle, np.float32(-np.inf)),
                *(sign * ends.astype(np.float32) for sign in (1, -1)),
                np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32),
                np.random.RandomState(0)
                .randint(0, 2**32, 10**5, dtype=np.uint64)
                .astype(np.uint32)
                .view(np.float32),
            ]
        )
    found, expected = _native_testing.encode(values, name, instruction_set), encoded(values, name)
    nan = np.isnan(values)
    assert np.array_equal(found[~nan], expected[~nan])
    assert np.all(np.isnan(decoded(found[nan], name)))


def test_unknown_types_are_refused():
    with pytest.raises(ValueError, match="type 'float8' must be float16 or bfloat16"):
        _native_testing.decode(ALL, "float8", "baseline")


def bits_of(array):
    found = array.asnumpy()
    return found.view(np.uint16) if found.dtype != np.float32 else found


def start(name, seed=0):
    """Weights of this type, as MXNet's arrays, and the float32 numbers that they hold."""
    rng = np.random.RandomState(seed)
    arrays = [mx.nd.array(rng.standard_normal(shape)).astype(TYPES[name]) for shape in SHAPES]
    return arrays, [array.astype("float32") for array in arrays]


def short_gradients(name, steps, seed=1):
    rng = np.random.RandomState(seed)
    for _ in range(steps):
        yield [
            mx.nd.array(rng.standard_normal(s) * 10.0 ** rng.uniform(-4, 1, s)).astype(TYPES[name])
            for s in SHAPES
        ]


@members
@types
def test_multi_precision(member, name):
    """The master weight goes as a float32 weight would; the weight is it, rounded."""
    ours = member.create(**{**OPTIONS, **member.options}, multi_precision=True)
    plain = member.create(**{**OPTIONS, **member.options})
    weights, masters = start(name)
    indices = list(range(len(SHAPES)))
    states = [ours.create_state_multi_precision(k, w) for k, w in enumerate(weights)]
    plain_states = [plain.create_state(k, w) for k, w in enumerate(masters)]
    for grads in short_gradients(name, 12):
        before = [bits_of(grad).copy() for grad in grads]
        ours.update_multi_precision(indices, weights, grads, states)
        plain.fused_step(indices, masters, [g.astype("float32") for g in grads], plain_states)
        for k, weight in enumerate(weights):
            master, state = states[k]
            assert_same_bits(master.asnumpy(), masters[k].asnumpy(), f"master {k}")
            for a, b in zip(leaves(state), leaves(plain_states[k])):
                assert_same_bits(a.asnumpy(), b.asnumpy(), f"state of {k}")
            expected = encoded(masters[k].asnumpy().ravel(), name).reshape(SHAPES[k])
            assert np.array_equal(bits_of(weight), expected)
            assert np.array_equal(bits_of(grads[k]), before[k])


@members
@types
def test_without_master_weights(member, name):
    """Computed in float32 from what is stored, and rounded once."""
    if member.name == "dcasgd_ext" and not member.options:
        pytest.skip("has None in its state: test_python_built_ins.py")
    ours = member.create(**{**OPTIONS, **member.options})
    plain = member.create(**{**OPTIONS, **member.options})
    weights, _ = start(name)
    indices = list(range(len(SHAPES)))
    states = [ours.create_state_multi_precision(k, w) for k, w in enumerate(weights)]
    for grads in short_gradients(name, 12):
        wide = [w.astype("float32") for w in weights]
        wide_states = [tuple(x.astype("float32") for x in leaves(state)) for state in states]
        given = [s[0] if len(s) == 1 else s or None for s in wide_states]
        ours.update_multi_precision(indices, weights, grads, states)
        plain.fused_step(indices, wide, [g.astype("float32") for g in grads], given)
        for k, weight in enumerate(weights):
            arrays = zip((weight, *leaves(states[k])), (wide[k], *wide_states[k]))
            for stored, expected in arrays:
                assert stored.dtype == TYPES[name]
                values = encoded(expected.asnumpy().ravel(), name).reshape(SHAPES[k])
                assert np.array_equal(bits_of(stored), values), f"{k}"


@pytest.mark.parametrize("multi_precision", [True, False])
@members
def test_readable_definition_equals_the_kernel(member, multi_precision):
    results = []
    for fused in (True, False):
        options = {**OPTIONS, **member.options, "multi_precision": multi_precision}
        optimizer = member.create(**options, use_fused_step=fused)
        weights, _ = start("float16")
        indices = list(range(len(SHAPES)))
        states = [optimizer.create_state_multi_precision(k, w) for k, w in enumerate(weights)]
        for grads in short_gradients("float16", 5):
            optimizer.update_multi_precision(indices, weights, grads, states)
        results.append([bits_of(weight) for weight in weights])
    for a, b in zip(*results):
        assert np.array_equal(a, b)


def test_all_types_in_one_call():
    rng = np.random.RandomState(0)
    dtypes = ["float32", "float64", np.float16, BFLOAT16] * 5
    together = mxadamax.Adamax(multi_precision=True)
    alone = mxadamax.Adamax(multi_precision=True)
    values = [rng.standard_normal(rng.randint(0, 3000)) for _ in dtypes]
    runs = []
    with mx.util.np_shape(True):
        for optimizer in (together, alone):
            weights = [
                mx.np.array(v, dtype="float64").as_nd_ndarray().astype(d)
                for v, d in zip(values, dtypes)
            ]
            states = [optimizer.create_state_multi_precision(k, w) for k, w in enumerate(weights)]
            runs.append((weights, states))
        indices = list(range(len(dtypes)))
        for _ in range(3):
            grads = [w.copy() for w in runs[0][0]]
            together.fused_step(indices, runs[0][0], grads, runs[0][1])
            for k in indices:
                alone.fused_step([k], [runs[1][0][k]], [grads[k]], [runs[1][1][k]])
        for a, b in zip(runs[0][0], runs[1][0]):
            assert a.asnumpy().tobytes() == b.asnumpy().tobytes()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda w: None, "state is not a tuple of a master weight and a state"),
        (lambda w: (w.astype("float32"),), "state is not a tuple of a master weight and a state"),
        (lambda w: (w, (w.copy(), w.copy())), "master weight has dtype float16, expected float32"),
        (
            lambda w: (w.astype("float32"), (w.copy(), w.copy())),
            "state 0 has dtype float16, expected float32",
        ),
        (lambda w: (w.astype("float32"), None), "state is None, expected a tuple of 2 NDArrays"),
        (
            lambda w: (mx.nd.zeros((2,)), (mx.nd.zeros((3,)), mx.nd.zeros((3,)))),
            r"master weight has shape \(2,\), weight has \(3,\)",
        ),
    ],
)
def test_foreign_states_are_refused(make, message):
    weight = mx.nd.ones((3,), dtype="float16")
    optimizer = mxadamax.Adamax(multi_precision=True)
    with pytest.raises(ValueError, match="^adamax_ext: parameter 0: " + message):
        optimizer.fused_step([0], [weight], [weight.copy()], [make(weight)])
    assert np.all(weight.asnumpy() == 1)


def test_a_master_weight_of_two_parameters_is_refused():
    weights = [mx.nd.ones((3,), dtype="float16") for _ in range(2)]
    optimizer = mxadamax.Adamax(multi_precision=True)
    states = [optimizer.create_state_multi_precision(k, w) for k, w in enumerate(weights)]
    states[1] = (states[0][0], states[1][1])
    with pytest.raises(
        ValueError, match="parameter 1: master weight shares memory with the master"
    ):
        optimizer.fused_step([0, 1], weights, [w.copy() for w in weights], states)


def test_epsilon_is_applied_in_float32():
    """In float16 1e-8 would be 0, and 0 / 0 NaN."""
    for multi_precision in (False, True):
        optimizer = mxadamax.Adamax(multi_precision=multi_precision)
        weight = mx.nd.ones((3,), dtype="float16")
        state = optimizer.create_state_multi_precision(0, weight)
        optimizer.fused_step([0], [weight], [mx.nd.zeros((3,), dtype="float16")], [state])
        assert np.all(weight.asnumpy() == 1)


def test_trainer():
    """An elementwise net in float16, which MXNet can run on a processor, against its own AdaMax."""
    losses = {}
    options = {"learning_rate": 0.05, "multi_precision": True}
    for name, optimizer in (
        ("adamax_ext", mxadamax.Adamax(**options)),
        ("adamax", built_in("adamax", **options)),
    ):
        rng = np.random.RandomState(0)
        scale = mx.gluon.Parameter("scale", shape=(50,), dtype="float16")
        scale.initialize(mx.init.One())
        trainer = mx.gluon.Trainer([scale], optimizer)
        losses[name] = []
        for _ in range(30):
            x = gluon_arrays.array(rng.standard_normal((8, 50)), dtype="float16")
            with mx.autograd.record():
                loss = ((x * scale.data() - 3 * x) ** 2).mean()
            loss.backward()
            trainer.step(1)
            losses[name].append(loss.asnumpy().item())
    assert losses["adamax_ext"] == losses["adamax"]
    assert losses["adamax_ext"][-1] < losses["adamax_ext"][0] / 2


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16], ids=["float32", "bfloat16"])
def test_evaluation_between_the_steps(dtype):
    """A convolution leaves its weight in a layout of oneDNN's, whenever the engine gets to it."""
    rng = np.random.RandomState(0)
    start, *grads = (
        mx.nd.array(rng.standard_normal((32, 16, 3, 3))).astype(dtype) for _ in range(41)
    )
    data = mx.nd.array(rng.standard_normal((4, 16, 8, 8))).astype(dtype)
    weights = []
    for evaluates in (True, False):
        weight, optimizer = start.copy(), mxadamax.Adamax(learning_rate=0.1, wd=0.01)
        state = optimizer.create_state_multi_precision(0, weight)
        for t, grad in enumerate(grads):
            for _ in range(2 * evaluates):
                mx.nd.Convolution(data, weight, no_bias=True, num_filter=32, kernel=(3, 3))
            if t % 2:
                mx.nd.waitall()
            optimizer.update_multi_precision([0], [weight], [grad], [state])
        weights.append(weight)
    assert np.array_equal(*map(bits_of, weights))
    assert not np.array_equal(bits_of(weights[0]), bits_of(start))
