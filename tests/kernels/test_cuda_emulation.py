# SPDX-License-Identifier: Apache-2.0
"""The kernels for GPUs, compiled for the host: what they compute, and which memory they touch.

This is what is checked where there is no GPU. It cannot show how a GPU rounds or how streams are
ordered; test_cuda.py is the same cases on a GPU.
"""

from __future__ import annotations

import itertools
import sys
import types

import mxnet as mx
import numpy as np
import pytest
from bits import assert_same_or_near
from common import assert_same_bits, gradients, leaves
from cuda_cases import MANY_SIZES, OnEveryDevice
from cuda_tensors import SCALARS, Device, Tensor, on_the_host, scalars_of
from engine_scalars import handed_over
from family import FAMILY

from mxadamax import _native, _native_testing, cuda
from mxadamax.optimizers import native_step

pytestmark = pytest.mark.quick

native = pytest.importorskip(
    "mxadamax._cuda_on_host", reason="built without the CMake option MXADAMAX_CUDA_ON_HOST"
)

RULES = list(_native.rules)


KERNELS = on_the_host(native)


def test_the_rules_are_those_of_the_processor():
    assert list(native.rules) == RULES
    for rule, (states, names) in native.rules.items():
        assert states == _native.rules[rule].states
        assert set(names) <= SCALARS.keys()


@pytest.fixture
def kernels():
    return KERNELS


class TestOnTheHost(OnEveryDevice):
    """The same as on a GPU."""


def test_a_sum_that_overflows_is_not_a_gradient_that_is_not_finite():
    tensor = Tensor("sgd", 10, "float64", False, False, seed=0)
    tensor.arrays["grad"][:] = 1e200
    device = Device(KERNELS, "sgd", [tensor])
    scalars = scalars_of("sgd", device.names)
    device.update([scalars], skip_nonfinite=True)
    assert device.batch.report() == (np.inf, 0)
    tensor.update("sgd", scalars)
    tensor.compare(device.arrays()[0], "")


# The same as the optimizers on the processor, with all that MXNet's engine adds.


def copies_of(state):
    """Copies of the arrays of a state, of any depth."""
    return [array.asnumpy().ravel() for array in leaves(state)]


