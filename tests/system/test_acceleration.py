# SPDX-License-Identifier: Apache-2.0
"""MXNet's own optimizers, accelerated: the same bits, classes, attributes and files as before."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import threading
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from common import Run, assert_same_run, gradients, leaves, nd, network_shapes, run_python
from family import FAMILY, Member
from mxnet import gluon
from mxnet.optimizer import Optimizer, Updater
from small_training import Training, mlp

import mxadamax
from mxadamax import acceleration, acceleration_check
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.optimizers.arithmetic import built_in_class
from mxadamax.stand_in import StandIn, twin_of

SHAPES = [(3, 4), (17,), (), (0,), (1000,), (5,), (6,), (7,), (2, 0), (1,)]
"""Of every kind."""

OPTIONS = {"wd": 0.01, "clip_gradient": 0.5, "rescale_grad": 1 / 3}
LEFT = {
    "groupadagrad": "there is no native kernel for one number of state per row",
    "lbsgd": "gradients are added up by operators, which take most of the time",
}
"""What MXNet updates always, and why."""

APART = [
    Member("sgld_ext", "sgld"),
    Member("lbsgd_ext", "lbsgd", {"momentum": 0.9, "batch_scale": 3, "updates_per_epoch": 2}),
    Member("lbsgd_ext", "lbsgd", {"warmup_strategy": "sqrt"}),
]
BUILT_INS = [m for m in (*FAMILY, *APART) if built_in_class(m.built_in) is not None]
CLASSES = sorted(
    {c for c in Optimizer.opt_registry.values() if c.__module__.startswith("mxnet.")},
    key=lambda c: c.__name__,
)

without_masters = pytest.mark.filterwarnings("ignore:Accumulating with float16")


@pytest.fixture(autouse=True)
def nothing_counted(monkeypatch):
    monkeypatch.setattr(acceleration, "_report", mxadamax.acceleration.AccelerationReport())
    yield
    mxadamax.decelerate()


def counts(name: str) -> tuple[int, int]:
    """How many updates of a built-in were native, and how many were not."""
    found = mxadamax.acceleration_report().get(name, {"native": 0})
    return found["native"], sum(found.values()) - found["native"]


def start(dtype: str, shapes=SHAPES) -> list[np.ndarray]:
    rng = np.random.RandomState(1)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def attributes(optimizer: Optimizer) -> dict[str, Any]:
    """What a pickle has of an optimizer, in a form that can be compared."""
    found = dict(optimizer.__getstate__())
    scheduler = found.pop("lr_scheduler")
    found["scheduler"] = None if scheduler is None else vars(scheduler)
    # MXNet 2's AdamW makes an array of `rescale_grad`, which compares as the number.
    return {name: comparable(x) if isinstance(x, dict) else x for name, x in found.items()}


def comparable(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: comparable(x) for name, x in found.items()}
    return found.asnumpy().tobytes() if isinstance(found, mx.nd.NDArray) else found


SEEDS = itertools.count()


def do_both(plainly, accelerated):
    """Do one thing plainly and one accelerated; MXNet's random numbers are as many, and the same."""
    seed, following = next(SEEDS), []
    for on, do in ((False, plainly), (True, accelerated)):
        mxadamax.accelerate() if on else mxadamax.decelerate()
        mx.random.seed(seed)
        do()
        following.append(mx.nd.random.uniform(shape=(3,)).asnumpy().tobytes())
    mxadamax.decelerate()
    assert following[0] == following[1]


def step_both(runs, grads, where=""):
    """Do a step plainly and one accelerated, with equal results."""
    do_both(*(functools.partial(run.step, grads) for run in runs))
    assert_same_run(*runs, where=where)


def compare(make, dtype="float32", steps=8, change=None, shapes=SHAPES):
    """Train with a built-in, plain and accelerated; the results are equal after every step."""
    weights = start(dtype, shapes)
    runs = [Run(make(), weights) for _ in range(2)]
    for step, grads in enumerate(gradients([w.shape for w in weights], dtype, steps)):
        if change is not None:
            for run in runs:
                change(run.optimizer, step)
        step_both(runs, grads, where=f"step {step + 1}")
        assert runs[0].optimizer._index_update_count == runs[1].optimizer._index_update_count
        assert attributes(runs[0].optimizer) == attributes(runs[1].optimizer)
    return runs


def scheduled(member, dtype, every):
    """A built-in whose rate a scheduler lowers after so many updates; float16 with masters."""
    scheduler = mx.lr_scheduler.FactorScheduler(step=every, factor=0.7)
    more = {"lr_scheduler": scheduler, "multi_precision": dtype == "float16"}
    return member.create_built_in(**OPTIONS, **more)


def plain_fails(make, dtype):
    try:
        Run(make(), start(dtype)).step(start(dtype))
        mx.nd.waitall()
    except Exception:
        return True
    return False


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("member", BUILT_INS, ids=str)
def test_the_same_bits_as_plainly(member, dtype):
    def make():
        return scheduled(member, dtype, every=3)

    if plain_fails(make, dtype):
        pytest.skip("MXNet's fails")

    def change(optimizer, step):
        if step == 4:
            optimizer.rescale_grad = 0.7
            optimizer.wd = 0.03

    compare(make, dtype, change=change)
    native, left = counts(member.built_in)
    kind = "masters" if dtype == "float16" else dtype
    excepted = (kind, 1 if IS_MXNET_1 else 2) in member.exceptions
    if excepted or member.built_in in LEFT:
        assert native == 0
    else:
        assert left == 0
    assert native + left == 8 * len(SHAPES)


