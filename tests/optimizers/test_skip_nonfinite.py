# SPDX-License-Identifier: Apache-2.0
"""Steps with NaN or infinity in a gradient: as if they had never been, also to those queued behind."""

from __future__ import annotations

import math
import pickle
import sys
import threading
from functools import lru_cache

import mxnet as mx
import numpy as np
import pytest
from common import Run, assert_same_bits, gradients, nd, next_scalars, run_python
from family import PORTABLE_FAMILY as FAMILY
from gate import Gate, gated
from hypothesis import given, settings
from hypothesis import strategies as st
from mxnet import autograd, gluon
from nonfinite_steps import BAD, SHAPES, STEPS, copies, counted_outcomes, flat, push, spoiled
from sparse_gradients import row_sparse, some_rows

import mxadamax
from mxadamax._mxnet.compatibility import gluon_arrays, seed_all
from mxadamax._mxnet.engine import native
from mxadamax.dtypes import BFLOAT16

OPTIONS = {"wd": 0.013, "clip_gradient": 3.0, "rescale_grad": 1 / 3, "learning_rate": 0.0123}


members = pytest.mark.parametrize("member", FAMILY, ids=str)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def create(member, **options):
    """With a schedule that depends on the parameter's updates only, where there is one."""
    per_parameter = "schedule_per_parameter" in member.ours
    return member.create(
        **{**OPTIONS, **member.options},
        **({"schedule_per_parameter": False} if per_parameter else {}),
        **options,
    )


@lru_cache(maxsize=None)
def weights(dtype):
    rng = np.random.RandomState(1)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


@lru_cache(maxsize=None)
def all_gradients(dtype):
    return list(gradients(SHAPES, dtype, STEPS))


def start(optimizer, values):
    """A run that has its states before the first step."""
    run = Run(optimizer, values)
    for index, weight in enumerate(run.weights):
        run.updater.states[index] = optimizer.create_state_multi_precision(index, weight)
        run.updater.states_synced[index] = True
    return run


def assert_same(actual, expected, where=""):
    assert len(actual) == len(expected)
    for k, (a, b) in enumerate(zip(actual, expected)):
        assert_same_bits(a.asnumpy(), b.asnumpy(), f"{where}, array {k}")


def good_steps(member, dtype):
    """What a run without the option is after each good step."""
    run = Run(create(member, ema_decay=0.9), weights(dtype))
    found = []
    for t, grads in enumerate(all_gradients(dtype)):
        if t not in BAD:
            push(run, grads)
            found.append(copies(run))
    return found


@members
@dtypes
@pytest.mark.parametrize("waits", [False, True], ids=["pending", "waited"])
def test_as_if_bad_steps_had_never_been(member, dtype, waits):
    run = Run(create(member, ema_decay=0.9, skip_nonfinite=True), weights(dtype))
    found = []
    with counted_outcomes() as counts:
        for t, grads in enumerate(all_gradients(dtype)):
            push(run, spoiled(grads, *BAD[t]) if t in BAD else grads, gate=t == 0 and not waits)
            found.append(copies(run))
            if waits:
                mx.nd.waitall()
    assert counts == ([1] * STEPS if waits else list(range(1, STEPS + 1)))
    expected = iter(good_steps(member, dtype))
    current = copies(start(create(member, ema_decay=0.9), weights(dtype)))
    for t, arrays in enumerate(found):
        current = current if t in BAD else next(expected)
        assert_same(arrays, current, f"step {t}")
    assert run.optimizer.skipped_steps == len(BAD)


def test_a_step_that_runs_is_not_over_yet():
    """The next one is handed over while the engine looks for what makes this one be left out."""
    grads = [mx.nd.ones((3000, 1000)), mx.nd.ones((3000, 1000))]
    grads[0][-1, -1] = math.nan
    weight, expected = nd(np.zeros((3000, 1000), "float32")), nd(np.zeros((3000, 1000), "float32"))
    optimizer, plain = mxadamax.Adam(skip_nonfinite=True), mxadamax.Adam()
    states = [o.create_state(0, weight) for o in (optimizer, plain)]
    for rounds in range(10):
        mx.nd.waitall()
        for grad in grads:
            optimizer.update([0], [weight], [grad], [states[0]])
        plain.update([0], [expected], [grads[1]], [states[1]])
        assert_same_bits(weight.asnumpy(), expected.asnumpy(), f"after {rounds + 1} rounds")
    assert optimizer.skipped_steps == 10