@pytest.mark.parametrize("member", FAMILY, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_same_bits_as_the_optimizer(member, dtype, monkeypatch):
    has_master = dtype == "float16"
    options = {"learning_rate": 0.01, "wd": 0.01, "clip_global_norm": 3.0, "ema_decay": 0.9}
    optimizer = member.create(**{**options, **member.options}, multi_precision=True)
    recorded = []
    original = native_step.update_scalars

    def record(*given):
        recorded.append(original(*given))
        return recorded[-1]

    monkeypatch.setattr(native_step, "update_scalars", record)
    shapes = [(300, 7), (5,), (20000,)]
    rng = np.random.RandomState(0)
    weights = [mx.nd.array(rng.standard_normal(s), dtype=dtype) for s in shapes]
    updater = mx.optimizer.get_updater(optimizer)
    for i, weight in enumerate(weights):
        updater.states[i] = optimizer.create_state_multi_precision(i, weight)
        updater.states_synced[i] = True
    # On the device: weight, what belongs to it, gradient.
    copies = [[w.asnumpy().ravel(), *copies_of(updater.states[i])] for i, w in enumerate(weights)]
    grads_there = [np.zeros(w.size, dtype) for w in weights]
    entries = []
    for (weight, *own), grad in zip(copies, grads_there):
        at = [array.ctypes.data for array in own]
        master = at.pop(0) if has_master else 0
        average = at.pop()
        addresses = (grad.ctypes.data, weight.ctypes.data, at, master, average)
        entries.append((dtype, weight.size, *addresses, None, None))
    batch = native.LaunchPlan(optimizer.rule, entries, 0)

    names = native.rules[optimizer.rule][1]
    for grads in gradients(shapes, dtype, 4):
        updater(list(range(len(weights))), [mx.nd.array(g, dtype=dtype) for g in grads], weights)
        for there, grad in zip(grads_there, grads):
            there[:] = grad.ravel()
        batch.update(
            rows_of(names, recorded[-1], len(weights), optimizer.arithmetic), 3.0, False, 0
        )
        assert batch.report()[0] == optimizer.gradient_norm
    for i, found in enumerate(copies):
        expected = [weights[i].asnumpy().ravel(), *copies_of(updater.states[i])]
        for a, b in zip(found, expected):
            number = np.float32 if a.dtype == np.float16 else a.dtype
            a, b = a.astype(number), b.astype(number)
            assert_same_or_near(a, b, optimizer.rule, dtype, f"tensor {i}")


def rows_of(names, scalars, count, arithmetic):
    """What MXNet's engine makes of the scalars of an optimizer."""

    def read(name, value):
        return value if name in native.optional_scalars else handed_over(arithmetic, name, value)

    table = np.zeros((count, len(names)))
    for k, name in enumerate(names):
        values = scalars.get(name, 0.0)
        for i in range(count):
            table[i, k] = read(name, values[i] if isinstance(values, list) else values)
    return table.ravel().tolist()


# How work is cut and laid out: plain arithmetic.


def test_parts_cover_every_element_once():
    sizes = [*MANY_SIZES, 2**33 + 1]
    parts = native.parts(sizes)
    covered = dict.fromkeys(range(len(sizes)), 0)
    for tensor, first, count in parts:
        assert first == covered[tensor]
        assert 0 < count <= native.tile_length
        covered[tensor] += count
    assert list(covered.values()) == sizes
    assert [p[0] for p in parts] == sorted(p[0] for p in parts)


def test_parts_of_sums_cover_every_element_once():
    sizes = [*MANY_SIZES, 2**31 + 40000, 700, 2**31 + 40000]
    for converted in ([False] * len(sizes), [k % 2 == 0 for k in range(len(sizes))]):
        parts, segments = native.sum_parts(sizes, converted)
        covered = dict.fromkeys(range(len(sizes)), 0)
        next_segment = 0
        for tensor, first, count, first_segment in parts:
            assert first == covered[tensor]
            assert first_segment == next_segment
            covered[tensor] += count
            next_segment += -(-count // (512 if converted[tensor] else 16384))
        assert list(covered.values()) == sizes
        assert segments == next_segment


@pytest.mark.parametrize("at_once", [2, 4, 8])
def test_vectors_begin_where_all_arrays_are_aligned(at_once):
    sizes = [size for size in (2, 4, 8) if size >= 16 // at_once]
    for (a, first), (b, second) in itertools.product(
        itertools.product(range(at_once), sizes), repeat=2
    ):
        arrays = [(4096 + a * first, first), (8192 + b * second, second)]
        fitting = [
            head
            for head in range(at_once)
            if all((at + head * size) % 16 == 0 for at, size in arrays)
        ]
        assert native.vector_head(arrays, at_once) == (fitting[0] if fitting else -1)


@pytest.mark.parametrize("at_once", [2, 4, 8])
def test_a_part_is_head_vectors_and_tail(at_once):
    for count, head in itertools.product(range(1, 40), range(-1, at_once)):
        found, vectors, tail = native.split(count, head, at_once)
        assert tail == found + vectors * at_once <= count
        if head < 0 or head >= count:
            assert (vectors, tail) == (0, count)
        else:
            assert found == head
            assert count - tail < at_once


def test_blocks_fill_the_device_and_are_no_more_than_the_work():
    assert native.grid_size(5, 132, 4) == 5
    assert native.grid_size(10**12, 132, 4) == 528
    assert native.grid_size(7, 132, 0) == 1


# Bad input, as the kernels see it.


def entry(
    *,
    size=8,
    grad=4096,
    weight=8192,
    states=(12288, 16384),
    master=0,
    average=0,
    rows=None,
    few=None,
):
    return ("float32", size, grad, weight, list(states), master, average, rows, few)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry(weight=4096)], "tensor 0: .* shares memory with the .* of tensor 0"),
        ([entry(weight=4096 + 28)], "weight shares memory with the gradient"),
        ([entry(states=(12288, 12288))], "state shares memory with the state of tensor 0"),
        (
            [entry(), entry(weight=20480, states=(24576, 8192))],
            "shares memory with the .* of tensor",
        ),
        ([entry(weight=8193)], "tensor 0: weight begins at address 8193, expected a multiple of 4"),
        ([entry(average=8192)], "shares memory"),
        ([entry(rows=(8192, 2, 4, True))], "row indices shares memory with the weight of tensor 0"),
        (
            [entry(rows=(32772, 2, 4, True))],
            "row indices begins at address 32772, expected a multiple of 8",
        ),
        ([entry(rows=(32768, 3, 4, True))], "holds 3 rows of 4 elements, the weight has 8"),
        ([entry(rows=(32768, 1, 3, True))], "holds 1 rows of 3 elements, the weight has 8"),
        ([entry(few=("int8", 12288))], "shares memory with the .* of tensor 0"),
        ([entry(states=(12288, 12295), few=("int8", 64))], "state shares memory with the state"),
        ([entry(few=("int8", 66))], "scales begins at address 66, expected a multiple of 4"),
        ([entry(size=65, few=("int8", 8192 - 12))], "weight shares memory with the scales"),
        ([entry(states=(12288, 12303), few=("float16", 0))], "begins at address 12303, .* of 2"),
    ],
)
def test_memory_that_is_refused(entries, message):
    with pytest.raises(native.TensorError, match=message):
        native.LaunchPlan("adamax", entries, 0)


