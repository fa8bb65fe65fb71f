# SPDX-License-Identifier: Apache-2.0
"""MXNet's way to the kernels for GPUs, on a machine without one.

Arrays in host memory take it to the kernels that are compiled for the host, or MXNet is made to say
that its arrays are on a GPU. What a real stream and a real device do, this cannot show.
"""

from __future__ import annotations

import ctypes
import sys
import time
import types
from typing import ClassVar

import mxnet as mx
import numpy as np
import pytest
from bits import assert_same_or_near
from common import Run, assert_same_bits, gradients, nd
from cuda_tensors import VARIANTS
from family import PORTABLE_FAMILY as FAMILY
from mxnet.base import _LIB
from nonfinite_steps import BAD, SHAPES, STEPS, copies, counted_outcomes, flat, push, spoiled
from small_training import Training, mlp
from sparse_gradients import row_sparse

import mxadamax
from mxadamax import _native, _native_testing
from mxadamax._mxnet.compatibility import C_FUNCTIONS, IS_MXNET_1, gluon_arrays
from mxadamax._mxnet.engine import native
from mxadamax.commands import verify
from mxadamax.dtypes import BFLOAT16
from mxadamax.optimizers.info import OPTIMIZERS

on_host = pytest.importorskip(
    "mxadamax._cuda_on_host", reason="built without the CMake option MXADAMAX_CUDA_ON_HOST"
)

members = pytest.mark.parametrize("member", FAMILY, ids=str)
OPTIONS = {"learning_rate": 0.0123, "wd": 0.013, "clip_gradient": 3.0, "rescale_grad": 1 / 3}


class Functions(ctypes.Structure):
    """csrc/common/device_backend.h"""

    make_type = ctypes.CFUNCTYPE(
        *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int),
        ctypes.c_void_p,
    )
    update_type = ctypes.CFUNCTYPE(
        ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
    )
    free_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    _fields_ = (("make", make_type), ("update", update_type), ("free", free_type))


class Step(ctypes.Structure):
    _fields_ = (
        ("scalars", ctypes.c_void_p),
        ("scalar_count", ctypes.c_int64),
        ("clip_global_norm", ctypes.c_double),
        ("skip_nonfinite", ctypes.c_bool),
        ("stream", ctypes.c_void_p),
    )


CAPSULE = b"mxadamax.DeviceBackend.5"


def functions_of(capsule):
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return Functions.from_address(pointer(capsule, CAPSULE))


def capsule_of(functions, name=CAPSULE):
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(functions), name, None)


class Kernels:
    """The kernels on the host, with notes of what is asked of them, and failures on demand."""

    # Batches may be freed at any time, by functions that must still be there.
    kept: ClassVar[list[Kernels]] = []

    def __init__(self):
        self.kept.append(self)
        self.real = functions_of(on_host.functions)
        self.made, self.streams, self.alive = [], [], 0
        self.fails = None
        self.table = Functions(
            Functions.make_type(self.make),
            Functions.update_type(self.update),
            Functions.free_type(self.free),
        )
        self.functions = capsule_of(self.table)

    def refuse(self, error):
        message = b"told to fail"
        ctypes.memmove(error, message + b"\0", len(message) + 1)

    def make(self, rule, tensors, count, device, error):
        if self.fails == "make":
            self.refuse(error)
            return None
        self.made.append((rule.decode(), count, device))
        self.alive += 1
        # There is but one device on the host.
        return self.real.make(rule, tensors, count, 0, error)

    def update(self, batch, step, report, error):
        self.streams.append(Step.from_address(step).stream)
        if self.fails == "update":
            self.refuse(error)
            return False
        return self.real.update(batch, step, report, error)

    def free(self, batch):
        self.alive -= 1
        self.real.free(batch)


@pytest.fixture
def kernels():
    """Arrays in host memory go to these kernels."""
    found = Kernels()
    _native_testing.update_host_memory_by(found)
    yield found
    _native_testing.update_host_memory_by(None)
    mx.nd.waitall()