def test_each_number_of_skipped_steps_has_scalars_of_its_own():
    """The norm is of gradients that the table at work rescales, and with it they are clipped."""
    optimizer = mxadamax.SGD(learning_rate=1.0)
    tables = [{**next_scalars(optimizer), "rescale_grad": factor} for factor in (100.0, 2.0, 300.0)]
    report, memo = native().StepStatus(), native().StateCache()
    weights = [nd(np.ones(3, "float32")), nd(np.ones(2, "float32"))]

    def push(value, tables, bound):
        grads = [nd(np.full(weight.shape, value, "float32")) for weight in weights]
        batch = native().FusedUpdate(
            "sgd", weights, grads, [None, None], memo, False, False, False, None
        )
        given = [{**t, "lr": [1.0, 1.0], "wd": [0.0, 0.0]} for t in tables]
        batch.push(given, bound, True, report, 0)
        mx.nd.waitall()
        return report.gradient_norm

    push(math.nan, tables[:1], None)
    assert (report.skipped, report.finished) == (1, 1)
    # Twice 3, squared five times: below the bound.
    assert push(3.0, tables, 14.0) == pytest.approx(math.sqrt(180))
    assert [weight.asnumpy().tolist() for weight in weights] == [[-5] * 3, [-5] * 2]
    assert push(6.0, tables, math.sqrt(180)) == pytest.approx(2 * math.sqrt(180))
    assert np.concatenate([w.asnumpy() for w in weights]) == pytest.approx([-11] * 5)
    assert (report.skipped, report.finished) == (1, 3)


@members
@dtypes
def test_without_bad_gradients_nothing_changes(member, dtype):
    runs = [Run(create(member, skip_nonfinite=skip), weights(dtype)) for skip in (True, False)]
    for grads in all_gradients(dtype)[:4]:
        for run in runs:
            push(run, grads)
    assert_same(*map(copies, runs))
    assert runs[0].optimizer.skipped_steps == 0


@dtypes
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_anywhere(dtype, value):
    run = Run(mxadamax.Adam(skip_nonfinite=True), weights(dtype))
    push(run, all_gradients(dtype)[0])
    before = copies(run)
    expected = 0
    for parameter, grad in enumerate(all_gradients(dtype)[0]):
        for element in {0, grad.size // 3, grad.size // 2, grad.size - 1} if grad.size else ():
            push(run, spoiled(all_gradients(dtype)[0], parameter, element, value))
            assert_same(copies(run), before, f"parameter {parameter}, element {element}")
            expected += 1
            assert run.optimizer.skipped_steps == expected
    assert expected > 10
    push(run, all_gradients(dtype)[0])
    assert not np.array_equal(run.weights[0].asnumpy(), before[0].asnumpy())
    assert run.optimizer.skipped_steps == expected


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000, 40000, 300000])
def test_numbers_whose_squares_overflow_are_numbers(size):
    large = {"float32": 3e38, "float64": 1e200}
    for dtype, value in large.items():
        grad = np.full(size, value, dtype)
        grad[::2] *= -1
        runs = [
            Run(mxadamax.SGD(learning_rate=1e-3, skip_nonfinite=skip), [np.ones(size, dtype)])
            for skip in (True, False)
        ]
        for run in runs:
            push(run, [grad])
        assert runs[0].optimizer.skipped_steps == 0
        assert_same(*map(copies, runs))
        assert np.all(np.abs(runs[0].weights[0].asnumpy()) > 1e30)
        before = copies(runs[0])
        grad[-1] = math.nan
        push(runs[0], [grad])
        assert runs[0].optimizer.skipped_steps == 1
        assert_same(copies(runs[0]), before)


def bits_of(array):
    found = array.asnumpy()
    return found.view(np.uint16) if found.dtype in (np.float16, BFLOAT16) else found