def test_gradients_may_share_memory_and_empty_tensors_have_none():
    native.LaunchPlan("sgd", [entry(states=()), entry(weight=16384, states=())], 0)
    native.LaunchPlan("adamax", [entry(size=0, grad=0, weight=0, states=(0, 0))] * 2, 0)
    # Of bytes and pairs of bytes, next to each other.
    native.LaunchPlan("adamax", [entry(states=(12288, 12296), few=("int8", 64))], 0)
    native.LaunchPlan("adamax", [entry(states=(12288, 12304), few=("bfloat16", 0))], 0)


def test_bad_calls_of_the_module():
    with pytest.raises(ValueError, match="no rule 'adamin'"):
        native.LaunchPlan("adamin", [], 0)
    with pytest.raises(ValueError, match="the rule has 2 states"):
        native.LaunchPlan("adamax", [entry(states=())], 0)
    with pytest.raises(ValueError, match="a weight that has not 16 bits has no master"):
        native.LaunchPlan("adamax", [entry(master=64)], 0)
    for rows in ((64, -1, 4, True), (64, 1, 0, True)):
        with pytest.raises(ValueError, match="rows of less than nothing"):
            native.LaunchPlan("adamax", [entry(rows=rows)], 0)
    with pytest.raises(ValueError, match="low-precision states are float16, bfloat16 or int8"):
        native.LaunchPlan("adamax", [entry(few=("float32", 0))], 0)
    with pytest.raises(ValueError, match="dtype 'int8' is unknown"):
        native.LaunchPlan("adamax", [("int8", *entry()[1:])], 0)
    with pytest.raises(ValueError, match="got 3 scalars, expected 12 for each of 1 tensors"):
        native.LaunchPlan("adamax", [entry()], 0).update([1.0, 2.0, 3.0], None, False, 0)


# mxadamax.cuda.


@pytest.fixture
def emulated(monkeypatch):
    """`mxadamax.cuda` with the kernels that are compiled for the host."""
    monkeypatch.setitem(sys.modules, "mxadamax._cuda", native)
    return cuda


class Shown:
    """A NumPy array that shows itself as one on a GPU would."""

    def __init__(self, array, **changes):
        self.array = array
        self.__cuda_array_interface__ = {
            **array.__array_interface__,
            "version": 3,
            "stream": None,
            **changes,
        }


class Packed:
    """A NumPy array that shows itself by DLPack only."""

    def __init__(self, array, device=(2, 0)):
        self.array, self.device = array, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, stream):
        self.asked_with = stream
        return self.array.__dlpack__()


