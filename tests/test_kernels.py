"""The compiled kernels, without MXNet: every length, every misalignment, every instruction set."""

import mmap
import os
import subprocess
import sys

import numpy as np
import oracle
import pytest
from support import assert_same_bits

from mxadamax import _native

ALL_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
HYPERPARAMETERS = {"lr": 0.0123, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
GRADIENT = {"rescale_grad": 0.37, "clip_gradient": 0.5, "wd": 0.013}
SENTINEL = -12345.678


def rule_scalars(t=1, **changes):
    given = {**GRADIENT, **HYPERPARAMETERS, **changes}
    lr = given.pop("lr") / (1 - given["beta1"] ** t)
    return {**given, "lr": lr, "one_minus_beta1": 1 - given["beta1"]}


def in_numpy(weight, grad, states, scalars):
    """The rule's operations in NumPy's arithmetic of the same type, one by one."""
    s = {name: weight.dtype.type(value) for name, value in scalars.items()}
    m, u = states
    g = np.clip(grad * s["rescale_grad"], -s["clip_gradient"], s["clip_gradient"])
    g = g + s["wd"] * weight
    m = s["beta1"] * m + s["one_minus_beta1"] * g
    u = np.maximum(s["beta2"] * u, np.abs(g))
    return weight - s["lr"] * (m / (u + s["epsilon"])), (m, u)


def update(weights, grads, states, scalars, **options):
    _native.update_numpy("adamax", weights, grads, states, scalars, **options)


def available(name):
    return pytest.param(
        name,
        marks=pytest.mark.skipif(
            name not in _native.instruction_sets, reason=f"this processor has no {name}"
        ),
    )


instruction_sets = pytest.mark.parametrize(
    "instruction_set", [available(name) for name in ALL_INSTRUCTION_SETS]
)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


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


@instruction_sets
@dtypes
def test_every_length_at_every_misalignment(instruction_set, dtype):
    rng = np.random.RandomState(0)
    scalars = rule_scalars(t=3)
    widest = 64 // np.dtype(dtype).itemsize
    for length in range(3 * widest + 1):
        values = rng.standard_normal((4, length)).astype(dtype)
        values[3] = np.abs(values[3])
        w, g, m, u = values
        expected_w, (expected_m, expected_u) = in_numpy(w, g, (m, u), scalars)
        for offset in range(widest):
            # Each array at another misalignment, so that no two streams share one.
            guarded = [Guarded(v, (offset * k + k) % widest) for k, v in enumerate(values, 1)]
            a = [guard.array for guard in guarded]
            update([a[0]], [a[1]], [[a[2], a[3]]], scalars, instruction_set=instruction_set)
            for guard in guarded:
                guard.check()
            assert_same_bits(a[0], expected_w)
            assert_same_bits(a[1], g)
            assert_same_bits(a[2], expected_m)
            assert_same_bits(a[3], expected_u)


def start(sizes, dtype, seed=0):
    rng = np.random.RandomState(seed)
    return [[rng.standard_normal(size).astype(dtype) for size in sizes] for _ in range(2)] + [
        [[np.zeros(size, dtype), np.zeros(size, dtype)] for size in sizes]
    ]


# Chunks are 16384 places long, and tensors take multiples of 64.
MANY_SIZES = (
    [0, 16384, 0, 1, 16383, 64, 0, 63, 65, 0, 0]
    + [3 * 16384 + 5, 16320, 1, 1, 1]
    + list(range(200))
    + [100003, 0]
)


@instruction_sets
@dtypes
def test_many_tensors_in_chunks(instruction_set, dtype):
    """Chunks that hold many tensors, tensors of many chunks, and teams of any size: the same bits."""
    per_tensor = {
        "lr": [0.001 * (1 + k % 7) for k in range(len(MANY_SIZES))],
        "wd": [0.01 * (k % 3) for k in range(len(MANY_SIZES))],
    }
    scalars = {**rule_scalars(), **per_tensor}
    weights, grads, states = start(MANY_SIZES, dtype)
    expected = []
    for k, (w, g, s) in enumerate(zip(weights, grads, states)):
        own = {n: v[k] if isinstance(v, list) else v for n, v in scalars.items()}
        expected.append(in_numpy(w, g, s, own))
    for threads in (0, 1, 2, 3, 7):
        weights, grads, states = start(MANY_SIZES, dtype)
        update(weights, grads, states, scalars, instruction_set=instruction_set, threads=threads)
        for w, s, (expected_w, expected_s) in zip(weights, states, expected):
            assert_same_bits(w, expected_w)
            assert_same_bits(s[0], expected_s[0])
            assert_same_bits(s[1], expected_s[1])


@instruction_sets
@dtypes
def test_special_values(instruction_set, dtype):
    special = np.array(
        [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e-310, 1e38, -1e38, 1.0], dtype
    )
    w, g, m, u = (np.ascontiguousarray(x.ravel()) for x in np.meshgrid(*[special] * 4))
    scalars = rule_scalars()
    with np.errstate(all="ignore"):
        expected_w, (expected_m, expected_u) = in_numpy(w, g, (m, u), scalars)
    update([w], [g], [[m, u]], scalars, instruction_set=instruction_set)
    assert_same_bits(w, expected_w)
    assert_same_bits(m, expected_m)
    # NumPy's maximum of zeros of either sign is not fixed; a norm of -0.0 can only come from outside.
    assert_same_bits(np.abs(u), np.abs(expected_u))


@instruction_sets
@dtypes
def test_against_the_oracle(dtype, instruction_set):
    """Each of 200 steps within the rounding error that its operations must have."""
    rng = np.random.RandomState(7)
    unit = np.finfo(dtype).eps / 2
    weights, _, states = start([4099], dtype)
    for t in range(1, 201):
        grad = (rng.standard_normal(4099) * 10.0 ** rng.uniform(-4, 1, 4099)).astype(dtype)
        before = [x.copy() for x in (weights[0], *states[0])]
        update(weights, [grad], states, rule_scalars(t), instruction_set=instruction_set)
        prepared = oracle.prepared_gradient(grad, before[0], unit, **GRADIENT)
        expected, bounds = oracle.adamax(
            *prepared, before[0], before[1:], t, unit, **HYPERPARAMETERS
        )
        for name, actual, value, bound in zip("wmu", (weights[0], *states[0]), expected, bounds):
            # Second-order terms, and the oracle's own rounding.
            assert np.all(abs(actual - value) <= bound * (1 + 1e-3)), f"{name} in step {t}"


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

    rng = np.random.RandomState(0)
    values = rng.standard_normal((4, 1000)).astype(np.float32)
    values[3] = np.abs(values[3])
    w, g, m, u = (large(v) for v in values)
    expected_w, (expected_m, expected_u) = in_numpy(
        values[0], values[1], (values[2], values[3]), rule_scalars()
    )
    update([w], [g], [[m, u]], rule_scalars())
    assert_same_bits(w[-1000:], expected_w)
    assert_same_bits(m[-1000:], expected_m)
    assert_same_bits(u[-1000:], expected_u)
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


def in_new_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@instruction_sets
def test_instruction_set_is_forced_by_the_environment(instruction_set):
    code = "from mxadamax import _native; print(_native.instruction_set)"
    done = in_new_process(code, MXADAMAX_INSTRUCTION_SET=instruction_set)
    assert done.stdout.split() == [instruction_set], done.stderr


def test_the_best_instruction_set_is_taken():
    assert os.environ.get("MXADAMAX_INSTRUCTION_SET") or (
        _native.instruction_set == _native.instruction_sets[-1]
    )


def test_unknown_instruction_set_is_refused():
    done = in_new_process("import mxadamax", MXADAMAX_INSTRUCTION_SET="sse9")
    assert done.returncode != 0
    assert "MXADAMAX_INSTRUCTION_SET: instruction set 'sse9' is not available here" in done.stderr
    with pytest.raises(ValueError, match="instruction set 'sse9' is not available here; available"):
        update([], [], [], rule_scalars(), instruction_set="sse9")


def test_bad_calls_are_refused():
    weights, grads, states = start([4], "float32")
    scalars = rule_scalars()
    with pytest.raises(ValueError, match="no rule 'adamin'"):
        _native.update_numpy("adamin", weights, grads, states, scalars)
    with pytest.raises(ValueError, match="differ in length"):
        update(weights, [], states, scalars)
    with pytest.raises(_native.ParameterError, match="gradient must be C-contiguous"):
        update(weights, [np.zeros(8, "float32")[::2]], states, scalars)
    with pytest.raises(_native.ParameterError, match="gradient must be C-contiguous"):
        update(weights, [np.zeros(5, "float32")], states, scalars)
    with pytest.raises(_native.ParameterError, match="state must be C-contiguous"):
        update(weights, grads, [[np.zeros(4), np.zeros(4)]], scalars)
    with pytest.raises(_native.ParameterError, match="the rule has 2 states"):
        update(weights, grads, [[np.zeros(4, "float32")]], scalars)
    with pytest.raises(_native.ParameterError, match="float32 or float64"):
        update([np.zeros(4, "int32")], grads, states, scalars)
    with pytest.raises(ValueError, match="takes 8 scalars, got 7"):
        update(weights, grads, states, {k: v for k, v in scalars.items() if k != "lr"})
    with pytest.raises(ValueError, match="needs the scalar 'lr'"):
        update(weights, grads, states, {("LR" if k == "lr" else k): v for k, v in scalars.items()})
    with pytest.raises(ValueError, match="'lr' has 2 values for 1 tensors"):
        update(weights, grads, states, {**scalars, "lr": [1.0, 2.0]})
    read_only = weights[0].copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        update([read_only], grads, states, scalars)