@members
@pytest.mark.parametrize("multi_precision", [True, False])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_16_bit_weights(member, name, multi_precision):
    dtype = np.dtype("float16") if name == "float16" else BFLOAT16
    shapes, steps = [(513,), (3, 7), (1,)], 8
    spoil = {0: math.nan, 3: math.inf, 4: -math.inf}
    found = []
    with counted_outcomes() as counts:
        for skip in (True, False):
            optimizer = create(
                member, skip_nonfinite=skip, multi_precision=multi_precision, ema_decay=0.5
            )
            rng = np.random.RandomState(0)
            arrays = [mx.nd.array(rng.standard_normal(s)).astype(dtype) for s in shapes]
            states = [optimizer.create_state_multi_precision(k, w) for k, w in enumerate(arrays)]
            for t in range(steps):
                grads = [mx.nd.array(rng.standard_normal(s)).astype(dtype) for s in shapes]
                if t in spoil and not skip:
                    continue
                if t in spoil:
                    bad = grads[t % 3].astype("float32").asnumpy()
                    bad.reshape(-1)[-1] = spoil[t]
                    grads[t % 3] = mx.nd.array(bad).astype(dtype)
                if t == 0:
                    grads[0] = gated(grads[0].astype("float32")).astype(dtype)
                optimizer.update_multi_precision([0, 1, 2], arrays, grads, states)
            Gate.opened.set()
            found.append([bits_of(array) for array in [*arrays, *flat(tuple(states))]])
            assert optimizer.skipped_steps == (len(spoil) if skip else 0)
    assert counts == list(range(1, steps + 1))
    for a, b in zip(*found):
        assert_same_bits(a, b) if a.dtype == np.float32 else np.testing.assert_array_equal(a, b)


def test_what_overflows_in_float16_is_infinite():
    weight = mx.nd.ones((3,), dtype="float16")
    optimizer = mxadamax.SGD(learning_rate=1.0, skip_nonfinite=True)
    for value, skipped in ((65504, 0), (65536, 1)):
        grad = mx.nd.full((3,), value).astype("float16")
        optimizer.update([0], [weight], [grad], [None])
        assert optimizer.skipped_steps == skipped


@members
@pytest.mark.parametrize("lazy", [True, False])
def test_row_sparse_gradients(member, lazy):
    shapes = [(50, 7), (40,), (30000, 1)]
    rng = np.random.RandomState(2)
    values = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    options = {"lazy_update": lazy, "ema_decay": 0.9}
    runs = [Run(create(member, skip_nonfinite=skip, **options), values) for skip in (True, False)]
    spoil = {0: (0, math.nan), 3: (2, math.inf), 4: (1, -math.inf)}
    for t, grads in enumerate(gradients(shapes, "float32", 8)):
        rows = [some_rows(len(grad), rng) for grad in grads]
        good = t not in spoil
        if not good:
            where, value = spoil[t]
            rows[where] = np.arange(3, len(grads[where]))
            grads = spoiled(grads, where, -1, value)
        held = [row_sparse(g, r, g.shape) for g, r in zip(grads, rows)]
        for run in runs if good else runs[:1]:
            run.updater(list(run.indices), list(held), list(run.weights))
    assert runs[0].optimizer.skipped_steps == len(spoil)
    assert_same(*map(copies, runs))


def test_rows_that_a_gradient_does_not_hold_do_not_count():
    """And one that holds none is fine."""
    run = Run(mxadamax.Adam(skip_nonfinite=True), [np.ones((6, 3), "float32")])
    values = np.full((6, 3), math.nan, "float32")
    values[[1, 4]] = 1
    for rows in ([1, 4], [], [1, 2]):
        held = row_sparse(values, np.array(rows, "int64"), (6, 3))
        run.updater([0], [held], list(run.weights))
    assert run.optimizer.skipped_steps == 1
    assert np.all(np.isfinite(run.weights[0].asnumpy()))


@members
@dtypes
def test_with_a_bound_of_the_norm(member, dtype):
    runs = [
        Run(create(member, clip_global_norm=0.5, skip_nonfinite=skip), weights(dtype))
        for skip in (True, False)
    ]
    with counted_outcomes() as counts:
        for t, grads in enumerate(all_gradients(dtype)):
            push(runs[0], spoiled(grads, *BAD[t]) if t in BAD else grads, gate=t == 0)
            if t not in BAD:
                push(runs[1], grads)
    assert counts == list(range(1, STEPS + 1))
    assert_same(*map(copies, runs))
    assert runs[0].optimizer.skipped_steps == len(BAD)
    assert runs[0].optimizer.gradient_norm == runs[1].optimizer.gradient_norm


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_norm_of_a_skipped_step_is_not_that_of_an_earlier_one(fused, value):
    run = Run(
        mxadamax.SGD(skip_nonfinite=True, clip_global_norm=5.0, use_fused_step=fused),
        [np.ones(5, "float32")],
    )
    for size in (3.0, value):
        push(run, [np.full(5, size, "float32")])
    assert run.optimizer.skipped_steps == 1
    assert run.optimizer.gradient_norm == value or math.isnan(value)
    assert not math.isfinite(run.optimizer.gradient_norm)