def columns(size=33, dtype="float32"):
    values = np.random.RandomState(1).standard_normal((4, size)).astype(dtype)
    values[2:] = np.abs(values[2:])
    return [np.array(x) for x in values]


def scalars(rule="adamax"):
    return {name: SCALARS[name] for name in native.rules[rule][1]}


@pytest.mark.parametrize("show", [Shown, Packed])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_update(emulated, show, dtype):
    w, g, m, u = columns(dtype=dtype)
    expected = [np.array(x) for x in (w, g, m, u)]
    _native_testing.update_numpy(
        "adamax", expected[:1], expected[1:2], [expected[2:]], scalars(), instruction_set="baseline"
    )
    arrays = [show(x) for x in (w, g, m, u)]
    emulated.update("adamax", arrays[:1], arrays[1:2], [arrays[2:]], scalars())
    for found, wanted in zip((w, g, m, u), expected):
        assert_same_bits(found, wanted)


def test_strides_of_arrays_without_gaps(emulated):
    """They may be told or not; those of a dimension of length 1 say nothing."""
    w, g, m, u = (x[:32].reshape(8, 1, 4).copy() for x in columns())
    expected = [np.array(x) for x in (w, g, m, u)]
    arrays = [Shown(x, strides=(16, 999, 4)) for x in (w, g, m, u)]
    # Scalars that have a value without being given are left out.
    given = {k: v for k, v in scalars().items() if k not in native.optional_scalars}
    emulated.update("adamax", arrays[:1], arrays[1:2], [arrays[2:]], given)
    _native_testing.update_numpy("adamax", expected[:1], expected[1:2], [expected[2:]], given)
    for found, wanted in zip((w, g, m, u), expected):
        assert_same_bits(found, wanted)


def test_bounds_may_be_infinite(emulated):
    w, g, m, u = columns()
    g[0] = 1e30
    expected = [np.array(x) for x in (w, g, m, u)]
    own = {**scalars(), "clip_gradient": np.inf}
    emulated.update("adamax", [Shown(w)], [Shown(g)], [[Shown(m), Shown(u)]], own)
    _native_testing.update_numpy("adamax", expected[:1], expected[1:2], [expected[2:]], own)
    for found, wanted in zip((w, g, m, u), expected):
        assert_same_bits(found, wanted)


def test_a_batch_is_used_again(emulated):
    w, g, m, u = columns()
    expected = [np.array(x) for x in (w, g, m, u)]
    batch = emulated.Batch("adamax", [Shown(w)], [Shown(g)], [[Shown(m), Shown(u)]], stream=1)
    for step in range(3):
        own = {**scalars(), "lr": [0.1 / (step + 1)]}
        batch.update(own, stream=types.SimpleNamespace(ptr=2))
        _native_testing.update_numpy("adamax", expected[:1], expected[1:2], [expected[2:]], own)
    assert np.isnan(batch.gradient_norm)
    for found, wanted in zip((w, g, m, u), expected):
        assert_same_bits(found, wanted)
    batch.update(scalars(), clip_global_norm=1.0, skip_nonfinite=True)
    assert batch.gradient_norm > 0
    assert batch.skipped_steps == 0


def test_a_step_after_one_that_was_skipped(emulated):
    w, g, m, u = columns()
    expected = [np.array(x) for x in (w, g, m, u)]
    batch = emulated.Batch("adamax", [Shown(w)], [Shown(g)], [[Shown(m), Shown(u)]])
    good, g[3] = g[3], np.nan
    batch.update(scalars(), skip_nonfinite=True)
    g[3] = good
    batch.update(scalars(), skip_nonfinite=True)
    assert batch.skipped_steps == 1
    _native_testing.update_numpy("adamax", expected[:1], expected[1:2], [expected[2:]], scalars())
    for found, wanted in zip((w, g, m, u), expected):
        assert_same_bits(found, wanted)


