# SPDX-License-Identifier: Apache-2.0
"""Behaviour in real use: Trainer, kvstores, engines, checkpoints, evaluation in between."""

import copy
import ctypes
import gc
import itertools
import pickle
import resource
import threading
from functools import partial

import mxnet as mx
import numpy as np
import pytest
from common import assert_same_bits, nd, run_python
from family import built_in
from mxnet import autograd, gluon
from mxnet.base import _LIB, check_call
from small_training import BATCH, OPTIONS, Training, mlp

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1, WHOLE_MODEL, gluon_arrays


def cnn():
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Conv2D(16, 3, in_channels=8, activation="relu"))
    net.add(gluon.nn.Conv2D(16, 3, in_channels=16, activation="relu"))
    net.add(gluon.nn.GlobalAvgPool2D(), gluon.nn.Dense(3, in_units=16))
    return net, (8, 12, 12)


def assert_same(actual, expected):
    found, wanted = actual.weights(), expected.weights()
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_same_bits(found[name], wanted[name], name)
    for own, other in zip(actual.states(), expected.states()):
        assert len(own) == len(other)
        for a, b in zip(own, other):
            assert_same_bits(a, b, "state")


def both(make=mlp, ours=None, **options):
    return (
        Training(make, mxadamax.Adamax(**OPTIONS, **(ours or {})), **options),
        Training(make, built_in("adamax", **OPTIONS), **options),
    )


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("hybridize", [True, False])
def test_trainer(make, hybridize):
    pair = both(make, hybridize=hybridize)
    for _ in range(15):
        for training in pair:
            training.step()
        assert_same(*pair)
    # The weights have moved, so there was something to compare.
    assert not np.array_equal(
        next(iter(pair[0].weights().values())),
        next(iter(Training(make, "adamax_ext").weights().values())),
    )


def test_name_in_the_registry():
    assert type(mx.optimizer.create("adamax_ext")) is mxadamax.Adamax
    assert type(mx.optimizer.create("adamax")) is mx.optimizer.Adamax


def test_options_through_the_trainer():
    training = Training(mlp, "adamax_ext")
    trainer = gluon.Trainer(training.params, "adamax_ext", {"beta1": 0.8, "wd": 0.1})
    assert (trainer.optimizer.beta1, trainer.optimizer.wd) == (0.8, 0.1)
    assert trainer.optimizer.use_fused_step
    assert trainer.optimizer.aggregate_num is WHOLE_MODEL


def test_multipliers_of_parameters():
    pair = both()
    for training in pair:
        for k, parameter in enumerate(training.params.values()):
            parameter.lr_mult, parameter.wd_mult = 1 + 0.1 * k, 0.3 * k
    for t in range(10):
        for training in pair:
            training.step()
            if t == 5:
                training.trainer.set_learning_rate(0.002)
                next(iter(training.params.values())).lr_mult = 0.0
    assert_same(*pair)


def test_gradients_that_add_up():
    pair = both(grad_req="add")
    for training in pair:
        for _ in range(4):
            (training.net.collect_params() if IS_MXNET_1 else training.net).zero_grad()
            for _ in range(3):
                training.backward()
            training.trainer.step(3 * BATCH)
    assert_same(*pair)


def test_frozen_and_stale_parameters():
    pair = both()
    for training in pair:
        names = list(training.params)
        training.params[names[0]].grad_req = "null"
        training.step()
        training.trainer.step(BATCH, ignore_stale_grad=True)
        training.step(ignore_stale_grad=True)
    assert_same(*pair)


def test_several_trainers_at_once():
    """Two for the halves of one net, and one of another net, in threads of their own."""
    pair = both()
    for training, create in zip(pair, (mxadamax.Adamax, partial(built_in, "adamax"))):
        parameters = list(training.params.values())
        halves = [
            gluon.Trainer(half, create(**OPTIONS)) for half in (parameters[:3], parameters[3:])
        ]
        for _ in range(6):
            training.backward()
            for half in halves:
                half.step(BATCH)
    for name, weight in pair[0].weights().items():
        assert_same_bits(weight, pair[1].weights()[name], name)

    expected = Training(mlp, built_in("adamax", **OPTIONS))
    for _ in range(10):
        expected.step()
    trainings = [Training(mlp, "adamax_ext") for _ in range(3)]
    failures = []

    def train(training):
        try:
            with mx.util.np_shape(True):
                for _ in range(10):
                    training.step()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=train, args=(training,)) for training in trainings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    for training in trainings:
        assert_same(training, expected)