@members
@dtypes
def test_readable_definition(member, dtype):
    runs = [
        Run(create(member, skip_nonfinite=True, use_fused_step=fused), weights(dtype))
        for fused in (True, False)
    ]
    for t, grads in enumerate(all_gradients(dtype)):
        for run in runs:
            push(run, spoiled(grads, *BAD[t]) if t in BAD else grads)
        assert runs[0].optimizer.skipped_steps == runs[1].optimizer.skipped_steps
    assert runs[1].optimizer.skipped_steps == len(BAD)
    assert_same(*map(copies, runs))


def test_nadam_as_the_built_in_counts_is_refused():
    """Its product grows with every call, before anything knows whether the step counts."""
    with pytest.raises(ValueError, match="^nadam_ext: .*schedule_per_parameter"):
        mxadamax.Nadam(schedule_per_parameter=True, skip_nonfinite=True)


def test_counting():
    optimizer = mxadamax.Adam(skip_nonfinite=True)
    assert optimizer.skipped_steps == 0
    run = Run(optimizer, [np.ones(3, "float32")])
    bad = [True, False, True, True, False, True]
    for t, skipped in enumerate(bad):
        push(run, [np.full(3, math.nan if skipped else 1.0, "float32")])
        assert optimizer.skipped_steps == sum(bad[: t + 1])
    assert optimizer.num_update == len(bad)


def test_counts_that_do_not_begin_at_zero():
    """Of a training that goes on."""
    runs = [
        Run(mxadamax.Adam(begin_num_update=500, skip_nonfinite=skip), weights("float32"))
        for skip in (True, False)
    ]
    for t in range(STEPS):
        spoiled_step(runs[0], t)
        if t not in BAD:
            spoiled_step(runs[1], t)
    assert_same(*map(copies, runs))
    assert [run.optimizer.num_update for run in runs] == [500 + STEPS, 500 + STEPS - len(BAD)]


def test_without_the_option_nothing_is_skipped():
    run = Run(mxadamax.Adam(), [np.ones(3, "float32")])
    push(run, [np.full(3, math.nan, "float32")])
    assert np.all(np.isnan(run.weights[0].asnumpy()))
    assert run.optimizer.skipped_steps == 0


def test_a_scheduler_counts_all_steps():
    class Halving(mx.lr_scheduler.LRScheduler):
        def __call__(self, num_update):
            return 0.5**num_update

    run = Run(
        mxadamax.SGD(lr_scheduler=Halving(), learning_rate=1.0, skip_nonfinite=True),
        [np.zeros(1, "float32")],
    )
    bad = [False, True, True, False, True, False]
    for skipped in bad:
        push(run, [np.full(1, math.inf if skipped else -1.0, "float32")])
    # 0.5**t of the step, the last one with the rate of the first step never taken.
    expected = sum(0.5 ** (t + 1) for t, skipped in enumerate(bad) if not skipped)
    assert run.weights[0].asnumpy()[0] == expected
    assert run.optimizer.num_update == len(bad)


def spoiled_step(run, t, dtype="float32", **options):
    grads = all_gradients(dtype)[t]
    push(run, spoiled(grads, *BAD[t]) if t in BAD else grads, **options)


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("name", ["adam_ext", "adamax_ext", "nadam_ext"])
def test_pickling_keeps_what_was_skipped(name, pending):
    """Also what nobody knows yet: pickling waits."""
    whole, first, second = (
        Run(mx.optimizer.create(name, skip_nonfinite=True, ema_decay=0.9), weights("float32"))
        for _ in range(3)
    )
    for t in range(STEPS):
        spoiled_step(whole, t)
    with counted_outcomes() as counts:
        for t in range(5):
            spoiled_step(first, t, gate=pending and t == 0)
        timer = threading.Timer(0.05, Gate.opened.set)
        timer.start()
        saved = first.updater.get_states(dump_optimizer=True)
        timer.join()
        assert counts[-1] == (5 if pending else counts[-1])
        second.updater.set_states(saved)
        second.optimizer = second.updater.optimizer
        second.weights = [weight.copy() for weight in first.weights]
        assert second.optimizer.skipped_steps == 3
        # One more pickling, of the optimizer alone, before anything has been done with the copy.
        assert pickle.loads(pickle.dumps(second.optimizer)).skipped_steps == 3
        Gate.opened.clear()
        for t in range(5, STEPS):
            spoiled_step(second, t, gate=pending and t == 5)
    assert counts[5:] == [1, 2, 3, 4, 5] or not pending
    assert second.optimizer.skipped_steps == whole.optimizer.skipped_steps == len(BAD)
    assert_same(copies(second), copies(whole))