def test_masters_and_averages(emulated):
    w, _, m, u = columns()
    short, grad = w.astype("float16"), columns(dtype="float16")[1]
    average = np.zeros_like(w)
    expected = [np.array(x) for x in (w, grad.astype("float32"), m, u)]
    own = {**scalars(), "ema_weight": 1.0}
    _native_testing.update_numpy("adamax", expected[:1], expected[1:2], [expected[2:]], own)
    states = [[Shown(m), Shown(u)]]
    emulated.update(
        *("adamax", [Shown(short)], [Shown(grad)], states, own),
        masters=[Shown(w)],
        averages=[Shown(average)],
    )
    for found, wanted in zip((w, m, u, average), (expected[0], *expected[2:], expected[0])):
        assert_same_bits(found, wanted)
    assert np.array_equal(short, expected[0].astype("float16"))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("show", [Shown, Packed])
def test_rows(emulated, show, lazy):
    """Which may be others in every step, where they are."""
    weight, _, m, u = (x[:32].reshape(8, 4).copy() for x in columns())
    held, numbers = columns()[1][:8].reshape(2, 4).copy(), np.array([2, 5])
    arrays = [show(x) for x in (weight, held, m, u)]
    batch = emulated.Batch(
        *("adamax", arrays[:1], arrays[1:2], [arrays[2:]]), rows=[show(numbers)], lazy=lazy
    )
    expected = [np.array(x) for x in (weight, m, u)]
    for step in ([2, 5], [0, 7], [6, 7]):
        numbers[:] = step
        batch.update(scalars())
        whole = np.zeros_like(weight)
        whole[step] = held
        before = [np.array(x) for x in expected]
        _native_testing.update_numpy("adamax", expected[:1], [whole], [expected[1:]], scalars())
        for now, then in zip(expected, before if lazy else []):
            left = np.setdiff1d(np.arange(8), step)
            now[left] = then[left]
        for found, wanted in zip((weight, m, u), expected):
            assert_same_bits(found, wanted)
    numbers[:] = [5, 2]
    good, held[0, 0] = held[0, 0], np.nan
    with pytest.raises(ValueError, match="tensor 0: a row_sparse gradient names row 2 not in asc"):
        batch.update(scalars(), skip_nonfinite=True)
    for found, wanted in zip((weight, m, u), expected):
        assert_same_bits(found, wanted)
    # Of which nothing is left in the step after it.
    numbers[:], held[0, 0] = [2, 5], good
    batch.update(scalars(), skip_nonfinite=True)
    assert batch.skipped_steps == 0
    assert not np.array_equal(weight[2], expected[0][2])


@pytest.mark.parametrize("options", [{}, {"lazy": True}, {"skip_nonfinite": True}], ids=str)
def test_update_takes_the_options_of_a_batch(emulated, options):
    """Rows that no gradient has change unless lazily updated; a NaN does unless skipped."""
    weight, _, m, u = (x[:32].reshape(8, 4).copy() for x in columns())
    held, rows = columns()[1][:8].reshape(2, 4).copy(), np.array([2, 5])
    if "lazy" not in options:
        held[1, 1] = np.nan
    before = np.array(weight)
    states = [[Shown(m), Shown(u)]]
    emulated.update(
        *("adamax", [Shown(weight)], [Shown(held)], states, scalars()),
        rows=[Shown(rows)],
        **options,
    )
    changed = (weight != before).any(axis=1)
    if "skip_nonfinite" in options:
        assert not changed.any()
    else:
        assert list(changed) == [k in rows or "lazy" not in options for k in range(8)]
        assert np.isnan(weight).any() == ("lazy" not in options)


def test_update_with_int8_states(emulated):
    w, g, _, _ = columns(100)
    states = [np.zeros(100, kind) for kind in ("int8", "int8")]
    scales = np.zeros((2, 2), "float32")
    own = {**scalars("adam"), "step": 1, "rng_stream": 1000}
    expected = [np.array(x) for x in (w, *states, scales)]
    emulated.update(
        *("adam", [Shown(w)], [Shown(g)], [[Shown(state) for state in states]], own),
        state_dtype="int8",
        scales=[Shown(scales)],
    )
    _native_testing.update_numpy(
        *("adam", expected[:1], [g], [expected[1:3]], own),
        state_dtype="int8",
        scales=expected[3:],
    )
    for found, wanted in zip((w, *states, scales), expected):
        assert np.array_equal(found.view(np.uint8), wanted.view(np.uint8))
    assert scales.any()


