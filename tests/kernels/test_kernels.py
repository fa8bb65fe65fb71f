# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels, without MXNet: every length, every misalignment, every instruction set.

What they are compared with is the plainest of them on small pieces; that it computes what it should
is for test_oracle.py and test_parity.py to say.
"""

import itertools
import mmap
import os

import numpy as np
import pytest
from common import SPECIAL, assert_same_bits, next_scalars, run_python
from cuda_tensors import scalars_of as some_scalars
from family import FAMILY, PORTABLE_FAMILY
from instruction_sets import instruction_sets

from mxadamax import _native, _native_testing

OPTIONS = {"learning_rate": 0.0123, "rescale_grad": 0.37, "clip_gradient": 0.5, "wd": 0.013}
SENTINEL = -12345.678


def scalars_of(member, updates=3, **options):
    optimizer = member.create(**{**OPTIONS, **member.options, **options})
    for _ in range(updates):
        scalars = next_scalars(optimizer)
    return optimizer.rule, {k: x[0] if isinstance(x, list) else x for k, x in scalars.items()}


OF_FAMILY = dict(map(scalars_of, reversed((*FAMILY, *PORTABLE_FAMILY))))
# The installed MXNet has not all of those that are named after one.
RULES = {
    name: OF_FAMILY.get(name) or some_scalars(name, rule.scalars)
    for name, rule in _native.rules.items()
}


def arrays_of(rule, values):
    """Weight, gradient and states from as many columns as any rule needs."""
    w, g, *states = values
    return w, g, states[: _native.rules[rule].states]


def update(weights, grads, states, scalars=RULES["adamax"], rule="adamax", **options):
    _native_testing.update_numpy(rule, weights, grads, states, scalars, **options)


def in_pieces(rule, weight, grad, states, scalars, length):
    """The plainest kernel on no more than `length` elements at a time; works on copies.

    On all at once for a rule that sums over a tensor.
    """
    if _native.rules[rule].sums:
        length = max(weight.size, 1)
    w, g, *s = (np.array(x) for x in (weight, grad, *states))
    pieces = [slice(k, k + length) for k in range(0, w.size, length)]
    update(
        [w[p] for p in pieces],
        [g[p] for p in pieces],
        [[x[p] for x in s] for p in pieces],
        scalars,
        rule,
        instruction_set="baseline",
        threads=1,
    )
    return [w, g, *s]


dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
rules = pytest.mark.parametrize("rule", RULES)


def random_values(size, dtype, seed=0, columns=2 + 4):
    """Weight and gradient of either sign, states like second moments."""
    values = np.random.RandomState(seed).standard_normal((columns, size)).astype(dtype)
    values[2:] = np.abs(values[2:])
    return values


class Guarded:
    """An array at any offset from a 64-byte boundary, with sentinels on both sides."""

    margin = 32

    def __init__(self, values, offset):
        item = values.dtype.itemsize
        raw = np.zeros((values.size + 2 * self.margin + 2 * 64 // item) * item, np.uint8)
        start = -raw.ctypes.data % 64
        self.all = raw[start : start + (values.size + 2 * self.margin + offset) * item].view(
            values.dtype
        )
        self.all[:] = SENTINEL
        first = self.margin + offset
        self.array = self.all[first : first + values.size]
        self.array[:] = values
        self.outside = np.r_[0:first, first + values.size : self.all.size]

    def check(self):
        assert np.all(self.all[self.outside] == self.all.dtype.type(SENTINEL))


@rules
@dtypes
def test_every_length_at_every_misalignment(rule, dtype):
    scalars = RULES[rule]
    widest = 64 // np.dtype(dtype).itemsize
    for length in range(3 * widest + 1):
        w, g, states = arrays_of(rule, random_values(length, dtype, seed=length))
        expected = in_pieces(rule, w, g, states, scalars, 1)
        for instruction_set, offset in itertools.product(_native.instruction_sets, range(widest)):
            # Each array at another misalignment, so that no two streams share one.
            guarded = [
                Guarded(v, (offset * k + k) % widest) for k, v in enumerate((w, g, *states), 1)
            ]
            arrays = [guard.array for guard in guarded]
            update(
                [arrays[0]],
                [arrays[1]],
                [arrays[2:]],
                scalars,
                rule,
                instruction_set=instruction_set,
            )
            for guard, array, wanted in zip(guarded, arrays, expected):
                guard.check()
                assert_same_bits(array, wanted)


# Chunks are 16384 places long, and tensors take multiples of 64.
MANY_SIZES = (
    [0, 16384, 0, 1, 16383, 64, 0, 63, 65, 0, 0]
    + [3 * 16384 + 5, 16320, 1, 1, 1]
    + list(range(200))
    + [100003, 0]
)


@rules
@dtypes
def test_many_tensors_in_chunks(rule, dtype):
    """Chunks that hold many tensors, tensors of many chunks, and teams of any size: the same bits."""
    rate = next(name for name in ("lr", "d_factor", "half_lr", "rho") if name in RULES[rule])
    per_tensor = {
        rate: [0.001 * (1 + k % 7) for k in range(len(MANY_SIZES))],
        "wd": [0.01 * (k % 3) for k in range(len(MANY_SIZES))],
    }
    scalars = {**RULES[rule], **per_tensor}
    start = [random_values(size, dtype, seed=k) for k, size in enumerate(MANY_SIZES)]
    expected = []
    for k, values in enumerate(start):
        own = {**scalars, **{name: x[k] for name, x in per_tensor.items()}}
        expected.append(in_pieces(rule, *arrays_of(rule, values), own, 1000))
    # Norms of these have as many parts as there are threads.
    counts = (1,) if "_alone" in rule else (0, 1, 2, 3, 7)
    for instruction_set, threads in itertools.product(_native.instruction_sets, counts):
        tensors = [arrays_of(rule, values.copy()) for values in start]
        weights, grads, states = zip(*tensors)
        update(
            weights, grads, states, scalars, rule, instruction_set=instruction_set, threads=threads
        )
        for (w, g, s), wanted in zip(tensors, expected):
            for array, values in zip((w, g, *s), wanted):
                assert_same_bits(array, values)


@rules
@dtypes
def test_special_values(rule, dtype):
    few = np.array([*SPECIAL, 1e38, -1.0], dtype)
    columns = 2 + _native.rules[rule].states
    values = [np.ascontiguousarray(x.ravel()) for x in np.meshgrid(*[few] * columns)]
    w, g, *states = values
    expected = in_pieces(rule, w, g, states, RULES[rule], 1)
    for instruction_set in _native.instruction_sets:
        w, g, states = arrays_of(rule, [x.copy() for x in values])
        update([w], [g], [states], RULES[rule], rule, instruction_set=instruction_set)
        for array, wanted in zip((w, g, *states), expected):
            assert_same_bits(array, wanted)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux's memfd_create")
def test_more_than_2_to_the_31_elements():
    """The far end of an array that no 32-bit index reaches is updated, once, and nothing else is.

    The arrays are 8.6 GB of addresses each; all but their last piece are one piece of memory, again
    and again, so that the machine needs none of that.
    """
    piece = 1 << 24
    pieces = (2**31 * 4) // piece
    count = pieces * piece // 4 + 1000

    def large(values):
        shared, last = os.memfd_create("shared"), os.memfd_create("last")
        os.ftruncate(shared, piece)
        os.ftruncate(last, piece)
        area = mmap.mmap(-1, (pieces + 1) * piece, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = np.frombuffer(area, np.float32)
        for k in range(pieces + 1):
            map_fixed(whole.ctypes.data + k * piece, piece, last if k == pieces else shared)
        os.close(shared)
        os.close(last)
        array = whole[:count]
        array[-1000:] = values
        return array

    values = random_values(1000, np.float32, columns=4)
    expected = in_pieces("adamax", values[0], values[1], values[2:], RULES["adamax"], 1000)
    w, g, *states = arrays = [large(v) for v in values]
    update([w], [g], [states])
    for array, wanted in zip(arrays, expected):
        assert_same_bits(array[-1000:], wanted)
    beyond = piece // 4 * (pieces + 1)
    assert not np.any(np.frombuffer(w.base, np.float32)[count:beyond])


def map_fixed(address, length, descriptor):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    map_shared, map_fixed_flag, read_write = 0x01, 0x10, 0x3
    found = libc.mmap(address, length, read_write, map_shared | map_fixed_flag, descriptor, 0)
    assert found == address, os.strerror(ctypes.get_errno())


@instruction_sets
def test_instruction_set_is_forced_by_the_environment(instruction_set):
    code = "from mxadamax import _native; print(_native.instruction_set)"
    found = run_python(code, MXADAMAX_INSTRUCTION_SET=instruction_set)
    assert found.split() == [instruction_set]


def test_a_variable_without_a_value_forces_nothing():
    found = run_python(
        "from mxadamax import _native\nprint(_native.instruction_set)", MXADAMAX_INSTRUCTION_SET=""
    )
    assert found == f"{_native.instruction_sets[-1]}\n"


def test_the_best_instruction_set_is_taken():
    assert os.environ.get("MXADAMAX_INSTRUCTION_SET") or (
        _native.instruction_set == _native.instruction_sets[-1]
    )


def test_unknown_instruction_set_is_refused():
    message = "MXADAMAX_INSTRUCTION_SET: instruction set 'sse9' is not available here"
    with pytest.raises(AssertionError, match=message):
        run_python("import mxadamax", MXADAMAX_INSTRUCTION_SET="sse9")
    with pytest.raises(ValueError, match="instruction set 'sse9' is not available here; available"):
        update([], [], [], instruction_set="sse9")


def test_bad_states_low_precision_are_refused():
    w, g = random_values(100, "float32", columns=2)

    def refused(message, rule="adam", weight=w, kinds=("int8", "uint8"), **options):
        states = [[np.zeros(100, kind) for kind in kinds]]
        options = {"state_dtype": "int8", "scales": [np.zeros((2, 2), "float32")], **options}
        with pytest.raises(ValueError, match=message):
            update([weight], [g.astype(weight.dtype)], states, RULES[rule], rule=rule, **options)

    refused("the rule keeps no states in int8", rule="sgd", kinds=())
    refused(
        "the rule keeps no states in float16",
        rule="rmsprop_centered",
        kinds=("float16",) * 4,
        state_dtype="float16",
    )
    refused("weights and scales differ in length", scales=None)
    refused("weights and scales differ in length", scales=[])
    refused("weight must be float32", weight=w.astype("float64"))
    refused("state must be C-contiguous and of 100 bytes", kinds=("int8", "float32"))
    refused("state must be C-contiguous and of 200 bytes", state_dtype="bfloat16")
    refused("scales must be C-contiguous and of 16 bytes", scales=[np.zeros((1, 2), "float32")])
    refused(
        "scales must be C-contiguous and of 16 bytes", scales=[np.zeros((2, 4), "float32")[:, ::2]]
    )


def test_bad_calls_are_refused():
    w, g, *states = random_values(4, "float32", columns=4)
    weights, grads, states, scalars = [w], [g], [states], RULES["adamax"]
    with pytest.raises(ValueError, match="no rule 'adamin'"):
        _native_testing.update_numpy("adamin", weights, grads, states, scalars)
    with pytest.raises(ValueError, match="differ in length"):
        update(weights, [], states, scalars)
    with pytest.raises(ValueError, match="differ in length"):
        update(weights, grads, [], scalars)
    with pytest.raises(_native.ParameterError, match="gradient must be C-contiguous"):
        update(weights, [np.zeros(8, "float32")[::2]], states, scalars)
    with pytest.raises(_native.ParameterError, match="gradient must be C-contiguous"):
        update(weights, [np.zeros(5, "float32")], states, scalars)
    with pytest.raises(_native.ParameterError, match="gradient must be C-contiguous"):
        update(weights, [np.zeros((4, 1), "float32")], states, scalars)
    with pytest.raises(_native.ParameterError, match="weight must be C-contiguous"):
        update([np.zeros(8, "float32")[::2]], grads, states, scalars)
    with pytest.raises(_native.ParameterError, match="state must be C-contiguous"):
        update(weights, grads, [[np.zeros(4), np.zeros(4)]], scalars)
    with pytest.raises(_native.ParameterError, match="the rule has 2 states"):
        update(weights, grads, [[np.zeros(4, "float32")]], scalars)
    with pytest.raises(_native.ParameterError, match="float32 or float64"):
        update([np.zeros(4, "int32")], grads, states, scalars)
    with pytest.raises(ValueError, match="got one that it does not have"):
        update(weights, grads, states, {**scalars, "LR": 1.0})
    with pytest.raises(ValueError, match="needs the scalar 'lr'"):
        update(weights, grads, states, {("LR" if k == "lr" else k): v for k, v in scalars.items()})
    with pytest.raises(ValueError, match="'lr' has 2 values for 1 tensors"):
        update(weights, grads, states, {**scalars, "lr": [1.0, 2.0]})
    read_only = weights[0].copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        update([read_only], grads, states, scalars)