class Training:
    """A dense layer in a Trainer, on one device or several, and data that can be spoiled."""

    def __init__(self, optimizer, devices=1, **options):
        seed_all(0)
        self.devices = [mx.cpu(k) for k in range(devices)]
        self.net = gluon.nn.Dense(5, in_units=20)
        self.net.initialize(mx.init.Xavier(), ctx=self.devices)
        self.parameters = list(self.net.collect_params().values())
        self.trainer = gluon.Trainer(self.net.collect_params(), optimizer, **options)

    def step(self, t, bad=None):
        """With NaN in the data of one device, if any."""
        rng = np.random.RandomState(t)
        parts = [rng.standard_normal((8, 20)) for _ in self.devices]
        if bad is not None:
            parts[bad][3, 7] = math.nan
        with autograd.record():
            losses = [
                (self.net(gluon_arrays.array(x, dtype="float32", ctx=device)) ** 2).sum()
                for x, device in zip(parts, self.devices)
            ]
        autograd.backward(losses)
        self.trainer.step(8)

    def data(self):
        """Per device."""
        return [
            [parameter.data(device).as_nd_ndarray() for parameter in self.parameters]
            for device in self.devices
        ]


@pytest.mark.parametrize("devices", [1, 2])
def test_trainer_with_saved_states(devices, tmp_path):
    options = {"devices": devices}
    if devices > 1:
        options.update(kvstore="device", update_on_kvstore=False)
    # In turn on each device; all of them skip.
    bad = {0: 0, 2: devices - 1, 3: 0, 5: devices - 1}
    good = Training(mxadamax.Adam(0.01, ema_decay=0.9), **options)
    whole = Training(mxadamax.Adam(0.01, ema_decay=0.9, skip_nonfinite=True), **options)
    for t in range(8):
        whole.step(t, bad.get(t))
        if t not in bad:
            good.step(t)
    for mine, theirs in zip(whole.data(), good.data()):
        assert_same(mine, theirs)
    assert whole.trainer.optimizer.skipped_steps == len(bad)
    assert_same(whole.data()[0], whole.data()[-1])

    parts = [
        Training(mxadamax.Adam(0.01, ema_decay=0.9, skip_nonfinite=True), **options)
        for _ in range(2)
    ]
    for t in range(4):
        parts[0].step(t, bad.get(t))
    parts[0].trainer.save_states(str(tmp_path / "states"))
    parts[0].net.save_parameters(str(tmp_path / "weights"))
    parts[1].net.load_parameters(str(tmp_path / "weights"), ctx=parts[1].devices)
    parts[1].trainer.load_states(str(tmp_path / "states"))
    assert parts[1].trainer.optimizer.skipped_steps == 3
    for t in range(4, 8):
        parts[1].step(t, bad.get(t))
    assert parts[1].trainer.optimizer.skipped_steps == len(bad)
    for mine, theirs in zip(parts[1].data(), whole.data()):
        assert_same(mine, theirs)


CALLS = [
    ((0, 1, 2), True),
    ((0, 1, 2), False),
    ((0, 1, 2), True),
    ((1,), False),
    ((1,), True),
    ((2, 0), True),
    ((2, 0), False),
    ((0, 2), False),
    ((3,), True),
    ((0, 1, 2, 3), False),
    ((0, 1, 2, 3), True),
    ((3, 1), False),
    ((3, 1), True),
    ((3, 1), False),
    ((0, 1, 2, 3), False),
]
"""Parameters of a step, and whether it is a bad one."""