class Routes:
    """The same run twice: by the processor's kernels, and on the way to a GPU."""

    def __init__(self, make, kernels):
        self.kernels = kernels
        _native_testing.update_host_memory_by(None)
        self.by_processor = make()
        self.by_device = make()

    def each(self):
        """Each run, with its way switched on."""
        _native_testing.update_host_memory_by(None)
        yield self.by_processor
        updates = len(self.kernels.streams)
        _native_testing.update_host_memory_by(self.kernels)
        yield self.by_device
        mx.nd.waitall()
        assert len(self.kernels.streams) > updates


def read(array):
    if array.dtype == np.dtype([("bfloat16", np.uint16)]):
        return array.view(np.uint16).astype(np.uint32)
    return array if array.itemsize > 2 else array.astype(np.float32)


def compare(routes, where=""):
    mx.nd.waitall()
    # What is near depends on the weight with the fewest digits, also for its average.
    dtypes = {
        w.dtype if w.dtype == BFLOAT16 else np.dtype(w.dtype) for w in routes.by_device.weights
    }
    shortest = "bfloat16" if BFLOAT16 in dtypes else min(dtypes, key=lambda d: d.itemsize).name
    for k, (found, wanted) in enumerate(zip(*map(copies, (routes.by_device, routes.by_processor)))):
        a, b = (read(x.astype("float32").asnumpy()) for x in (found, wanted))
        rule = routes.by_device.optimizer.rule
        assert_same_or_near(a, b, rule, shortest, f"{where}, array {k}")


def make_run(member, dtype, **options):
    """A run of arrays of all shapes, and a dtype or several."""
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    rng = np.random.RandomState(3)
    run = Run(member.create(**{**OPTIONS, **member.options}, **options), [])
    for k, shape in enumerate(SHAPES):
        kind = BFLOAT16 if dtypes[k % len(dtypes)] == "bfloat16" else dtypes[k % len(dtypes)]
        run.weights.append(nd(np.asarray(rng.standard_normal(shape), "float32")).astype(kind))
    run.indices = list(range(len(run.weights)))
    return run


def step(run, grads):
    arrays = [nd(grad).astype(w.dtype) for grad, w in zip(grads, run.weights)]
    run.updater(list(run.indices), arrays, list(run.weights))


@members
@pytest.mark.parametrize(("dtype", "multi_precision"), VARIANTS)
def test_bits(member, dtype, multi_precision, kernels):
    options = {"multi_precision": multi_precision, "ema_decay": 0.9, "clip_global_norm": 40.0}
    routes = Routes(lambda: make_run(member, dtype, **options), kernels)
    norms = []
    for t, grads in enumerate(gradients(SHAPES, "float32", 6)):
        grads = [grad * np.float32((1, 1e-4)[t % 2]) for grad in grads]
        for run in routes.each():
            step(run, grads)
        norms.append([r.optimizer.gradient_norm for r in (routes.by_device, routes.by_processor)])
    compare(routes)
    assert all(a == b for a, b in norms)
    assert [a > 40 for a, _ in norms] == [True, False] * 3


@members
def test_all_dtypes_in_one_step(member, kernels):
    dtypes = ("float32", "float64", "float16", "bfloat16")
    routes = Routes(lambda: make_run(member, dtypes, multi_precision=True), kernels)
    for grads in gradients(SHAPES, "float32", 4):
        for run in routes.each():
            step(run, grads)
    compare(routes)


@members
@pytest.mark.parametrize("waits", [False, True], ids=["pending", "waited"])
@pytest.mark.parametrize("bound", [None, 40.0])
def test_skipped_steps(member, waits, bound, kernels):
    """Overflow in some steps, handed over before Python knows of any."""

    # Nadam's schedule of that kind must know of each step whether it counts.
    others = dict.fromkeys({"schedule_per_parameter"} & member.ours.keys(), False)

    def make():
        return make_run(member, "float32", skip_nonfinite=True, clip_global_norm=bound, **others)

    routes = Routes(make, kernels)
    for run in routes.each():
        with counted_outcomes() as counts:
            for t, grads in enumerate(gradients(SHAPES, "float32", STEPS)):
                grads = spoiled(grads, *BAD[t]) if t in BAD else grads
                push(run, grads, gate=t == 0 and not waits)
                if waits:
                    mx.nd.waitall()
        assert counts == ([1] * STEPS if waits else list(range(1, STEPS + 1)))
        assert run.optimizer.skipped_steps == len(BAD)
    compare(routes)
    assert len(kernels.streams) == STEPS