@pytest.mark.parametrize("state_dtype", ["float16", "int8"])
@pytest.mark.parametrize("show", [Shown, Packed])
def test_low_precision_states(emulated, show, state_dtype):
    w, g, _, _ = columns(100)
    kinds = {"float16": ("float16", "float16"), "int8": ("int8", "int8")}[state_dtype]
    states = [np.zeros(100, kind) for kind in kinds]
    scales = np.zeros((2, 2), "float32")
    expected = [np.array(x) for x in (w, *states, scales)]
    options = {"scales": [show(scales)]} if state_dtype == "int8" else {}
    batch = emulated.Batch(
        *("adam", [show(w)], [show(g)], [[show(state) for state in states]]),
        state_dtype=state_dtype,
        **options,
    )
    for step in range(3):
        own = {**scalars("adam"), "step": 1 + step, "rng_stream": 5}
        batch.update(own)
        _native_testing.update_numpy(
            *("adam", expected[:1], [g], [expected[1:3]], own),
            state_dtype=state_dtype,
            scales=expected[3:],
        )
        for found, wanted in zip((w, *states, scales), expected):
            assert np.array_equal(found.view(np.uint8), wanted.view(np.uint8))
    assert all(state.any() for state in states)
    assert scales.any() == (state_dtype == "int8")


@pytest.mark.parametrize(
    ("rule", "kinds", "options", "message"),
    [
        ("adam", ("int8", "uint8"), {"state_dtype": "int8"}, "tensor 0: state 1 is uint8, .* int8"),
        ("adam", ("float32",) * 2, {"state_dtype": "float16"}, "state 0 is float32, .* float16"),
        ("adam", ("int8", "int8"), {"state_dtype": "int8", "scales": None}, "scales is NoneType"),
        ("adam", ("float16",) * 2, {"state_dtype": "float16"}, "scales are given, which"),
        ("adam", ("int8", "int8"), {"state_dtype": "int4"}, "'int8' or None, got 'int4'"),
        ("sgd", (), {"state_dtype": "int8"}, "must be None with rule 'sgd', got 'int8'"),
        (
            "rmsprop_centered",
            ("float16",) * 4,
            {"state_dtype": "float16"},
            "must be None with rule",
        ),
    ],
)
def test_states_that_are_refused(emulated, rule, kinds, options, message):
    w, g, _, _ = columns(100)
    states = [[Shown(np.zeros(100, kind)) for kind in kinds]]
    options = {"scales": [Shown(np.zeros((2, 2), "float32"))], **options}
    if "state 0" in message:
        del options["scales"]
    with pytest.raises((TypeError, ValueError), match=message):
        emulated.Batch(rule, [Shown(w)], [Shown(g)], states, **options)
    with pytest.raises(ValueError, match=r"scales has shape \(1, 2\), expected \(2, 2\)"):
        emulated.Batch(
            *(
                "adam",
                [Shown(w)],
                [Shown(g)],
                [[Shown(np.zeros(100, k)) for k in ("int8", "int8")]],
            ),
            state_dtype="int8",
            scales=[Shown(np.zeros((1, 2), "float32"))],
        )


def test_rows_of_a_weight_without_elements(emulated):
    empty = [Shown(np.zeros((5, 0), "float32")) for _ in range(3)]
    grad, numbers = Shown(np.zeros((2, 0), "float32")), Shown(np.array([7, 7]))
    emulated.update("adamax", empty[:1], [grad], [empty[1:]], scalars(), rows=[numbers])


def test_dlpack_is_asked_for_the_stream(emulated):
    arrays = [Packed(x) for x in columns()]
    for stream, asked in ((None, 1), (7, 7), (types.SimpleNamespace(cuda_stream=9), 9)):
        emulated.update("adamax", arrays[:1], arrays[1:2], [arrays[2:]], scalars(), stream=stream)
        assert [array.asked_with for array in arrays] == [asked] * 4