@members
@pytest.mark.parametrize("waits", [False, True], ids=["pending", "waited"])
def test_other_parameters_in_each_step(member, waits):
    """What was skipped is counted for each parameter apart."""
    shapes = [(17,), (3, 4), (1,), (1000,)]
    rng = np.random.RandomState(1)
    values = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    runs = [
        Run(create(member, skip_nonfinite=skip, ema_decay=0.9), values) for skip in (True, False)
    ]
    with counted_outcomes() as counts:
        previous = None
        for (indices, bad), grads in zip(CALLS, gradients(shapes, "float32", len(CALLS))):
            grads = [grads[k] for k in indices]
            if not bad:
                push(runs[1], grads, indices=indices)
            if waits or indices != previous:
                # A step on other parameters waits, for good if the gate were closed.
                Gate.opened.set()
                mx.nd.waitall()
                Gate.opened.clear()
            if bad:
                grads = spoiled(grads, len(grads) - 1, -1, math.nan)
            push(runs[0], grads, gate=not waits and indices != previous, indices=indices)
            previous = indices
    assert max(counts) == (1 if waits else 3)
    assert_same(*map(copies, runs))
    assert runs[0].optimizer.skipped_steps == sum(bad for _, bad in CALLS)


def test_a_step_on_other_parameters_waits_for_those_before():
    ones = [np.ones(3, "float32"), np.ones(4, "float32")]
    runs = [Run(mxadamax.Adam(0.1, skip_nonfinite=skip), ones) for skip in (True, False)]
    bad = [np.full(3, math.nan, "float32")]
    with counted_outcomes() as counts:
        push(runs[0], bad, gate=True, indices=[0])
        push(runs[0], bad, indices=[0])
        timer = threading.Timer(0.05, Gate.opened.set)
        timer.start()
        for run in runs:
            push(run, ones, indices=[0, 1])
        timer.join()
    assert counts == [1, 2, 1]
    assert_same(*map(copies, runs))


def test_parameters_that_only_sometimes_get_a_gradient():
    """In a Trainer, by `ignore_stale_grad`."""
    results = []
    for skip in (True, False):
        seed_all(0)
        layers = [gluon.nn.Dense(3, in_units=4) for _ in range(3)]
        parameters = {}
        for k, layer in enumerate(layers):
            layer.initialize(mx.init.Xavier())
            parameters.update({f"{k}.{n}": p for n, p in layer.collect_params().items()})
        trainer = gluon.Trainer(
            parameters, mxadamax.Nadam(0.1, skip_nonfinite=skip, numerics="portable")
        )
        rng = np.random.RandomState(0)
        for _ in range(16):
            used = [layer for layer in layers if rng.rand() < 0.6] or layers[:1]
            x = gluon_arrays.array(rng.standard_normal((5, 4)), dtype="float32")
            bad = rng.rand() < 0.4
            if bad and not skip:
                continue
            with autograd.record():
                loss = sum((layer(x * (math.nan if bad else 1)) ** 2).sum() for layer in used)
            loss.backward()
            trainer.step(5, ignore_stale_grad=True)
        assert (trainer.optimizer.skipped_steps > 3) == skip
        results.append([p.data().as_nd_ndarray() for p in parameters.values()])
    assert_same(*results)


def test_naive_engine():
    """Which runs each step inside its call."""
    code = """
import numpy as np, mxadamax, mxnet as mx
rng = np.random.RandomState(0)
grads = [[mx.nd.array(rng.standard_normal(n)) for n in (300, 17)] for _ in range(9)]
weights = {}
for skip in (True, False):
    for name in ("adam_ext", "adamax_ext", "nadam_ext"):
        options = {"skip_nonfinite": skip, "numerics": "portable"}
        optimizer = mx.optimizer.create(name, **options)
        updater = mx.optimizer.get_updater(optimizer)
        arrays = [mx.nd.ones((300,)), mx.nd.ones((17,))]
        for t, (a, b) in enumerate(grads):
            if t in (0, 3, 4, 8):
                if not skip:
                    continue
                b = b * np.nan
            updater([0, 1], [a.copy(), b.copy()], list(arrays))
        assert optimizer.skipped_steps == (4 if skip else 0)
        weights[skip, name] = b"".join(array.asnumpy().tobytes() for array in arrays)
for name in ("adam_ext", "adamax_ext", "nadam_ext"):
    print(weights[True, name] == weights[False, name] and b"" != weights[True, name])
"""
    assert run_python(code, MXNET_ENGINE_TYPE="NaiveEngine").split() == ["True"] * 3