TABLES = [(50, 7), (40,), (9, 2, 3), (3000, 2)]


@members
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_rows(member, dtype, lazy, state_dtype, kernels):
    """Of gradients that hold other rows in every step, beside dense ones, with all options."""
    options = {**OPTIONS, **member.options, "clip_global_norm": 3.0, "ema_decay": 0.9}
    if state_dtype is not None:
        if dtype == "float64" or not keeps(member, state_dtype):
            pytest.skip("not kept in low precision")
        if member.name == "lans_ext":
            pytest.skip("its norms are added in another order, which rounding at random magnifies")
        options["state_dtype"] = {".*": state_dtype}
    shapes = [*TABLES, (30, 4)]
    rng = np.random.RandomState(5)
    start = [mx.nd.array(rng.standard_normal(s), dtype=dtype) for s in shapes]

    def make():
        optimizer = member.create(**options, multi_precision=True, lazy_update=lazy)
        run = Run(optimizer, [])
        run.weights = [w.copy() for w in start]
        run.indices = list(range(len(shapes)))
        return run

    routes = Routes(make, kernels)
    norms = []
    for t, grads in enumerate(gradients(shapes, "float32", 5)):
        arrays = [mx.nd.array(grads[-1], dtype=dtype)]
        for grad in grads[-2::-1]:
            rows = np.flatnonzero(rng.rand(len(grad)) < (0.0, 0.3, 1.0)[(t + len(arrays)) % 3])
            arrays.insert(0, row_sparse(grad.astype(dtype), rows, grad.shape))
        for run in routes.each():
            run.updater(list(run.indices), list(arrays), list(run.weights))
        norms.append([r.optimizer.gradient_norm for r in (routes.by_device, routes.by_processor)])
    compare(routes)
    assert all(a == b > 3 for a, b in norms)


STATE_DTYPES = ("float16", "bfloat16", "int8")


def keeps(member, state_dtype):
    """Whether an optimizer keeps its states in these."""
    rule = _native.rules[member.create(**member.options).rule]
    if rule.sums and state_dtype == "int8" and member.name == "lans_ext":
        # Its norms differ by so much that some states are a level apart.
        return False
    return rule.supports_int8_state if state_dtype == "int8" else rule.supports_low_precision_state


@pytest.mark.parametrize(
    ("member", "state_dtype"),
    [
        pytest.param(member, state_dtype, id=f"{member} {state_dtype}")
        for member in FAMILY
        for state_dtype in STATE_DTYPES
        if keeps(member, state_dtype)
    ],
)
@pytest.mark.parametrize("multi_precision", [False, True])
def test_low_precision_states(member, state_dtype, multi_precision, kernels):
    """Rounded by the same random bits, for weights of all types, with all options."""
    options = {
        **{
            "multi_precision": multi_precision,
            "state_dtype": {".*": state_dtype},
            "state_seed": 11,
        },
        **{"ema_decay": 0.9, "clip_global_norm": 40.0, "skip_nonfinite": True},
    }
    if "schedule_per_parameter" in member.ours:
        options["schedule_per_parameter"] = False
    # MXNet 1 updates weights of several types one after another, where no norm is of all.
    dtypes = ("float16",) if IS_MXNET_1 else ("float32", "float16", "bfloat16")
    routes = Routes(lambda: make_run(member, dtypes, **options), kernels)
    for t, grads in enumerate(gradients(SHAPES, "float32", 8)):
        grads = spoiled(grads, *BAD[0]) if t == 3 else grads
        for run in routes.each():
            step(run, grads)
        compare(routes, f"step {t}")
    assert routes.by_device.optimizer.skipped_steps == 1


def test_arrays_without_elements(kernels):
    """There is nothing that could be refused, or done."""
    weight, grad = (nd(np.zeros((0, 3), "float32")) for _ in range(2))
    mxadamax.SGD().fused_step([0], [weight], [grad], [None])
    mx.nd.waitall()