def test_streams_on_which_arrays_are_made_come_first(emulated, monkeypatch):
    ordered = []
    ours = types.SimpleNamespace(**vars(native))
    ours.order_streams = lambda *streams: ordered.append(streams)
    monkeypatch.setitem(sys.modules, "mxadamax._cuda", ours)
    w, g, m, u = columns()
    shown = [Shown(w, stream=1), Shown(g, stream=5), Shown(m, stream=7), Shown(u)]
    emulated.Batch("adamax", shown[:1], shown[1:2], [shown[2:]], stream=7)
    assert sorted(ordered) == [(1, 7, 0), (5, 7, 0)]


def refused(emulated, error, message, place=None, by=None, **options):
    """Fail unless an update with one array replaced is refused, with nothing written."""
    arrays = [Shown(x) for x in columns()]
    before = [shown.array.tobytes() for shown in arrays]
    given = list(arrays)
    if place is not None:
        given[place] = by
    rule, own = options.pop("rule", "adamax"), options.pop("scalars", scalars())
    with pytest.raises(error, match=message):
        emulated.update(rule, given[:1], given[1:2], [given[2:]], own, **options)
    assert [shown.array.tobytes() for shown in arrays] == before


@pytest.mark.parametrize(
    ("place", "by", "error", "message"),
    [
        (0, None, TypeError, "tensor 0: weight is NoneType, expected an array with __cuda"),
        (1, np.zeros(33, "float32"), ValueError, "tensor 0: gradient is on the CPU"),
        (1, Packed(np.zeros(33, "float32"), (10, 0)), ValueError, "gradient is on a ROCm GPU"),
        (1, Packed(np.zeros(33, "float32"), (99, 0)), ValueError, "a device of DLPack's kind 99"),
        (1, Shown(np.zeros(32, "float32")), ValueError, r"shape \(32,\), expected \(33,\)"),
        (1, Shown(np.zeros(33)), TypeError, "gradient is float64, expected float32"),
        (
            1,
            Packed(np.zeros(33, "int32")),
            TypeError,
            "gradient is of DLPack's type 0 with 32 bits",
        ),
        (0, Shown(np.zeros(33, "int32")), TypeError, "one of float32, float64, float16"),
        (2, Shown(np.zeros(33, "int8")), TypeError, "state 0 is int8, expected float32"),
        (
            3,
            Shown(np.zeros(32, "float32")),
            ValueError,
            r"state 1 has shape \(32,\), expected \(33,",
        ),
        (3, Shown(np.zeros(33, "float16")), TypeError, "state 1 is float16, expected float32"),
        (1, Shown(np.zeros(66, "float32")[::2]), ValueError, "gradient is not C-contiguous"),
        (1, Packed(np.zeros(66, "float32")[::2]), ValueError, "gradient is not C-contiguous"),
        (1, Shown(np.zeros(33, ">f4")), TypeError, "bytes in the other order"),
        (1, Shown(np.zeros(33, "float32"), mask=1), ValueError, "gradient has a mask"),
        (0, Shown(np.zeros(33, "float32"), data=(64, True)), ValueError, "weight is read-only"),
        (0, Shown(np.zeros(33, "float32"), typestr="<V2"), TypeError, "weight is Shown, expected"),
    ],
)
def test_arrays_that_are_refused(emulated, place, by, error, message):
    refused(emulated, error, message, place, by)


@pytest.mark.parametrize(
    ("dtype", "option", "array", "message"),
    [
        ("float16", "masters", np.zeros(33), "tensor 0: master is float64, expected float32"),
        ("float16", "masters", np.zeros(32, "float32"), r"tensor 0: master has shape \(32,\)"),
        ("float16", "averages", np.zeros(33), "tensor 0: average is float64, expected float32"),
        ("float16", "averages", np.zeros(32, "float32"), r"tensor 0: average has shape \(32,\)"),
        ("float64", "averages", np.zeros(33, "float32"), "average is float32, expected float64"),
    ],
)
def test_masters_and_averages_that_are_refused(emulated, dtype, option, array, message):
    weight, grad = (Shown(x) for x in columns(dtype=dtype)[:2])
    states = [Shown(x) for x in columns(dtype="float32" if option == "masters" else dtype)[2:]]
    with pytest.raises((TypeError, ValueError), match=message):
        emulated.Batch("adamax", [weight], [grad], [states], **{option: [Shown(array)]})