def test_a_step_that_fails_inside_its_call():
    """It has been run, so it is no longer under way; later ones find their outcomes."""
    code = """
import numpy as np, mxadamax, mxnet as mx
values = np.ones((2, 3), "float32")
found = []
for failing in (True, False):
    optimizer = mxadamax.Adam(skip_nonfinite=True)
    updater = mx.optimizer.get_updater(optimizer)
    weight = mx.nd.ones((6, 3))
    for t in range(9):
        if t in (2, 3) and failing:
            grad = mx.nd.sparse.row_sparse_array((values, [1, 7]), shape=(6, 3))
            try:
                updater(0, grad, weight)
                print("not refused")
            except mx.MXNetError:
                pass
        grad = mx.nd.full((6, 3), np.inf if t in (0, 4) else t)
        updater(0, grad, weight)
    assert optimizer.skipped_steps == 2
    found.append(weight.asnumpy().tobytes())
print(found[0] == found[1])
"""
    assert run_python(code, MXNET_ENGINE_TYPE="NaiveEngine").split() == ["True"]


@pytest.mark.parametrize("aggregate_num", [0, 1, 4])
def test_refused_where_parameters_come_in_parts(aggregate_num):
    message = "skip_nonfinite needs the whole model in one call .aggregate_num=numpy.inf., got"
    with pytest.raises(ValueError, match=f"^adam_ext: {message} aggregate_num={aggregate_num}"):
        mxadamax.Adam(skip_nonfinite=True, aggregate_num=aggregate_num)


def test_refused_on_a_parameter_server(monkeypatch):
    monkeypatch.setenv("DMLC_ROLE", "worker")
    with pytest.raises(ValueError, match="skip_nonfinite needs the whole model in one call"):
        mxadamax.Adam(skip_nonfinite=True)


def test_refused_in_a_key_value_store():
    """Where MXNet drops the exception: the weight raises it instead."""
    store = mx.kv.create("local")
    store.set_optimizer(mxadamax.Adam(skip_nonfinite=True))
    weight = mx.nd.ones((3,))
    store.init(0, weight)
    hook, sys.unraisablehook = sys.unraisablehook, lambda report: None
    try:
        store.push(0, mx.nd.ones((3,)))
        with pytest.raises(mx.MXNetError, match="skip_nonfinite needs the whole model in one call"):
            store.pull(0, out=weight)
            weight.asnumpy()
    finally:
        sys.unraisablehook = hook


@pytest.mark.parametrize("value", [None, 1, "yes", 0.0])
def test_what_is_no_flag_is_refused(value):
    with pytest.raises(ValueError, match="^sgd_ext: skip_nonfinite must be"):
        mxadamax.SGD(skip_nonfinite=value)


def test_a_step_that_is_refused_does_not_count():
    """Nor does it confuse what is known of those in the queue."""
    runs = [
        Run(mxadamax.Adam(skip_nonfinite=skip), [np.ones(3, "float32")]) for skip in (True, False)
    ]
    good, bad = np.ones(3, "float32"), np.full(3, math.nan, "float32")
    with counted_outcomes():
        push(runs[0], [bad], gate=True)
        push(runs[0], [good])
        with pytest.raises(ValueError, match="parameter 0: gradient has shape"):
            push(runs[0], [np.ones(4, "float32")])
        push(runs[0], [bad])
        push(runs[0], [good])
    for _ in range(2):
        push(runs[1], [good])
    assert_same(*map(copies, runs))
    assert runs[0].optimizer.skipped_steps == 2
    assert runs[0].optimizer.num_update == 4