DEVICES = (mx.cpu(0), mx.cpu(1))


@pytest.mark.parametrize(
    "kvstore, on_kvstore",
    # Without a store, MXNet lets the replicas diverge.
    [(None, None), *itertools.product(("device", "local"), (True, False, None))],
)
def test_two_devices(kvstore, on_kvstore):
    ours = {"aggregate_num": 1} if on_kvstore else {}
    pair = both(ours=ours, devices=DEVICES, kvstore=kvstore, update_on_kvstore=on_kvstore)
    for training in pair:
        for _ in range(8):
            training.step()
    found, wanted = (training.weights() for training in pair)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_same_bits(found[name], wanted[name], name)
    ours, built_in = (training.trainer.optimizer for training in pair)
    if on_kvstore is not None:
        # Left to choose, MXNet 2 updates on the key-value store what takes parameters one by one.
        assert ours._all_index_update_counts == built_in._all_index_update_counts
    assert ours.num_update == built_in.num_update == 8
    # Each replica has running means of its own.
    replicas = {name.split(" on ")[0] for name in found if "running" not in name}
    alike = [np.array_equal(*(found[f"{r} on {d}"] for d in DEVICES)) for r in sorted(replicas)]
    assert any(not same for same in alike) == (kvstore is None)


@pytest.mark.skipif(IS_MXNET_1, reason="MXNet 1 takes any aggregate_num")
def test_update_on_kvstore_says_what_it_needs():
    training = Training(mlp, "adamax_ext", devices=DEVICES)
    with pytest.raises(ValueError, match="aggregate_num > 1"):
        gluon.Trainer(training.params, "adamax_ext", update_on_kvstore=True)


def test_evaluation_between_backward_and_step():
    """oneDNN's layers put weights into layouts of their own then, whenever the engine gets to it."""
    pair = both(cnn)
    for training in pair:
        x = gluon_arrays.array(
            np.random.RandomState(0).standard_normal((64, *training.shape)), ctx=mx.cpu()
        )
        x = x.astype("float32")
        for t in range(40):
            training.backward()
            for _ in range(t % 5):
                training.predict(x)
            if t % 3 == 0:
                mx.nd.waitall()
            training.trainer.step(BATCH)
            for _ in range(t % 4):
                training.predict(x)
    assert_same(*pair)


def test_inside_a_recorded_section():
    ours, built_in = both(cnn)
    for _ in range(5):
        ours.backward()
        with autograd.record():
            ours.trainer.step(BATCH)
        built_in.step()
    assert_same(ours, built_in)


def test_saved_states_continue_to_the_bit(tmp_path):
    whole = Training(mlp, "adamax_ext")
    for _ in range(10):
        whole.step()
    first = Training(mlp, "adamax_ext")
    for _ in range(4):
        first.step()
    first.trainer.save_states(str(tmp_path / "states"))
    first.net.save_parameters(str(tmp_path / "weights"))

    second = Training(mlp, "adamax_ext")
    second.net.load_parameters(str(tmp_path / "weights"))
    second.trainer.load_states(str(tmp_path / "states"))
    second.data = first.data
    assert second.trainer.optimizer.num_update == 4
    assert second.trainer.optimizer.aggregate_num is WHOLE_MODEL
    for _ in range(6):
        second.step()
    assert_same(second, whole)


def test_states_that_are_replaced_between_steps():
    """What was found out about a state in one step is not taken for another's in the next."""
    optimizer = mxadamax.Adamax(learning_rate=0.1)
    weight, grad = nd(np.ones(4, "float32")), nd(np.ones(4, "float32"))

    def state(value):
        return nd(np.full(4, value, "float32")), nd(np.full(4, 2 * value, "float32"))

    def step(given):
        optimizer.fused_step([0], [weight], [grad], [given])
        return [a.asnumpy()[0] for a in given]

    first = state(1.0)
    expected = step(first)
    assert expected != [1.0, 2.0]
    assert step(state(1.0)) == expected
    # The same list, holding other arrays.
    given = list(state(1.0))
    assert step(given) == expected
    given[:] = state(3.0)
    assert step(given) == pytest.approx([0.9 * 3 + 0.1, 0.999 * 6], rel=1e-6)
    # The same state with a weight of another shape.
    step(first)
    with pytest.raises(ValueError, match=r"state 0 has shape \(4,\), weight has \(2, 2\)"):
        optimizer.fused_step([0], [weight.reshape((2, 2))], [grad.reshape((2, 2))], [first])