def test_the_whole_registry_is_accelerated_or_has_a_reason():
    twins = {c.__name__.lower(): twin_of(c) for c in CLASSES}
    series = 1 if IS_MXNET_1 else 2
    assert {name for name, twin in twins.items() if twin is None} <= {"test"}
    left = {
        name: twin.traits[series].left_to_mxnet
        for name, twin in twins.items()
        if twin is not None and series in twin.traits and twin.traits[series].left_to_mxnet
    }
    assert left == {name: why for name, why in LEFT.items() if name in twins}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("member", BUILT_INS, ids=str)
def test_acceleration_that_comes_and_goes(member, dtype):
    """What one way leaves behind, the other goes on with."""

    def make():
        return scheduled(member, dtype, every=4)

    if plain_fails(make, dtype):
        pytest.skip("MXNet's fails")
    runs = [Run(make(), start(dtype)) for _ in range(2)]
    for step, grads in enumerate(gradients(SHAPES, dtype, 9)):
        if step % 3 == 1:
            step_both(runs, grads, where=f"step {step + 1}")
        else:
            for run in runs:
                mx.random.seed(step)
                run.step(grads)
        assert_same_run(*runs, where=f"step {step + 1}")
        assert attributes(runs[0].optimizer) == attributes(runs[1].optimizer)
    native, left = counts(member.built_in)
    assert native + left == 3 * len(SHAPES)


def make_sgld(**options):
    return mx.optimizer.create("sgld", **{"learning_rate": 0.01, **OPTIONS, **options})


class Counting(mx.lr_scheduler.LRScheduler):
    """A scheduler that gives another rate each time that it is asked."""

    calls = 0

    def __call__(self, num_update):
        self.calls += 1
        return 0.1 / self.calls


SGLD_CASES = {
    "no decay": {"wd": 0.0, "clip_gradient": None},
    "multipliers": {},
    "many at once": {"aggregate_num": 3},
    "all at once": {"aggregate_num": np.inf},
    "scheduled": {"lr_scheduler": mx.lr_scheduler.CosineScheduler(20, 0.1)},
    "somebody's scheduler": {"lr_scheduler": Counting()},
    "bound of zero": {"clip_gradient": 0.0},
}


@without_masters
@pytest.mark.parametrize("kinds", ["float32", "float64", "masters", "masters between", "float16"])
@pytest.mark.parametrize("case", SGLD_CASES)
def test_the_noise_of_sgld(case, kinds):
    """Each parameter gets the random numbers that it gets plainly, whatever its type."""
    options = {"multi_precision": kinds.startswith("masters"), **SGLD_CASES[case]}
    if IS_MXNET_1 and "aggregate_num" in options:
        pytest.skip("takes one parameter a call")
    types = {
        "masters": ["float16"],
        "masters between": ["float32", "float16", "float64"],
        "float16": ["float32", "float64", "float16"],
    }.get(kinds, [kinds])
    types = list(itertools.islice(itertools.cycle(types), len(SHAPES)))
    weights = [w.astype(dtype) for w, dtype in zip(start("float64"), types)]
    runs = [Run(make_sgld(**copy.deepcopy(options)), weights) for _ in range(2)]
    if "aggregate_num" in options:
        # Which copies of infinity are not, to MXNet.
        for run in runs:
            run.optimizer.aggregate_num = options["aggregate_num"]
    for step, grads in enumerate(gradients(SHAPES, "float64", 8)):
        for run in runs:
            if case == "multipliers":
                run.optimizer.set_lr_mult({0: 0.5, 4: 2.0})
                run.optimizer.set_wd_mult({1: 0.0, 5: 3.0})
        given = [grad.astype(dtype) for grad, dtype in zip(grads, types)]
        step_both(runs, given, where=f"step {step + 1}")
        assert attributes(runs[0].optimizer) == attributes(runs[1].optimizer)
        assert runs[0].optimizer._index_update_count == runs[1].optimizer._index_update_count
    # One parameter that MXNet must update leaves it all others: the noise comes in turn.
    found = 0, 8 * len(SHAPES)
    assert counts("sgld") == (found if kinds == "float16" else found[::-1])