@pytest.mark.parametrize("name", ["states", "masters", "averages", "rows", "scales"])
def test_one_for_each_weight(emulated, name):
    w, g, m, u = (Shown(x) for x in columns())
    given = {"states": [[m, u]], "state_dtype": "int8", name: [None, None]}
    with pytest.raises(ValueError, match=f"got 2 {name} for 1 weights"):
        emulated.Batch("adam", [w], [g], **given)


def test_a_read_only_gradient_is_as_good_as_any(emulated):
    w, g, m, u = columns()
    g.flags.writeable = False
    emulated.update("adamax", [Shown(w)], [Shown(g)], [[Shown(m), Shown(u)]], scalars())


def test_arguments_that_are_refused(emulated):
    refused(
        emulated, ValueError, "there is no rule 'adamin'; there are adamax, adam", rule="adamin"
    )
    refused(emulated, ValueError, "tensor 0: 2 states, rule sgd has 0", rule="sgd")
    without = {name: x for name, x in scalars().items() if name != "lr"}
    refused(emulated, ValueError, "rule adamax needs the scalar 'lr'", scalars=without)
    for value, error, message in (
        (np.nan, ValueError, "'lr' is nan, expected a finite number"),
        (np.inf, ValueError, "'lr' is inf, expected a finite number"),
        ("fast", TypeError, "'lr' must be numbers, got 'fast'"),
        ([0.1, 0.2], ValueError, r"'lr' has shape \(2,\), expected a number or 1 of them"),
    ):
        refused(emulated, error, message, scalars={**scalars(), "lr": value})
    for value in (-1, 1.5, np.nan, 2**64, "first", [0, None]):
        message = r"scalar 'step' must be integers in \[0, 2\*\*64\), got "
        refused(emulated, TypeError, message, scalars={**scalars(), "step": value})
    refused(emulated, ValueError, "no scalar 'LR'", scalars={**scalars(), "LR": 1.0})
    refused(
        emulated,
        ValueError,
        "'clip_gradient' is nan",
        scalars={**scalars(), "clip_gradient": np.nan},
    )
    for bound in (0.0, -1.0, np.nan):
        refused(emulated, ValueError, "clip_global_norm must be in", clip_global_norm=bound)
    refused(emulated, TypeError, "stream must be", stream="main")
    refused(emulated, TypeError, "stream must be", stream=-1)
    refused(
        emulated,
        TypeError,
        "only float16 and bfloat16 take a master",
        masters=[Shown(columns()[0])],
    )
    refused(emulated, ValueError, "got 2 averages for 1 weights", averages=[None, None])
    for rows, error, message in (
        (np.zeros(3, "int32"), TypeError, "tensor 0: rows is int32, expected int64"),
        (
            np.zeros((3, 1), "int64"),
            ValueError,
            r"rows have shape \(3, 1\), expected one dimension",
        ),
        (
            np.arange(34),
            ValueError,
            r"rows have shape \(34,\), expected one dimension of at most 33",
        ),
        (np.arange(3), ValueError, r"tensor 0: gradient has shape \(33,\), expected \(3,\)"),
    ):
        refused(emulated, error, message, rows=[Shown(rows)])
    scalar = [Shown(np.ones((), "float32")) for _ in range(4)]
    with pytest.raises(ValueError, match="rows are given, and the weight has no dimension"):
        emulated.Batch("adamax", scalar[:1], scalar[1:2], [scalar[2:]], rows=[Shown(np.arange(1))])
    arrays = [Shown(x) for x in columns()]
    with pytest.raises(ValueError, match="got 0 gradients for 1 weights"):
        emulated.Batch("adamax", arrays[:1], [], [arrays[2:]])


def test_without_the_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "mxadamax._cuda", None)
    with pytest.raises(ImportError, match="built without CUDA kernels: install nvcc"):
        cuda.update("adamax", [], [], [], {})