@pytest.mark.parametrize("lazy", [False, True])
def test_weights_in_rows(lazy, kernels):
    def make():
        run = make_run(FAMILY[0], "float32", lazy_update=lazy)
        run.weights = [mx.nd.ones((9, 4)).tostype("row_sparse")]
        run.indices = [0]
        return run

    routes = Routes(make, kernels)
    (grads,) = gradients([(9, 4)], "float32", 1)
    for run in routes.each():
        run.updater([0], [row_sparse(grads[0], [1, 2, 7], (9, 4))], list(run.weights))
    compare(routes)


@pytest.mark.parametrize("lazy", [False, True])
def test_rows_that_are_not_there(lazy, kernels):
    run = make_run(FAMILY[0], "float32", lazy_update=lazy)
    run.weights = [mx.nd.ones((4, 4)), mx.nd.ones((50, 7))]
    run.indices = [0, 1]
    bad = mx.nd.sparse.row_sparse_array((np.ones((2, 7), "float32"), [3, 60]), shape=(50, 7))
    run.updater([0, 1], [mx.nd.ones((4, 4)), bad], list(run.weights))
    message = "mxadamax, rule adamax: tensor 1: a row_sparse gradient names row 60 of 50"
    with pytest.raises(mx.MXNetError, match=message):
        mx.nd.waitall()
    for weight in run.weights:
        assert weight.asnumpy().tolist() == np.ones(weight.shape).tolist()


def test_a_batch_is_used_again_while_only_row_numbers_change(kernels):
    """One gradient, into which MXNet writes other rows, as many of them or not."""
    run = make_run(FAMILY[0], "float32", lazy_update=True)
    run.weights, run.indices = [mx.nd.ones((50, 7))], [0]
    grad = row_sparse(np.ones((50, 7), "float32"), [3, 4], (50, 7))
    made = []
    for rows in ([1, 5], [0, 49], [7], []):
        row_sparse(np.ones((50, 7), "float32"), rows, (50, 7)).copyto(grad)
        before = run.weights[0].asnumpy()
        run.updater([0], [grad], list(run.weights))
        mx.nd.waitall()
        changed = (run.weights[0].asnumpy() != before).any(axis=1)
        assert np.flatnonzero(changed).tolist() == rows
        made.append(len(kernels.made))
    assert made[0] == made[1] == 1


def test_training(kernels):
    """With layouts of oneDNN's between the steps."""

    def make():
        return Training(mlp, "adamax_ext", {"learning_rate": 0.01, "ema_decay": 0.9})

    def train(training):
        for _ in range(20):
            training.step()
            training.predict(gluon_arrays.zeros((1, *training.shape)))
        mx.nd.waitall()

    trainings = [make(), make()]
    _native_testing.update_host_memory_by(None)
    train(trainings[0])
    _native_testing.update_host_memory_by(kernels)
    train(trainings[1])
    for a, b in zip(*(t.weights().values() for t in trainings)):
        assert_same_bits(a, b)
    for updaters in zip(*(t.trainer._updaters for t in trainings)):
        states = [[a for i in sorted(u.states) for a in flat(u.states[i])] for u in updaters]
        for a, b in zip(*states):
            assert_same_bits(a.asnumpy(), b.asnumpy())
    # MXNet 1 takes turns with two gradients where a step was left out; here nothing moves.
    assert len(kernels.streams) == 20
    assert len(kernels.made) == 1


def test_several_trainers(kernels):
    """Two for the halves of one net, whose steps take turns."""
    nets = []
    for chosen in (None, kernels):
        _native_testing.update_host_memory_by(chosen)
        training = Training(mlp, "sgd_ext")
        parameters = list(training.params.values())
        halves = [
            mx.gluon.Trainer(parameters[:3], "adam_ext"),
            mx.gluon.Trainer(parameters[3:], "nag_ext"),
        ]
        for _ in range(5):
            training.backward()
            for half in halves:
                half.step(16)
        mx.nd.waitall()
        nets.append(training)
    for a, b in zip(*(net.weights().values() for net in nets)):
        assert_same_bits(a, b)
    made = sorted(rule.partition("_mxnet")[0] for rule, _, _ in kernels.made)
    assert made == ["adam", "nag"]