@pytest.mark.parametrize("name", ["lr_mult", "wd_mult"])
@pytest.mark.parametrize("multiplier", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_sgld_draws_nothing_in_a_step_that_it_refuses(name, multiplier):
    """MXNet, which does the step then, draws it."""
    runs = [Run(make_sgld(), start("float32")) for _ in range(2)]
    outcomes = []

    def step(run, grads):
        with np.errstate(all="ignore"):
            try:
                run.step(grads)
                mx.nd.waitall()
                outcomes.append("")
            except Exception as error:
                outcomes.append(f"{type(error).__name__}: {error}")

    for number, grads in enumerate(gradients(SHAPES, "float32", 4)):
        for run in runs:
            vars(run.optimizer)[name] = {2: multiplier} if number == 2 else {}
        do_both(*(functools.partial(step, run, grads) for run in runs))
        assert outcomes[0] == outcomes[1]
        outcomes.clear()
        assert_same_run(*runs, where=f"step {number + 1}")
        assert runs[0].optimizer._index_update_count == runs[1].optimizer._index_update_count
    assert counts("sgld")[0] >= 2 * len(SHAPES)


def test_sgld_with_a_state_that_mxnet_does_not_look_at():
    runs = [Run(make_sgld(), start("float32")) for _ in range(2)]
    for step, grads in enumerate(gradients(SHAPES, "float32", 3)):
        if step == 1:
            for run in runs:
                run.updater.states[3] = mx.nd.ones((2,))
        step_both(runs, grads)
    assert counts("sgld") == (len(SHAPES), 2 * len(SHAPES))


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("member", BUILT_INS, ids=str)
def test_a_negative_weight_decay(member, is_shared):
    """Which MXNet adds like any other, in some of the parameters or in all."""

    def make():
        return member.create_built_in(**OPTIONS)

    def change(optimizer, step):
        optimizer.set_wd_mult(dict.fromkeys(range(len(SHAPES)) if is_shared else (1, 4), -100.0))

    if plain_fails(make, "float32"):
        pytest.skip("MXNet's fails")
    compare(make, steps=3, change=change)


@pytest.mark.parametrize("name", ["adam", "adamax", "sgld"])
@pytest.mark.parametrize("at_once", [None, 2, 50])
@without_masters
def test_parameters_of_several_types_stay_in_their_order(name, at_once):
    """It decides which rate a scheduler gives, where counts differ, and which noise is whose."""
    if at_once is not None and (IS_MXNET_1 or name == "sgld"):
        pytest.skip("takes one parameter a call")
    rng = np.random.RandomState(0)
    kinds = ["float32", "float64", "float32", "float16"] * 3
    weights = [rng.standard_normal(9).astype(kind) for kind in kinds]
    options = {} if at_once is None else {"aggregate_num": at_once}

    def make():
        scheduler = mx.lr_scheduler.FactorScheduler(1, 0.5)
        more = {"multi_precision": True, "lr_scheduler": scheduler}
        return mx.optimizer.create(name, **options, **more)

    runs = [Run(make(), weights) for _ in range(2)]
    for step in range(6):
        grads = [rng.standard_normal(9).astype(kind) for kind in kinds]
        # The last ones are updated more often.
        chosen = list(range(12 if step % 2 else 5, 12)) if step % 3 else list(range(12))
        chosen = chosen or [11, 3, 2]
        every = [run.weights for run in runs]
        for run in runs:
            run.indices, run.weights = chosen, [run.weights[k] for k in chosen]
        step_both(runs, [grads[k] for k in chosen], where=f"step {step + 1}")
        for run, whole in zip(runs, every):
            run.indices, run.weights = list(range(12)), whole
        assert_same_run(*runs, where=f"step {step + 1}")
        assert attributes(runs[0].optimizer) == attributes(runs[1].optimizer)


def matrices() -> list[np.ndarray]:
    return start("float32", [(3, 4), (1, 1), (5, 2), (20, 3), (7, 1)])


LEFT_CASES = {
    "groupadagrad": {"learning_rate": 0.1},
    "groupadagrad clipped": {"clip_gradient": 0.5, "rescale_grad": 0.3},
    "lbsgd": {"momentum": 0.9, "wd": 0.01},
    "lbsgd lars": {"warmup_strategy": "lars", "wd": 0.01, "batch_scale": 2},
}


@pytest.mark.parametrize("by", ["updater", "updater, one by one", "update", "trainer"])
@pytest.mark.parametrize("case", LEFT_CASES)
def test_what_is_left_to_mxnet_as_a_whole(case, by):
    """All of it is counted, once, and the sums of gradients are where MXNet looks for them."""
    name = case.split()[0]
    if built_in_class(name) is None:
        pytest.skip("MXNet has no such optimizer")
    runs = [Run(mx.optimizer.create(name, **LEFT_CASES[case]), matrices()) for _ in range(2)]
    shapes = [w.shape for w in matrices()]

    def step(run, grads):
        arrays = [nd(grad) for grad in grads]
        if by == "updater":
            run.updater(list(run.indices), arrays, list(run.weights))
        elif by == "updater, one by one":
            for one in zip(run.indices, arrays, run.weights):
                run.updater(*one)
        else:
            update = getattr(run.optimizer, by)
            for index, weight, grad in zip(run.indices, run.weights, arrays):
                states = run.updater.states
                states.setdefault(index, run.optimizer.create_state(index, weight))
                given = index, weight, grad, states[index]
                update(*(given if IS_MXNET_1 else ([x] for x in given)))

    if by == "trainer":
        found = []
        for on in (False, True):
            mxadamax.accelerate() if on else mxadamax.decelerate()
            parameters = [
                gluon.Parameter(f"w{k}", shape=shape, init="ones") for k, shape in enumerate(shapes)
            ]
            for parameter in parameters:
                parameter.initialize()
            trainer = gluon.Trainer(parameters, name, LEFT_CASES[case])
            for _ in range(5):
                with mx.autograd.record():
                    losses = [(p.data() ** 2).sum() for p in parameters]
                mx.autograd.backward(losses)
                trainer.step(7)
            found.append([p.data().asnumpy().tobytes() for p in parameters])
        assert found[0] == found[1]
    else:
        for number, grads in enumerate(gradients(shapes, "float32", 5)):
            do_both(*(functools.partial(step, run, grads) for run in runs))
            assert_same_run(*runs, where=f"step {number + 1}")
            assert attributes(runs[0].optimizer) == attributes(runs[1].optimizer)
    assert mxadamax.acceleration_report() == {name: {"native": 0, LEFT[name]: 5 * len(shapes)}}


@without_masters
@pytest.mark.parametrize("name", ["adam", "adamax"])
def test_what_mxnet_computes_otherwise_is_left_to_it(name):
    """16-bit weights without masters."""
    compare(lambda: mx.optimizer.create(name, **OPTIONS), "float16")
    assert counts(name) == (0, 8 * len(SHAPES))
    assert "float16 weights without a float32 master" in str(mxadamax.acceleration_report())


@without_masters
@pytest.mark.parametrize("name", ["adam", "sgd", "adamax"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_parameters_of_several_kinds_in_one_step(name, scheduled):
    kinds = ["float32", "float16", "float64"] * 4
    rng = np.random.RandomState(0)
    weights = [rng.standard_normal(9).astype(kind) for kind in kinds]

    def make():
        scheduler = mx.lr_scheduler.FactorScheduler(2, 0.5) if scheduled else None
        return mx.optimizer.create(name, wd=0.01, lr_scheduler=scheduler)

    runs = [Run(make(), weights) for _ in range(2)]
    for _ in range(4):
        grads = [rng.standard_normal(9).astype(kind) for kind in kinds]
        step_both(runs, grads)
    native, left = counts(name)
    # With a scheduler the order of counting could show.
    assert (native > 0) == (not scheduled)
    assert left >= 16


def test_momentum_that_is_set_later():
    """MXNet has made no state for it."""

    def change(optimizer, step):
        optimizer.momentum = 0.9 if step in (3, 4) else 0.0

    def make():
        return mx.optimizer.create("nag", learning_rate=0.1)

    runs = [Run(make(), start("float32")) for _ in range(2)]
    for step, grads in enumerate(gradients(SHAPES, "float32", 6)):
        outcomes = []
        for run, on in zip(runs, (False, True)):
            change(run.optimizer, step)
            mxadamax.accelerate() if on else mxadamax.decelerate()
            try:
                run.step(grads)
                mx.nd.waitall()
                outcomes.append(None)
            except Exception as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1]
        assert_same_run(*runs)


@pytest.mark.parametrize("bound", [-1, 0, 0.0, 1e-3, None])
@pytest.mark.parametrize("name", ["adam", "sgd", "adamax", "adagrad", "rmsprop"])
def test_bounds_that_mean_none(name, bound):
    if IS_MXNET_1 and name == "adamax" and bound == 0:
        pytest.skip("MXNet 1's divides 0 by 0, where ours takes no step")
    compare(lambda: mx.optimizer.create(name, clip_gradient=bound), steps=3)


@pytest.mark.parametrize(
    "changed",
    [
        {"wd": -0.1},
        {"rescale_grad": np.float32(0.3)},
        {"wd": np.float64(0.01)},
        {"beta1": 1.5},
        {"epsilon": -1e-3},
        {"lr": np.float32(0.1)},
        {"lr": 1},
    ],
    ids=str,
)
def test_values_that_ours_refuse(changed):
    """MXNet takes them, so they do as before."""

    def change(optimizer, step):
        if step == 2:
            for name, value in changed.items():
                setattr(optimizer, name, value)

    with np.errstate(all="ignore"):
        compare(lambda: mx.optimizer.create("adam"), steps=5, change=change)


def test_parameters_that_are_not_updated_each_step():
    """Where counts differ, the order in which they are counted decides what a scheduler gives."""

    def make():
        return mx.optimizer.Adam(lr_scheduler=mx.lr_scheduler.FactorScheduler(3, 0.5))

    runs = [Run(make(), start("float32")) for _ in range(2)]
    rng = np.random.RandomState(5)
    for grads in gradients(SHAPES, "float32", 30):
        chosen = [k for k in rng.permutation(len(SHAPES)) if rng.rand() < 0.9]
        for run, on in zip(runs, (False, True)):
            mxadamax.accelerate() if on else mxadamax.decelerate()
            every = run.weights
            run.indices, run.weights = chosen, [every[k] for k in chosen]
            run.step([grads[k] for k in chosen])
            run.indices, run.weights = list(range(len(SHAPES))), every
        assert runs[0].optimizer.num_update == runs[1].optimizer.num_update
        assert_same_run(*runs)


def test_a_scheduler_of_somebody_is_asked_as_often():
    """One that changes with every call."""

    for name in ("sgd", "adam", "adamax", "sgld"):
        compare(lambda: mx.optimizer.create(name, lr_scheduler=Counting()))  # noqa: B023


def test_multipliers():
    def change(optimizer, step):
        if step == 0:
            optimizer.set_lr_mult({0: 0.5, "named": 2.0})
            optimizer.set_wd_mult({1: 0.0, "named": 3.0})

    def make():
        return mx.optimizer.create("adam", wd=0.1, param_idx2name={4: "named", 5: "x_bias"})

    compare(make, change=change)
    assert counts("adam")[1] == 0


@pytest.mark.parametrize("name", ["adam", "sgd", "adamax", "sgld"])
def test_row_sparse_gradients(name):
    rng = np.random.RandomState(0)
    weights = [rng.standard_normal((20, 3)).astype("float32") for _ in range(9)]
    runs = [Run(mx.optimizer.create(name, wd=0.01), weights) for _ in range(2)]
    for _ in range(4):
        grads = [rng.standard_normal((20, 3)) * (rng.rand(20, 1) < 0.3) for _ in range(9)]
        for run, on in zip(runs, (False, True)):
            mxadamax.accelerate() if on else mxadamax.decelerate()
            mx.random.seed(5)
            arrays = [nd(grad.astype("float32")).tostype("row_sparse") for grad in grads]
            run.updater(list(range(9)), arrays, list(run.weights))
        assert_same_run(*runs)
    assert sum(counts(name)) == 36


def test_row_sparse_states():
    """MXNet 1's lazy Adam makes them for row_sparse weights."""
    rng = np.random.RandomState(0)
    runs = []
    for on in (False, True):
        updater = mx.optimizer.get_updater(mx.optimizer.Adam())
        weights = [mx.nd.ones((20, 3)).tostype("row_sparse") for _ in range(9)]
        runs.append((on, updater, weights))
    for _ in range(3):
        grads = [rng.standard_normal((20, 3)) * (rng.rand(20, 1) < 0.3) for _ in range(9)]
        for on, updater, weights in runs:
            mxadamax.accelerate() if on else mxadamax.decelerate()
            arrays = [nd(grad.astype("float32")).tostype("row_sparse") for grad in grads]
            updater(list(range(9)), arrays, weights)
        for one, other in zip(runs[0][2], runs[1][2]):
            assert one.asnumpy().tobytes() == other.asnumpy().tobytes()


@pytest.mark.parametrize("method", ["update", "update_multi_precision"])
@pytest.mark.parametrize("name", ["adamax", "adam", "sgld"])
def test_methods_that_are_called_directly(name, method):
    found = []
    for on in (False, True):
        mx.random.seed(5)
        mxadamax.accelerate() if on else mxadamax.decelerate()
        optimizer = mx.optimizer.create(name, wd=0.01)
        weight = mx.nd.ones((200_000,))
        state = optimizer.create_state(0, weight)
        for _ in range(3):
            given = (0, weight, mx.nd.ones((200_000,)) * 0.3, state)
            if not IS_MXNET_1:
                given = tuple([x] for x in given)
            names = ("index", "weight", "grad", "state")
            if not IS_MXNET_1:
                names = ("indices", "weights", "grads", "states")
            by_name = dict(zip(names[2:], given[2:]))
            getattr(optimizer, method)(*given[:2], **by_name)
        found.append([weight.asnumpy().tobytes(), *(a.asnumpy().tobytes() for a in leaves(state))])
    assert found[0] == found[1]
    assert counts(name) == (3, 0)


@pytest.mark.parametrize("method", ["update", "update_multi_precision"])
def test_methods_that_are_called_with_what_is_left_to_mxnet(method):
    """All of a call, or a part of it."""
    found = []
    for on in (False, True):
        mxadamax.accelerate() if on else mxadamax.decelerate()
        optimizer = mx.optimizer.create("adamax", wd=0.01)
        dtypes = ["float16"] if IS_MXNET_1 else ["float32", "float16", "float32"]
        weights = [mx.nd.ones((200_000,), dtype=dtype) for dtype in dtypes]
        states = [optimizer.create_state(k, w) for k, w in enumerate(weights)]
        for _ in range(3):
            grads = [w * 0.3 for w in weights]
            given = list(range(len(weights))), weights, grads, states
            getattr(optimizer, method)(*([x[0] for x in given] if IS_MXNET_1 else given))
        found.append([a.asnumpy().tobytes() for a in (*weights, *(x for s in states for x in s))])
    assert found[0] == found[1]
    assert counts("adamax") == (0 if IS_MXNET_1 else 6, 3)


@pytest.mark.skipif(IS_MXNET_1, reason="takes one parameter a call")
@pytest.mark.parametrize("name", ["adam", "sgd", "lamb"])
def test_a_parameter_twice_in_a_call(name):
    found = []
    for on in (False, True):
        mxadamax.accelerate() if on else mxadamax.decelerate()
        optimizer = mx.optimizer.create(name, wd=0.01, learning_rate=0.1)
        weights = [mx.nd.ones((200_000,)) for _ in range(2)]
        states = [optimizer.create_state(0, w) for w in weights]
        for _ in range(3):
            optimizer.update([0, 0], weights, [w * 0.3 for w in weights], states)
        arrays = (*weights, *leaves(states))
        found.append([*(a.asnumpy().tobytes() for a in arrays), optimizer.num_update])
    assert found[0] == found[1]


LARS_SHAPES = [shape for shape in SHAPES if shape and 0 not in shape] + [(9,), (1003,), (2, 2)]
"""MXNet's operators that find norms take no others."""


def make_lars(at_once=None, **options):
    options = {"learning_rate": 0.1, "momentum": 0.9, "wd": 0.01, **options}
    if at_once is not None and not IS_MXNET_1:
        options["aggregate_num"] = at_once
    optimizer = mx.optimizer.create("lars", **options)
    if at_once is not None:
        optimizer.aggregate_num = at_once
    return optimizer


@pytest.mark.parametrize("at_once", [None, 1, 3, 4, 50])
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("corrected", [True, False])
def test_lars_by_calls(at_once, scheduled, corrected):
    """MXNet 1 corrects the momentum in the first call of a step; MXNet 2 takes other norms."""
    options = {} if corrected else {"momentum_correction": False}
    if options and not IS_MXNET_1:
        pytest.skip("corrects no momentum")

    def make():
        factor = mx.lr_scheduler.FactorScheduler(2, 0.5)
        return make_lars(at_once, lr_scheduler=factor if scheduled else None, **options)

    def change(optimizer, step):
        if not scheduled:
            optimizer.lr = 0.1 / (1 + step // 2)

    compare(make, change=change, shapes=LARS_SHAPES)
    assert counts("lars") == (8 * len(LARS_SHAPES), 0)


@without_masters
@pytest.mark.parametrize("at_once", [4, 12])
@pytest.mark.parametrize("multi_precision", [False, True])
def test_lars_with_parameters_of_several_types(multi_precision, at_once):
    """The types in turn: MXNet 1 calls LARS for those of one type together."""
    rng = np.random.RandomState(0)
    kinds = ["float32", "float32", "float64", "float16", "float32"] * 3
    if not (IS_MXNET_1 or multi_precision):
        kinds = [kind for kind in kinds if kind != "float16"]
    weights = [rng.standard_normal(9).astype(kind) for kind in kinds]
    scheduler = mx.lr_scheduler.FactorScheduler(2, 0.5)

    def make():
        own = copy.deepcopy(scheduler)
        return make_lars(at_once, lr_scheduler=own, multi_precision=multi_precision)

    runs = [Run(make(), weights) for _ in range(2)]
    for step in range(5):
        grads = [rng.standard_normal(9).astype(kind) for kind in kinds]
        step_both(runs, grads, where=f"step {step + 1}")
        assert attributes(runs[0].optimizer) == attributes(runs[1].optimizer)
    # 16-bit weights without masters are MXNet's work, and with them all of the step.
    native = 0 if IS_MXNET_1 and not multi_precision else 5 * len(kinds)
    assert counts("lars") == (native, 5 * len(kinds) - native)


def test_lars_with_a_row_sparse_gradient():
    """It changes how MXNet updates what comes in one call with it."""
    rng = np.random.RandomState(0)
    weights = [rng.standard_normal((20, 3)).astype("float32") for _ in range(9)]
    runs = [Run(make_lars(4), weights) for _ in range(2)]
    for _ in range(4):
        grads = [rng.standard_normal((20, 3)) for _ in range(9)]
        for run, on in zip(runs, (False, True)):
            mxadamax.accelerate() if on else mxadamax.decelerate()
            arrays = [nd(grad.astype("float32")) for grad in grads]
            arrays[2] = arrays[2].tostype("row_sparse")
            run.updater(list(range(9)), arrays, list(run.weights))
        assert_same_run(*runs)
    assert counts("lars") == (0, 36)


def test_lars_called_directly():
    """All parameters of a list are one call."""
    found = []
    for on in (False, True):
        mxadamax.accelerate() if on else mxadamax.decelerate()
        optimizer = make_lars(4, param_idx2name={1: "x_bias", 2: "x_gamma"})
        weights = [nd(w) for w in start("float32", LARS_SHAPES)]
        states = [optimizer.create_state(k, w) for k, w in enumerate(weights)]
        for step in range(4):
            optimizer.lr = 0.1 / (1 + step)
            grads = [w * 0.3 + 0.1 for w in weights]
            optimizer.update(list(range(len(weights))), weights, grads, states)
        found.append([a.asnumpy().tobytes() for a in (*weights, *states)])
    assert found[0] == found[1]
    assert counts("lars") == (4 * len(LARS_SHAPES), 0)


@pytest.mark.parametrize("bound", [0.3, 0.0, -1.0, None])
def test_bounds_of_weights(bound):
    def change(optimizer, step):
        optimizer.clip_weights = bound if step > 1 else None

    compare(lambda: mx.optimizer.create("rmsprop"), steps=4, change=change)
    assert counts("rmsprop")[1] == 0


@pytest.mark.parametrize("by_operator", [True, False])
def test_the_other_way_of_a_built_in(by_operator):
    """Where it has two, `use_fused_step` chooses, and only the default is computed natively."""
    if IS_MXNET_1:
        pytest.skip("each has one way")

    def change(optimizer, step):
        optimizer.use_fused_step = by_operator if step in (2, 3) else True

    compare(lambda: mx.optimizer.create("adam", wd=0.1), steps=6, change=change)
    assert counts("adam")[1] == (0 if by_operator else 2 * len(SHAPES))


def test_states_of_another_form():
    """Which somebody has put into the updater."""
    weights = start("float32")
    runs = [Run(mx.optimizer.create("adam", wd=0.1), weights) for _ in range(2)]
    for step, grads in enumerate(gradients(SHAPES, "float32", 4)):
        for run, on in zip(runs, (False, True)):
            mxadamax.accelerate() if on else mxadamax.decelerate()
            if step == 2:
                states = run.updater.states
                states[0] = list(states[0])
                states[1] = (*states[1], mx.nd.ones((3,)))[:2]
            run.step(grads)
        assert_same_run(*runs, where=f"step {step + 1}")


@pytest.mark.parametrize("wd", [0.0, 0.01])
def test_rows_with_an_option_that_mxnet_refuses(wd):
    """AdaGrad takes no weight decay with row_sparse gradients."""
    rng = np.random.RandomState(0)
    weights = [rng.standard_normal((20, 3)).astype("float32") for _ in range(9)]
    runs = [Run(mx.optimizer.create("adagrad", wd=wd), weights) for _ in range(2)]
    for _ in range(3):
        outcomes = []
        for run, on in zip(runs, (False, True)):
            mxadamax.accelerate() if on else mxadamax.decelerate()
            arrays = [nd(np.ones((20, 3), "float32")).tostype("row_sparse") for _ in range(9)]
            try:
                run.updater(list(range(9)), arrays, list(run.weights))
                mx.nd.waitall()
                outcomes.append("")
            except Exception as error:
                outcomes.append(f"{type(error).__name__}: {error}")
        assert outcomes[0] == outcomes[1]
        assert_same_run(*runs)
    if wd:
        assert counts("adagrad")[0] == 0


def test_an_attribute_that_is_removed():
    """MXNet's own error."""
    errors = []
    for on in (False, True):
        mxadamax.accelerate() if on else mxadamax.decelerate()
        optimizer = mx.optimizer.create("adam")
        run = Run(optimizer, start("float32"))
        run.step(start("float32"))
        del optimizer.beta1
        with pytest.raises(AttributeError) as info:
            run.step(start("float32"))
        errors.append(str(info.value))
    assert errors[0] == errors[1]


def test_a_small_parameter_alone_is_left_to_an_operator():
    compare(lambda: mx.optimizer.Adam(), steps=2, shapes=[(17,)])
    assert counts("adam") == (0, 2)
    compare(lambda: mx.optimizer.Adam(), steps=2, shapes=[(3, 4), (17,)])
    assert counts("adam") == (4, 2)
    compare(lambda: mx.optimizer.Adam(), steps=2, shapes=[(100_000,)])
    assert counts("adam") == (6, 2)
    compare(lambda: mx.optimizer.Adamax(), steps=2, shapes=[(17,)])
    assert counts("adamax") == (2, 0)


class Counted(mx.optimizer.Adam):
    calls = 0

    def update_multi_precision(self, *given):
        self.calls += 1
        super().update_multi_precision(*given)


class Doubled(mx.optimizer.Adam):
    def _get_lrs(self, indices):
        return [2 * lr for lr in super()._get_lrs(indices)]


@pytest.mark.parametrize("cls", [Counted, Doubled])
def test_subclasses_keep_their_own_way(cls):
    runs = compare(lambda: cls(wd=0.01))
    assert getattr(runs[0].optimizer, "calls", 0) == getattr(runs[1].optimizer, "calls", 0)
    assert mxadamax.acceleration_report() == {}


@pytest.mark.parametrize("where", ["object", "class before", "class after"])
def test_methods_that_a_program_replaces_are_called(where, monkeypatch):
    """By a program that knows nothing of this package."""
    calls = []
    name = "update_multi_precision"
    right = getattr(mx.optimizer.Adamax, name)

    def mine(*given):
        calls.append(given)
        right(*given)

    if where == "class before":
        monkeypatch.setattr(mx.optimizer.Adamax, name, mine)
    with mxadamax.accelerated():
        optimizer = mx.optimizer.create("adamax")
        if where == "class after":
            right = getattr(mx.optimizer.Adamax, name)
            mx.optimizer.Adamax.update_multi_precision = mine
        elif where == "object":
            right = getattr(optimizer, name)
            optimizer.update_multi_precision = mine
        Run(optimizer, start("float32")).step(start("float32"))
    assert len(calls) == len(SHAPES)


def test_each_device_has_its_own_states(monkeypatch):
    examined = []
    right = StandIn._examined
    monkeypatch.setattr(
        StandIn, "_examined", lambda self, *given: examined.append(1) or right(self, *given)
    )
    mxadamax.accelerate()
    optimizer = mx.optimizer.Adam()
    updaters = [mx.optimizer.get_updater(optimizer) for _ in range(2)]
    for _ in range(3):
        for device, updater in enumerate(updaters):
            with mx.cpu(device):
                arrays = [mx.nd.ones((3,)) for _ in range(10)]
            updater(list(range(10)), [a.copy() for a in arrays], arrays)
    assert counts("adam") == (60, 0)
    assert len(examined) == 20


def test_subclasses_of_the_updater_keep_their_own_way():
    class Mine(Updater):
        def __call__(self, index, grad, weight):
            super().__call__(index, [2 * g for g in grad], weight)

    found = []
    for on in (False, True):
        mxadamax.accelerate() if on else mxadamax.decelerate()
        updater, weights = Mine(mx.optimizer.Adamax()), [mx.nd.ones((3,)) for _ in range(9)]
        updater(list(range(9)), [mx.nd.ones((3,)) for _ in range(9)], weights)
        found.append([w.asnumpy().tobytes() for w in weights])
    assert found[0] == found[1]


def test_classes_and_objects_stay_what_they_are():
    optimizer = mx.optimizer.create("adam")
    before = type(optimizer), repr(type(optimizer)), sorted(vars(optimizer))
    with mxadamax.accelerated():
        Run(optimizer, start("float32")).step(start("float32"))
        assert mx.optimizer.create("adam").__class__ is mx.optimizer.Adam
        assert isinstance(optimizer, mx.optimizer.Adam)
        assert (type(optimizer), repr(type(optimizer)), sorted(vars(optimizer))) == before
        assert (
            mx.optimizer.Adam.update.__doc__
            == vars(mx.optimizer.Adam.update)["__wrapped__"].__doc__
        )
        assert Optimizer.opt_registry["adam"] is mx.optimizer.Adam


def test_undoing_restores_every_attribute():
    before = {cls: dict(vars(cls)) for cls in (*CLASSES, Optimizer, Updater)}
    mxadamax.accelerate()
    mxadamax.accelerate()
    assert any(dict(vars(cls)) != found for cls, found in before.items())
    mxadamax.decelerate()
    for cls, found in before.items():
        assert dict(vars(cls)) == found
    mxadamax.decelerate()


def test_the_context_leaves_what_was_on_and_undoes_what_was_not():
    with pytest.raises(LookupError), mxadamax.accelerated():
        raise LookupError
    assert not hasattr(Updater.__call__, "__wrapped__")
    mxadamax.accelerate()
    with mxadamax.accelerated():
        pass
    assert hasattr(Updater.__call__, "__wrapped__")


@pytest.mark.parametrize("name", ["adam", "nadam", "sgd"])
def test_files_are_mxnets(name, tmp_path):
    """To the last byte; a process without this package reads them."""
    files = []
    shapes = [(k, 3) for k in range(1, 11)]
    for on in (False, True):
        mxadamax.accelerate() if on else mxadamax.decelerate()
        with network_shapes():
            run = Run(mx.optimizer.create(name, wd=0.01), [np.ones(s, "float32") for s in shapes])
            for grads in gradients(shapes, "float32", 3):
                run.step(grads)
            files.append(run.updater.get_states(dump_optimizer=True))
    mxadamax.decelerate()
    assert files[0] == files[1]
    assert counts(name)[0] > 0
    path = tmp_path / "file"
    path.write_bytes(files[1])
    code = """
import sys
for module in [m for m in sys.modules if m.startswith("mxadamax")]:
    del sys.modules[module]
sys.modules["mxadamax"] = None
updater = mx.optimizer.get_updater(mx.optimizer.create("sgd"))
updater.set_states(open(sys.argv[1], "rb").read())
print(type(updater.optimizer).__module__, len(updater.states))
"""
    module, count = run_python(code, str(path)).split()
    assert module.startswith("mxnet.")
    assert int(count) == len(shapes)


def test_copies_go_their_own_way():
    mxadamax.accelerate()
    optimizer = mx.optimizer.create("nadam")
    run = Run(optimizer, start("float32"))
    run.step(start("float32"))
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        before = optimizer.m_schedule
        Run(other, start("float32")).step(start("float32"))
        assert optimizer.m_schedule == before != other.m_schedule


@pytest.mark.parametrize("name", ["adam", "sgd", "adamax"])
def test_a_trainer(name):
    with network_shapes():
        pair = [Training(mlp, name, {"wd": 0.01}) for _ in range(2)]
        for _ in range(6):
            for training, on in zip(pair, (False, True)):
                mxadamax.accelerate() if on else mxadamax.decelerate()
                training.step()
            found, wanted = (training.weights() for training in pair)
            assert all(found[k].tobytes() == wanted[k].tobytes() for k in wanted)
    assert sum(counts(name)) > 0


@pytest.mark.skipif(IS_MXNET_1, reason="MXNet 1's leave gradients alone")
@pytest.mark.parametrize("name", ["adadelta", "adamax", "dcasgd", "nadam", "sgld"])
def test_gradients_that_are_added_up(name):
    """MXNet 2's rescale them in place, which shows in the next sum."""
    found = []
    for on in (False, True):
        mx.random.seed(5)
        mxadamax.accelerate() if on else mxadamax.decelerate()
        parameter = gluon.Parameter("w", shape=(3,), init="ones", grad_req="add")
        parameter.initialize()
        trainer = gluon.Trainer([parameter], name, {"learning_rate": 0.1})
        for _ in range(4):
            with mx.autograd.record():
                loss = (parameter.data() ** 2).sum()
            loss.backward()
            trainer.step(7)
        found.append(parameter.data().asnumpy().tobytes())
    assert found[0] == found[1]
    assert counts(name) == (0, 4)


def test_trainings_in_threads():
    mxadamax.accelerate()
    found: dict[int, list[bytes]] = {}

    def train(k):
        # Each thread has its own.
        with mx.util.np_shape(True):
            run = Run(mx.optimizer.create("adam", wd=0.01), start("float32"))
            for grads in gradients(SHAPES, "float32", 10):
                run.step(grads)
        found[k] = [w.asnumpy().tobytes() for w in run.weights]

    threads = [threading.Thread(target=train, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(each) for each in found.values()}) == 1


def test_a_step_that_mxnet_refuses():
    """The error is MXNet's own, and nothing has been counted twice."""
    errors = []
    for on in (False, True):
        mxadamax.accelerate() if on else mxadamax.decelerate()
        run = Run(mx.optimizer.create("adam"), start("float32"))
        run.step(start("float32"))
        wrong = [np.ones((2, 2), "float32"), *start("float32")[1:]]
        with pytest.raises(Exception) as info:
            run.step(wrong)
            mx.nd.waitall()
        errors.append(info.type)
        errors.append(run.optimizer._index_update_count[0])
    assert errors[:2] == errors[2:]


def test_the_check_passes_and_can_fail(monkeypatch, capsys):
    monkeypatch.setattr(acceleration, "_to_check", 2)
    mxadamax.accelerate()
    for name in ("adam", "sgd", "nadam"):
        run = Run(
            mx.optimizer.create(name, lr_scheduler=mx.lr_scheduler.FactorScheduler(1, 0.5)),
            start("float32"),
        )
        for grads in gradients(SHAPES, "float32", 4):
            run.step(grads)
        assert f"mxadamax: {name}: the first 2 updates gave MXNet's bits" in capsys.readouterr().err

    native_update = mxadamax.optimizers.base.native_update

    def wrong(twin, indices, weights, grads, states):
        native_update(twin, indices, weights, grads, states)
        weights[4][7] += 1e-3

    monkeypatch.setattr("mxadamax.optimizers.base.native_update", wrong)
    run = Run(mx.optimizer.create("adam", param_idx2name={4: "fifth"}), start("float32"))
    with pytest.raises(
        SystemExit, match=r"adam, step 1: parameter 'fifth': weight is not MXNet's: "
    ):
        run.step(start("float32"))
    assert acceleration_check._steps[run.optimizer] == 1


def test_what_draws_random_numbers_is_not_checked(monkeypatch, capsys):
    """It would draw others than without the check."""
    monkeypatch.setattr(acceleration, "_to_check", 2)
    compare(make_sgld, steps=3)
    assert counts("sgld") == (3 * len(SHAPES), 0)
    message = "mxadamax: sgld: not checked, since it draws random numbers"
    assert capsys.readouterr().err.count(message) == 1


def test_the_report():
    assert str(mxadamax.acceleration_report()) == "no update yet"
    mxadamax.accelerate()
    Run(mx.optimizer.Adamax(), start("float32")).step(start("float32"))
    report = mxadamax.acceleration_report()
    assert report == {"adamax": {"native": len(SHAPES)}}
    assert str(report) == f"adamax: {len(SHAPES)} updates native"
    report["adamax"]["native"] = 0
    assert mxadamax.acceleration_report() != report