def test_copies():
    optimizer = mxadamax.Adamax(beta1=0.7, aggregate_num=float("inf"))
    for twin in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert type(twin) is mxadamax.Adamax
        assert twin.beta1 == 0.7
        # MXNet asks for this very object.
        assert twin.aggregate_num is WHOLE_MODEL


def test_parameter_servers_update_one_by_one(monkeypatch):
    monkeypatch.setenv("DMLC_ROLE", "worker")
    assert mxadamax.Adamax().aggregate_num == 1
    assert mxadamax.Adamax(aggregate_num=4).aggregate_num == 4


def test_python_does_not_wait_for_the_gradient():
    """The step returns while the operation that makes its gradient has yet to run."""
    optimizer = mxadamax.Adamax()
    weight, grad = nd(np.ones((4, 4), "float32")), nd(np.ones((4, 4), "float32"))
    state = optimizer.create_state(0, weight)
    mx.nd.waitall()
    may_run = threading.Event()
    ran = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    def produce(context, parameter):
        ran.append(may_run.wait(60))

    handles = (ctypes.c_void_p * 1)(grad.handle.value)
    cpu = (ctypes.c_int * 2)(1, 0)
    check_call(
        _LIB.MXEnginePushSyncND(produce, None, None, cpu, None, 0, handles, 1, None, 0, b"produce")
    )
    optimizer.fused_step([0], [weight], [grad], [state])
    del grad, state
    gc.collect()
    assert not ran
    may_run.set()
    assert weight.asnumpy()[0, 0] < 1
    assert ran == [True]


def test_arrays_that_python_lets_go_at_once():
    """The update runs after the handles it was given are gone; what it wrote is seen by later ones."""
    optimizer = mxadamax.Adamax()
    base = [gluon_arrays.ones((64, 64)) for _ in range(50)]
    states = [optimizer.create_state(k, w.as_nd_ndarray()) for k, w in enumerate(base)]
    for _ in range(10):
        grads = [gluon_arrays.random.uniform(0, 1, (64, 64)) for _ in base]
        optimizer.fused_step(
            list(range(50)),
            [w.as_nd_ndarray() for w in base],
            [g.as_nd_ndarray() for g in grads],
            states,
        )
        del grads
        gc.collect()
    for weight in base:
        assert np.all(np.isfinite(weight.asnumpy()))
        assert not np.any(weight.asnumpy() == 1)


def test_failure_with_the_naive_engine():
    """It runs operations at once, so the failure comes out of the step, and is MXNet's all the same."""
    code = """
import ctypes
import mxnet as mx
import mxadamax
from mxadamax._mxnet.compatibility import C_FUNCTIONS
from mxadamax._mxnet.engine import native
fail = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda handle, out: -1)
address = lambda f: ctypes.cast(f, ctypes.c_void_p).value
real = {n: address(getattr(mx.base._LIB, C_FUNCTIONS.get(n, n))) for n in native().mxnet_functions}
native().bind({**real, "MXNDArrayGetData": address(fail)}.__getitem__)
optimizer = mxadamax.Adamax()
weight, grad = mx.nd.ones((3,)), mx.nd.ones((3,))
try:
    optimizer.fused_step([0], [weight], [grad], [optimizer.create_state(0, weight)])
except mx.MXNetError as error:
    assert "mxadamax, rule adamax" in str(error)
    assert optimizer.num_update == 0
    print("MXNetError")
"""
    assert digest(code=code, MXNET_ENGINE_TYPE="NaiveEngine") == "MXNetError"


def test_no_memory_is_taken_per_step():
    optimizer = mxadamax.Adamax()
    weight, grad = mx.nd.ones((8_000_000,)), mx.nd.ones((8_000_000,))
    state = optimizer.create_state(0, weight)

    def peak(steps):
        for _ in range(steps):
            optimizer.fused_step([0], [weight], [grad], [state])
        mx.nd.waitall()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    # An array of that size is 31 MiB.
    assert peak(200) - peak(3) < 4 * 1024