def test_batches_are_made_again_where_an_array_has_moved(kernels):
    run = make_run(FAMILY[0], "float32")
    (grads,) = gradients(SHAPES, "float32", 1)
    arrays = [nd(grad) for grad in grads]
    for _ in range(3):
        run.updater(list(run.indices), arrays, list(run.weights))
    mx.nd.waitall()
    assert kernels.made == [("adamax", len(SHAPES), 0)]
    # A gradient, and then a state.
    kept = arrays[3]
    arrays[3] = nd(grads[3])
    run.updater(list(run.indices), arrays, list(run.weights))
    mx.nd.waitall()
    assert len(kernels.made) == 2
    assert kernels.alive == 1
    m, u = run.updater.states[3]
    run.updater.states[3] = (m, u.copy())
    run.updater(list(run.indices), arrays, list(run.weights))
    mx.nd.waitall()
    assert len(kernels.made) == 3
    del kept
    run.optimizer._state_cache = _native.StateCache()
    # The engine lets go of an operation a little after that is done.
    until = time.monotonic() + 30
    while kernels.alive and time.monotonic() < until:
        time.sleep(0.01)
    assert kernels.alive == 0


@pytest.mark.parametrize("where", ["make", "update"])
def test_what_fails_on_the_device_is_an_error_of_mxnet(where, kernels):
    run = make_run(FAMILY[0], "float32")
    (grads,) = gradients(SHAPES, "float32", 1)
    before = [weight.asnumpy() for weight in run.weights]
    kernels.fails = where
    step(run, grads)
    with pytest.raises(mx.MXNetError, match="mxadamax, rule adamax: told to fail"):
        mx.nd.waitall()
    for weight, expected in zip(run.weights, before):
        assert_same_bits(weight.asnumpy(), expected)
    kernels.fails = None
    step(run, grads)
    mx.nd.waitall()


def test_kernels_of_another_build(monkeypatch):
    other = types.SimpleNamespace(functions=capsule_of(Functions(), b"mxadamax.DeviceBackend.0"))
    with pytest.raises(ImportError, match="of another build than the rest"):
        _native_testing.update_host_memory_by(other)


@pytest.mark.parametrize("info", OPTIMIZERS, ids=str)
def test_what_verify_compares_on_a_gpu(info, kernels, monkeypatch):
    """All that it promises of a GPU, by the kernels that are compiled for the host."""
    monkeypatch.setattr(verify, "LARGE", (5,))
    verify.data.cache_clear()
    gpu = types.SimpleNamespace(device_type="gpu")
    allowed = verify.SUMS_ON_GPU if verify.has_other_sums(info, gpu) else 0
    norms = info.name in ("lamb_ext", "lars_ext", "lans_ext")
    assert (allowed > 0) == norms
    monkeypatch.setattr(verify, "has_other_sums", lambda info, device: norms)
    found = [verify.difference_of_bits(info, kind) for kind in verify.TYPES]
    found.append(verify.difference_of_rows(info))
    verify.data.cache_clear()
    assert len(kernels.made) > len(found)
    assert max(found) <= allowed
    assert (max(found) > 0) == norms


# Arrays that MXNet says to be on a GPU. It cannot make them here, so it is made to say so.


class Stream(ctypes.Structure):
    """mshadow's, which begins with CUDA's."""

    _fields_ = (("stream", ctypes.c_void_p), ("others", ctypes.c_void_p * 8))


class RunContext(ctypes.Structure):
    _fields_ = (
        *(("device_type", ctypes.c_int), ("device_id", ctypes.c_int)),
        *(("stream", ctypes.POINTER(Stream)), ("aux_stream", ctypes.c_void_p)),
    )