def test_with_automatic_mixed_precision():
    """Overflows by AMP's loss scale: AMP leaves the step out, as with the built-in, and halves it."""
    code = """
import numpy as np, mxadamax, mxnet as mx
from family import built_in
from mxadamax._mxnet.compatibility import IS_MXNET_1, gluon_arrays
from mxnet import autograd, gluon
if IS_MXNET_1:
    from mxnet.contrib import amp
else:
    from mxnet import amp
amp.init()

def train(create, with_amp, **options):
    optimizer = create(learning_rate=0.05, wd=0.01, **options)
    scale = gluon.Parameter("scale", shape=(20,))
    scale.initialize(mx.init.One())
    trainer = gluon.Trainer([scale], optimizer)
    if with_amp:
        amp.init_trainer(trainer)
    rng = np.random.RandomState(0)
    scales = []
    for t in range(12):
        x = gluon_arrays.array(rng.standard_normal((4, 20)), dtype="float32")
        factor = 1e36 if t in (0, 5, 6) else 1.0
        if not with_amp:
            factor = np.inf if factor > 1 else 1.0
        with autograd.record():
            loss = ((x * scale.data() - 3 * x) ** 2).mean() * factor
            if with_amp:
                with amp.scale_loss(loss, trainer) as scaled:
                    autograd.backward(scaled)
            else:
                autograd.backward(loss)
        trainer.step(1)
        if with_amp:
            scales.append(trainer._amp_loss_scaler._next_loss_scale)
    assert np.all(np.isfinite(scale.data().asnumpy()))
    return scale.data().asnumpy(), scales, trainer

ours, scales, trainer = train(mxadamax.Adamax, True, skip_nonfinite=True)
plain, plain_scales, _ = train(mxadamax.Adamax, True)
theirs, its_scales, _ = train(lambda **options: built_in("adamax", **options), True)
alone, _, skipping = train(mxadamax.Adamax, False, skip_nonfinite=True)
assert ours.tobytes() == plain.tobytes() == theirs.tobytes()
assert scales == plain_scales == its_scales
# AMP has looked first.
assert trainer.optimizer.skipped_steps == 0
assert trainer.optimizer.num_update == 9
# Scaling by powers of two is exact, so without AMP the same comes out.
assert skipping.optimizer.skipped_steps == 3
assert alone.tobytes() == ours.tobytes()
assert np.abs(ours - 1).min() > 0.1
assert scales[-1] == 2.0**16 / 8

# Gradients of a float16 parameter, which overflow until the loss scale fits.
results = []
for optimizer in (
    mxadamax.Adam(0.05, multi_precision=True, skip_nonfinite=True),
    built_in("adam", learning_rate=0.05, multi_precision=True, use_fused_step=False),
):
    scale = gluon.Parameter("scale", shape=(20,), dtype="float16")
    scale.initialize(mx.init.One())
    trainer = gluon.Trainer([scale], optimizer)
    amp.init_trainer(trainer)
    x = gluon_arrays.array(np.random.RandomState(0).standard_normal((4, 20)), dtype="float16")
    losses = []
    for t in range(20):
        with autograd.record():
            loss = ((x * scale.data() - 3 * x) ** 2).mean()
            with amp.scale_loss(loss.astype("float32"), trainer) as scaled:
                autograd.backward(scaled)
        trainer.step(1)
        losses.append(loss.asnumpy().item())
    weight = scale.data().asnumpy()
    assert np.all(np.isfinite(weight))
    assert losses[-1] < losses[0]
    results.append((weight.tobytes(), trainer._amp_loss_scaler._next_loss_scale))
assert results[0] == results[1], results
assert results[0][1] < 2.0**16
"""
    run_python(code)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(FAMILY),
    st.lists(
        st.tuples(
            st.sampled_from([None, None, math.nan, math.inf, -math.inf]),
            st.integers(0, 2**20),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
)
def test_any_pattern(member, pattern, fused):
    """Bad steps anywhere, any of them waited for or not: the run of the good ones."""
    shapes = [(7,), (2, 3), (1,)]
    with mx.util.np_shape(True):
        ones = [np.ones(shape, "float32") for shape in shapes]
        options = {"ema_decay": 0.5, "use_fused_step": fused}
        runs = [
            start(create(member, skip_nonfinite=skip, **options), ones) for skip in (True, False)
        ]
        steps = zip(pattern, gradients(shapes, "float32", len(pattern)))
        with counted_outcomes() as counts:
            expected = []
            pending = 0
            for (value, place, wait), grads in steps:
                if value is None:
                    push(runs[1], grads)
                else:
                    where = place % len(shapes)
                    grads = spoiled(grads, where, place % grads[where].size, value)
                # `step`, without the kernel, waits for each gradient.
                push(runs[0], grads, gate=fused and pending == 0)
                pending += 1
                expected.append(pending)
                if wait:
                    Gate.opened.set()
                    mx.nd.waitall()
                    Gate.opened.clear()
                    pending = 0
        assert counts == (expected if fused else [])
        assert_same(*map(copies, runs))
        assert runs[0].optimizer.skipped_steps == sum(value is not None for value, *_ in pattern)