DIGEST = """
import hashlib
import mxnet as mx
import numpy as np
import sys
from family import create

digest = hashlib.sha256()
with mx.util.np_shape(True):
    rng = np.random.RandomState(0)
    array = lambda shape: mx.np.array(rng.standard_normal(shape), dtype="float32").as_nd_ndarray()
    shapes = [(50000,), (300, 300), (), (0,), (17,)]
    optimizer = create(sys.argv[1], wd=0.01, clip_gradient=0.5)
    updater = mx.optimizer.get_updater(optimizer)
    weights = [array(shape) for shape in shapes]
    for t in range(20):
        updater(list(range(5)), [array(shape) for shape in shapes], list(weights))
    for k, weight in enumerate(weights):
        for a in (weight, *updater.states[k]):
            digest.update(a.asnumpy().tobytes())
print(digest.hexdigest())
"""


def digest(name="adamax_ext", code=DIGEST, **environment):
    return run_python(code, name, **environment).split()[-1]


@pytest.fixture(scope="module")
def expected_digest():
    return digest("adamax")


@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_NUM_THREADS": "1", "MXADAMAX_INSTRUCTION_SET": "baseline"},
        {"OMP_NUM_THREADS": "2", "MXNET_ENGINE_TYPE": "NaiveEngine"},
        {"OMP_NUM_THREADS": "5", "MXNET_ENGINE_TYPE": "ThreadedEngine"},
    ],
    ids=str,
)
def test_threads_engines_instruction_sets(environment, expected_digest):
    assert digest(**environment) == expected_digest


def test_threads_are_those_of_mxnet():
    """No team of our own beside MXNet's: a process has as many threads as with the built-in."""
    code = """
import os
import mxnet as mx
from family import create
weight, grad = mx.nd.ones((4_000_000,)), mx.nd.ones((4_000_000,))
for name in ("adamax", "adamax_ext"):
    optimizer = create(name)
    state = optimizer.create_state(0, weight)
    for _ in range(5):
        optimizer.update([0], [weight], [grad], [state])
    mx.nd.waitall()
    print(len(os.listdir("/proc/self/task")))
"""
    counts = []
    for threads in ("1", "4"):
        printed = run_python(code, OMP_NUM_THREADS=threads).split()[-2:]
        before, after = map(int, printed)
        assert before == after
        counts.append(after)
    assert counts[0] < counts[1]


def test_the_interpreter_lock_is_not_needed():
    """A thread that waits for the engine with the lock in its hand does not wait for ever."""
    code = """
import ctypes
import mxnet as mx
import mxadamax
optimizer = mxadamax.Adamax()
weights, grads = ([mx.nd.ones((1000, 1000)) for _ in range(5)] for _ in range(2))
states = [optimizer.create_state(k, w) for k, w in enumerate(weights)]
wait_all = ctypes.PyDLL(mx.libinfo.find_lib_path()[0]).MXNDArrayWaitAll
for _ in range(20):
    optimizer.fused_step(list(range(5)), weights, grads, states)
    wait_all()
print("done")
"""
    assert digest(code=code) == "done"


def test_fork_with_an_update_under_way():
    code = """
import os
import mxnet as mx
import mxadamax
optimizer = mxadamax.Adamax()
weight, grad = mx.nd.ones((3_000_000,)), mx.nd.ones((3_000_000,))
state = optimizer.create_state(0, weight)
for _ in range(5):
    optimizer.fused_step([0], [weight], [grad], [state])
    child = os.fork()
    if child == 0:
        optimizer.fused_step([0], [weight], [grad], [state])
        weight.wait_to_read()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
print(weight.asnumpy()[0])
"""
    assert 0 < float(digest(code=code)) < 1


def test_exit_with_an_update_under_way():
    code = """
import mxnet as mx
import mxadamax
optimizer = mxadamax.Adamax()
weight, grad = mx.nd.ones((20_000_000,)), mx.nd.ones((20_000_000,))
state = optimizer.create_state(0, weight)
for _ in range(5):
    optimizer.fused_step([0], [weight], [grad], [state])
print("left")
"""
    assert digest(code=code) == "left"