@pytest.fixture
def places():
    """Where MXNet says that arrays are, by their handles: on GPU 3 unless they are entered here.

    Its engine runs what it is given for a GPU at once, and notes for which.
    """
    where, stream = {}, Stream(0xABC)

    def context(handle, device, number):
        device[0], number[0] = where.get(handle, (2, 3))
        return 0

    def push(run, parameter, delete, context, *_):
        where["pushed to"] = tuple(context[:2])
        mx.nd.waitall()
        run_context = RunContext(*context[:2], ctypes.pointer(stream))
        run(ctypes.addressof(run_context), parameter)
        delete(parameter)
        return 0

    integers, address = ctypes.POINTER(ctypes.c_int), ctypes.c_void_p
    task = ctypes.CFUNCTYPE(None, address, address)
    arrays = (address, ctypes.c_int, address, ctypes.c_int)
    replacements = {
        "MXNDArrayGetContext": ctypes.CFUNCTYPE(ctypes.c_int, address, integers, integers)(context),
        "MXEnginePushSyncND": ctypes.CFUNCTYPE(
            *(ctypes.c_int, task, address, ctypes.CFUNCTYPE(None, address), integers, *arrays),
            *(address, ctypes.c_int, ctypes.c_char_p),
        )(push),
    }
    native()

    def address_of(name):
        function = replacements.get(name) or getattr(_LIB, C_FUNCTIONS.get(name, name))
        return ctypes.cast(function, address).value

    _native.bind(address_of)
    yield where
    native.cache_clear()
    native()


def small():
    optimizer = mx.optimizer.create("adamax_ext")
    weights = [mx.nd.ones((3,)) for _ in range(2)]
    grads = [mx.nd.ones((3,)) for _ in range(2)]
    states = [optimizer.create_state(i, w) for i, w in enumerate(weights)]
    return optimizer, weights, grads, states


def test_arrays_on_a_gpu(places, monkeypatch):
    """Are updated on the stream of the engine's, and on that device."""
    found = Kernels()
    monkeypatch.setitem(sys.modules, "mxadamax._cuda", found)
    optimizer, weights, grads, states = small()
    for _ in range(3):
        optimizer.update_multi_precision([0, 1], weights, grads, states)
        assert places.pop("pushed to") == (2, 3)
    assert found.made == [("adamax_mxnet1" if IS_MXNET_1 else "adamax", 2, 3)]
    assert found.streams == [0xABC] * 3
    native.cache_clear()
    native()
    expected, *arrays = small()
    for _ in range(3):
        expected.update_multi_precision([0, 1], *arrays)
    for array, wanted in zip(weights, arrays[0]):
        assert_same_bits(array.asnumpy(), wanted.asnumpy())


def test_a_gpu_without_kernels(places, monkeypatch):
    optimizer, weights, grads, states = small()
    monkeypatch.setitem(sys.modules, "mxadamax._cuda", None)
    message = r"parameter 0: weight is on gpu\(3\), and mxadamax was built without CUDA kernels"
    with pytest.raises(ValueError, match=message):
        optimizer.update_multi_precision([0, 1], weights, grads, states)
    assert optimizer._index_update_count == {}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((2, 1), r"is on gpu\(1\), expected gpu\(3\), as the first weight"),
        ((1, 0), r"is in host memory, expected gpu\(3\), as the first weight"),
        ((3, 0), r"is in host memory, expected gpu\(3\), as the first weight"),
    ],
)
@pytest.mark.parametrize("what", ["weight", "gradient", "state 1"])
def test_several_devices_in_one_step(what, place, message, places, monkeypatch):
    optimizer, weights, grads, states = small()
    monkeypatch.setitem(sys.modules, "mxadamax._cuda", Kernels())
    array = {"weight": weights[1], "gradient": grads[1], "state 1": states[1][1]}[what]
    places[array.handle.value] = place
    with pytest.raises(ValueError, match=rf"parameter 1: {what} {message}"):
        optimizer.update_multi_precision([0, 1], weights, grads, states)


def test_a_gpu_in_a_step_of_the_processor(places):
    optimizer, weights, grads, states = small()
    for array in (weights[0], grads[0], *states[0]):
        places[array.handle.value] = (1, 0)
    message = r"parameter 1: weight is on gpu\(3\), expected an array in host memory \(mx.cpu\(\)\)"
    with pytest.raises(ValueError, match=message):
        optimizer.update_multi_precision([0, 1], weights, grads, states)
