# SPDX-License-Identifier: Apache-2.0
"""Averages of the weights over the steps, and evaluation with them."""

from __future__ import annotations

import math
from functools import lru_cache

import mxnet as mx
import numpy as np
import pytest
from common import (
    SIZES,
    Run,
    assert_same_bits,
    gradients,
    leaves,
    nd,
    network_shapes,
    parameters_of,
)
from family import PORTABLE_FAMILY as FAMILY
from mxnet import autograd, gluon
from sparse_gradients import row_sparse, some_rows

import mxadamax
from mxadamax._mxnet.compatibility import gluon_arrays, seed_all
from mxadamax.dtypes import BFLOAT16
from mxadamax.optimizers.state_layout import map_arrays

OPTIONS = {"wd": 0.013, "clip_gradient": 3.0, "rescale_grad": 1 / 3, "learning_rate": 0.0123}
SHAPES = [(size,) for size in SIZES] + [(), (3, 4, 5), (2, 0)]
STEPS = 30
ULPS = 8
"""How far from the definition averages may be, in units in the last place of the largest weight.

A step rounds two products, their sum and two factors, which is less than two units together, and the
average forgets a part of that with every step.
"""

members = pytest.mark.parametrize("member", FAMILY, ids=str)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
decays = pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])


def weights(shapes, dtype):
    rng = np.random.RandomState(1)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


@lru_cache(maxsize=None)
def gradient_arrays(dtype):
    """As MXNet's arrays, which take longer to make than a step; steps only read them."""
    return [[nd(grad) for grad in grads] for grads in gradients(SHAPES, dtype, STEPS)]


def averaged(history, decay):
    """The definition: of what a weight was after each of its steps."""
    d = np.longdouble(decay)
    t = len(history)
    terms = [d ** (t - i) * (1 - d) * np.asarray(w, "longdouble") for i, w in enumerate(history, 1)]
    return sum(terms) / (1 - d**t)


def ulps(actual, exact, history, decay=0.5):
    """The largest difference, in units in the last place of the largest weight so far.

    Without that of the share: ``1 - d**t`` is a unit of 1 off, which is much where it is small, but
    counts only as far as weights have moved.
    """
    if actual.size == 0:
        return 0.0
    history = np.asarray(history)
    assert actual.dtype == history.dtype
    of_share = 2 * np.spacing(1.0) / (1 - decay) * np.ptp(history, axis=0)
    difference = np.maximum(0, np.abs(actual - exact) - of_share)
    return float(np.max(difference / np.spacing(np.max(np.abs(history), axis=0))))


def average_of(run, index):
    return run.optimizer.average_of(run.updater.states[index], run.weights[index])


@members
@dtypes
@decays
def test_definition(member, dtype, decay):
    """And weights and states are what they are without an average."""
    options = {**OPTIONS, **member.options}
    run = Run(member.create(**options, ema_decay=decay), weights(SHAPES, dtype))
    plain = Run(member.create(**options), weights(SHAPES, dtype))
    history = []
    for t, grads in enumerate(gradient_arrays(dtype), 1):
        for each in (run, plain):
            each.updater(list(run.indices), list(grads), list(each.weights))
        history.append([weight.asnumpy() for weight in run.weights])
        if t not in (1, 2, STEPS):
            continue
        for k in run.indices:
            where = f"step {t}, parameter {k}"
            own, average = run.updater.states[k]
            assert_same_bits(history[-1][k], plain.weights[k].asnumpy(), where)
            assert len(leaves(own)) == len(leaves(plain.updater.states[k]))
            for a, b in zip(leaves(own), leaves(plain.updater.states[k])):
                assert_same_bits(a.asnumpy(), b.asnumpy(), where)
            average = average.asnumpy()
            if t == 1 or decay == 0:
                # But that it may be 0 for -0.
                assert_same_bits(average + 0, history[-1][k] + 0, where)
            past = [arrays[k] for arrays in history]
            assert average.shape == past[0].shape
            assert ulps(average, averaged(past, decay), past, decay) <= ULPS, where


@members
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("multi_precision", [True, False])
def test_16_bit_weights(member, name, multi_precision):
    """Of the weight before it is rounded, in float32."""
    dtype = np.dtype("float16") if name == "float16" else BFLOAT16
    shapes, decay = [(600,), (3, 5), (1,)], 0.9
    options = {**OPTIONS, **member.options}
    optimizer = member.create(**options, multi_precision=multi_precision, ema_decay=decay)
    # The same step in float32, from what is stored, which is the weight before it is rounded.
    wide = member.create(**options)
    stored = [mx.nd.array(w).astype(dtype) for w in weights(shapes, "float32")]
    states = [optimizer.create_state_multi_precision(k, w) for k, w in enumerate(stored)]
    history = []
    indices = list(range(len(shapes)))
    for grads in gradients(shapes, "float32", 12):
        grads = [mx.nd.array(grad).astype(dtype) for grad in grads]
        if not multi_precision:
            before = [w.astype("float32") for w in stored]
            own = [map_arrays(lambda a: a.astype("float32"), state[0]) for state in states]
            wide.fused_step(indices, before, [g.astype("float32") for g in grads], own)
        optimizer.update_multi_precision(indices, stored, grads, states)
        exact = [state[0] for state in states] if multi_precision else before
        history.append([array.asnumpy() for array in exact])
    for k, state in enumerate(states):
        average = optimizer.average_of(state, stored[k])
        assert average is (state[1][1] if multi_precision else state[1])
        past = [arrays[k] for arrays in history]
        assert ulps(average.asnumpy(), averaged(past, decay), past) <= ULPS


@members
@dtypes
def test_readable_definition(member, dtype):
    """MXNet reads the factors as text, which costs a float64 one in eight its last place."""
    shapes = [(1000,), (3, 4, 5), (1,)]
    options = {**OPTIONS, **member.options, "ema_decay": 0.9}
    runs = [
        Run(member.create(**options, use_fused_step=fused), weights(shapes, dtype))
        for fused in (True, False)
    ]
    history = [weights(shapes, dtype)]
    for grads in gradients(shapes, dtype, 10):
        for run in runs:
            run.step(grads)
        history.append([weight.asnumpy() for weight in run.weights])
        for k in run.indices:
            first, second = (average_of(run, k).asnumpy() for run in runs)
            assert ulps(first, second, [arrays[k] for arrays in history]) <= 2


def test_readable_definition_of_16_bit_weights():
    for multi_precision in (True, False):
        averages = []
        for fused in (True, False):
            optimizer = mxadamax.Adam(
                0.1, use_fused_step=fused, ema_decay=0.9, multi_precision=multi_precision
            )
            weight = mx.nd.array(weights([(600,)], "float32")[0]).astype("float16")
            state = optimizer.create_state_multi_precision(0, weight)
            for (grad,) in gradients([(600,)], "float16", 10):
                optimizer.update_multi_precision([0], [weight], [nd(grad)], [state])
            averages.append(optimizer.average_of(state, weight).asnumpy())
            assert averages[-1].dtype == np.float32
        np.testing.assert_allclose(*averages, rtol=1e-6, atol=1e-7)


@members
@dtypes
def test_lazy_updates_leave_the_averages_of_other_rows(member, dtype):
    shapes, decay = [(50, 7), (40,), (3000, 1)], 0.9
    options = {**OPTIONS, **member.options, "lazy_update": True}
    run = Run(member.create(**options, ema_decay=decay), weights(shapes, dtype))
    plain = Run(member.create(**options), weights(shapes, dtype))
    rng = np.random.RandomState(2)
    touched = [np.zeros(shape[0], bool) for shape in shapes]
    before = weights(shapes, dtype)
    for t, grads in enumerate(gradients(shapes, dtype, 8), 1):
        # The last row never.
        rows = [some_rows(len(grad) - 1, rng) for grad in grads]
        held = [row_sparse(g, r, g.shape) for g, r in zip(grads, rows)]
        for each in (run, plain):
            each.updater(list(each.indices), list(held), list(each.weights))
        share = (1 - np.longdouble(decay)) / (1 - np.longdouble(decay) ** t)
        for k, r in enumerate(rows):
            weight, average = run.weights[k].asnumpy(), average_of(run, k).asnumpy()
            assert_same_bits(weight, plain.weights[k].asnumpy())
            touched[k][r] = True
            rest = np.setdiff1d(np.arange(len(weight)), r)
            assert_same_bits(average[rest], before[k][rest])
            expected = (1 - share) * before[k][r] + share * weight[r]
            assert ulps(average[r], expected, [before[k][r], weight[r]]) <= 3
            before[k] = average
    for k, seen in enumerate(touched):
        assert not np.all(seen)
        assert_same_bits(before[k][~seen], run.weights[k].asnumpy()[~seen])


@members
@pytest.mark.parametrize("stype", ["default", "row_sparse"])
def test_row_sparse_gradients_without_lazy_updates(member, stype):
    shapes = [(50, 7), (9, 2, 3)]
    options = {**OPTIONS, **member.options, "ema_decay": 0.9}
    if member.name == "ftrl_ext":
        # MXNet's leaves rows of a row_sparse weight alone.
        options["numerics"] = "portable"
    sparse, dense = (Run(member.create(**options), weights(shapes, "float32")) for _ in range(2))
    sparse.weights = [weight.tostype(stype) for weight in sparse.weights]
    rng = np.random.RandomState(2)
    for grads in gradients(shapes, "float32", 8):
        held = [row_sparse(g, some_rows(len(g), rng), g.shape) for g in grads]
        sparse.updater([0, 1], list(held), list(sparse.weights))
        dense.updater([0, 1], [g.tostype("default") for g in held], list(dense.weights))
    for k in sparse.indices:
        assert average_of(sparse, k).stype == "default"
        assert_same_bits(sparse.weights[k].asnumpy(), dense.weights[k].asnumpy())
        assert_same_bits(average_of(sparse, k).asnumpy(), average_of(dense, k).asnumpy())


@pytest.mark.parametrize("fused", [True, False])
def test_skipped_steps_do_not_count(fused):
    options = {"use_fused_step": fused, "skip_nonfinite": True, "ema_decay": 0.9}
    run = Run(mxadamax.Adam(0.1, **options), weights([(40,), (3, 2)], "float32"))
    history = []
    for t, grads in enumerate(gradients([(40,), (3, 2)], "float32", 12)):
        bad = t in (0, 4, 5, 9)
        if bad:
            grads[t % 2].reshape(-1)[-1] = math.nan
            before = [average_of(run, k).asnumpy() for k in run.indices if t]
        run.step(grads)
        if not bad:
            history.append([weight.asnumpy() for weight in run.weights])
            continue
        for k, average in enumerate(before):
            assert_same_bits(average_of(run, k).asnumpy(), average)
    assert run.optimizer.skipped_steps == 4
    for k in run.indices:
        past = [arrays[k] for arrays in history]
        assert ulps(average_of(run, k).asnumpy(), averaged(past, 0.9), past) <= ULPS


def test_with_low_precision_states():
    """The average is kept in full."""
    for state_dtype in ("float16", "bfloat16", "int8"):
        run = Run(
            mxadamax.Adam(0.1, state_dtype={".*": state_dtype}, ema_decay=0.9),
            weights([(300,), (3, 5)], "float32"),
        )
        history = []
        for grads in gradients([(300,), (3, 5)], "float32", 12):
            run.step(grads)
            history.append([weight.asnumpy() for weight in run.weights])
        for k in run.indices:
            past = [arrays[k] for arrays in history]
            assert ulps(average_of(run, k).asnumpy(), averaged(past, 0.9), past) <= ULPS


def mean_square(array):
    return float(np.mean(np.square(array.asnumpy())))


class Training:
    """A convolution, batch normalization and a dense layer in a Trainer."""

    def __init__(self, optimizer, devices=1, **options):
        seed_all(0)
        self.devices = [mx.cpu(k) for k in range(devices)]
        self.net = gluon.nn.HybridSequential()
        with network_shapes():
            self.net.add(
                gluon.nn.Conv2D(4, 3, in_channels=2, activation="relu"),
                gluon.nn.BatchNorm(in_channels=4),
                gluon.nn.Dense(5, in_units=4 * 6 * 6),
            )
        self.net.initialize(mx.init.Xavier(), ctx=self.devices)
        self.net.hybridize()
        for device in self.devices:
            self.predict(gluon_arrays.zeros((1, 2, 8, 8), ctx=device))
        self.parameters = parameters_of(self.net)
        self.trainer = gluon.Trainer(self.parameters, optimizer, **options)
        self.history = [[] for _ in self.devices]

    def predict(self, x):
        with network_shapes():
            return self.net(x)

    def step(self, t, trainer_step=True):
        rng = np.random.RandomState(t)
        losses = []
        with autograd.record():
            for device in self.devices:
                x = gluon_arrays.array(
                    rng.standard_normal((4, 2, 8, 8)), dtype="float32", ctx=device
                )
                losses.append(((self.predict(x) - 1) ** 2).sum())
        autograd.backward(losses)
        if trainer_step:
            self.trainer.step(4)
            for k, past in enumerate(self.history):
                past.append(self.values(k))

    def values(self, device=0):
        """All parameters by name."""
        return {n: p.data(self.devices[device]).asnumpy() for n, p in self.parameters.items()}

    def output(self):
        """In evaluation, with which oneDNN rearranges weights."""
        x = np.random.RandomState(99).standard_normal((3, 2, 8, 8))
        return self.predict(gluon_arrays.array(x, dtype="float32", ctx=self.devices[0])).asnumpy()

    def trained(self):
        """All names but of running means, which each device has for itself."""
        return [n for n, p in self.parameters.items() if p.grad_req != "null"]

    def assert_averages(self, decay, device=0):
        """Fail unless the weights are the averages of what they were after each step."""
        now = self.values(device)
        for name in self.trained():
            past = [values[name] for values in self.history[device]]
            assert ulps(now[name], averaged(past, decay), past) <= ULPS, name


def assert_same_values(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert_same_bits(value, expected[name], name)


@pytest.fixture
def training():
    """After six steps."""
    found = Training(mxadamax.Adam(0.02, ema_decay=0.8))
    for t in range(6):
        found.step(t)
    return found


def test_evaluation(training):
    before, output = training.values(), training.output()
    with mxadamax.averaged_weights(training.trainer):
        training.assert_averages(0.8)
        inside, averaged_output = training.values(), training.output()
    assert_same_values(training.values(), before)
    assert_same_bits(training.output(), output)
    states = training.trainer._updaters[0].states
    for name, parameter in training.parameters.items():
        k = [each is parameter for each in training.trainer._params].index(True)
        if parameter.grad_req == "null":
            assert_same_bits(inside[name], before[name], name)
            continue
        assert_same_bits(inside[name], states[k][1].asnumpy(), name)
        assert not np.array_equal(inside[name], before[name]), name
    # A net that has those weights.
    other = Training("sgd_ext")
    for name, parameter in other.parameters.items():
        parameter.set_data(gluon_arrays.array(inside[name]))
    np.testing.assert_allclose(other.output(), averaged_output, rtol=1e-6, atol=1e-6)
    assert np.max(np.abs(output - averaged_output)) > 1e-2


def test_evaluation_leaves_no_trace(training):
    """Training goes on as if it had not been."""
    other = Training(mxadamax.Adam(0.02, ema_decay=0.8))
    for t in range(6):
        other.step(t)
    for t in range(6, 10):
        with mxadamax.averaged_weights(training.trainer):
            training.output()
        training.step(t)
        other.step(t)
    assert_same_values(training.values(), other.values())
    with mxadamax.averaged_weights(training.trainer):
        training.assert_averages(0.8)


def test_an_exception_inside(training):
    before = training.values()
    with pytest.raises(KeyError, match="mine"), mxadamax.averaged_weights(training.trainer):
        assert not np.array_equal(training.values()["0.weight"], before["0.weight"])
        raise KeyError("mine")
    assert_same_values(training.values(), before)
    training.step(6)
    with mxadamax.averaged_weights(training.trainer):
        training.assert_averages(0.8)


def test_weights_that_are_averages_already(training):
    before = training.values()
    again = mxadamax.averaged_weights(training.trainer)
    with mxadamax.averaged_weights(training.trainer):
        inside = training.values()
        with pytest.raises(ValueError, match="^averaged_weights: the weights are averages already"):
            again.__enter__()
        # What is refused leaves the outer one as it was.
        assert_same_values(training.values(), inside)
        training.step(6, trainer_step=False)
        with pytest.raises(ValueError, match="inside averaged_weights"):
            training.trainer.step(4)
    now = training.values()
    for name in training.trained():
        assert_same_bits(now[name], before[name], name)


@pytest.mark.parametrize("fused", [True, False])
def test_steps_inside_are_refused(fused):
    training = Training(mxadamax.Adam(0.02, ema_decay=0.8, use_fused_step=fused))
    for t in range(3):
        training.step(t)
    before, count = training.values(), training.trainer.optimizer.num_update
    with mxadamax.averaged_weights(training.trainer):
        training.step(3, trainer_step=False)
        with pytest.raises(
            ValueError, match="^adam_ext: a step inside averaged_weights would be undone$"
        ):
            training.trainer.step(4)
    now = training.values()
    for name in training.trained():
        assert_same_bits(now[name], before[name], name)
    assert training.trainer.optimizer.num_update == count
    training.step(3)
    assert training.trainer.optimizer.num_update == count + 1


@pytest.mark.parametrize("optimizer", ["adam", "adam_ext", mxadamax.SGD(learning_rate=0.1)])
def test_optimizers_that_keep_no_average(optimizer):
    training = Training(optimizer)
    training.step(0)
    before = training.values()
    message = "must be one of mxadamax's with ema_decay, got <.*object"
    with pytest.raises(ValueError, match=message), mxadamax.averaged_weights(training.trainer):
        pass
    assert_same_values(training.values(), before)


def test_before_the_first_step():
    training = Training(mxadamax.Adam(ema_decay=0.9))
    before = training.values()
    with mxadamax.averaged_weights(training.trainer):
        assert_same_values(training.values(), before)
    assert_same_values(training.values(), before)
    training.step(0)
    assert not np.array_equal(training.values()["0.weight"], before["0.weight"])


def test_before_shapes_are_known():
    """Deferred initialization; the forward pass inside makes the weights."""
    net = gluon.nn.Dense(3)
    net.initialize()
    trainer = gluon.Trainer(net.collect_params(), mxadamax.Adam(ema_decay=0.9))
    with mxadamax.averaged_weights(trainer):
        assert net(gluon_arrays.ones((2, 4))).shape == (2, 3)
    with autograd.record():
        loss = net(gluon_arrays.ones((2, 4))).sum()
    loss.backward()
    trainer.step(1)


def test_parameters_that_have_not_been_updated():
    layers = [gluon.nn.Dense(3, in_units=4) for _ in range(2)]
    parameters = {}
    for k, layer in enumerate(layers):
        layer.initialize(mx.init.Xavier())
        parameters.update({f"{k}.{n}": p for n, p in layer.collect_params().items()})
    trainer = gluon.Trainer(parameters, mxadamax.Adam(0.1, ema_decay=0.5))
    for _ in range(3):
        with autograd.record():
            loss = (layers[0](gluon_arrays.ones((2, 4))) ** 2).sum()
        loss.backward()
        trainer.step(1, ignore_stale_grad=True)
    before = [layer.weight.data().asnumpy() for layer in layers]
    with mxadamax.averaged_weights(trainer):
        inside = [layer.weight.data().asnumpy() for layer in layers]
    assert not np.array_equal(inside[0], before[0])
    assert_same_bits(inside[1], before[1])
    for layer, value in zip(layers, before):
        assert_same_bits(layer.weight.data().asnumpy(), value)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_parameter_that_is_frozen_keeps_its_weight(devices):
    """Also one that has been updated before, and so has an average; fine tuning does that."""
    contexts = [mx.cpu(k) for k in range(devices)]
    parameters = [gluon.Parameter(f"w{i}", shape=(3,)) for i in range(2)]
    for parameter in parameters:
        parameter.initialize(mx.init.One(), ctx=contexts)
    trainer = gluon.Trainer(parameters, mxadamax.Adamax(0.1, ema_decay=0.5))

    def step():
        with autograd.record():
            losses = [sum((p.data(ctx) ** 2).sum() for p in parameters) for ctx in contexts]
        autograd.backward(losses)
        trainer.step(1)

    def values():
        return [[p.data(ctx).asnumpy() for ctx in contexts] for p in parameters]

    step(), step()
    parameters[0].grad_req = "null"
    step(), step()
    before = values()
    with mxadamax.averaged_weights(trainer):
        inside = values()
    for k in range(devices):
        assert_same_bits(inside[0][k], before[0][k])
        assert not np.array_equal(inside[1][k], before[1][k])
    for was, now in zip(before, values()):
        for a, b in zip(was, now):
            assert_same_bits(a, b)


@pytest.mark.parametrize(
    "dtype, multi_precision",
    [("float32", False), ("float64", False), ("float16", True), ("float16", False)],
)
def test_weights_inside_have_their_own_type(dtype, multi_precision):
    """Rounded from the average where that has more bits."""
    scale = gluon.Parameter("scale", shape=(50,), dtype=dtype)
    scale.initialize(mx.init.One())
    optimizer = mxadamax.Adamax(0.05, multi_precision=multi_precision, ema_decay=0.9)
    trainer = gluon.Trainer([scale], optimizer)
    rng = np.random.RandomState(0)
    for _ in range(8):
        x = gluon_arrays.array(rng.standard_normal((8, 50)), dtype=dtype)
        with autograd.record():
            loss = ((x * scale.data() - 3 * x) ** 2).mean()
        loss.backward()
        trainer.step(1)
    before = scale.data().asnumpy()
    state = trainer._updaters[0].states[0]
    average = optimizer.average_of(state, scale.data().as_nd_ndarray()).asnumpy()
    assert average.dtype == ("float64" if dtype == "float64" else "float32")
    with mxadamax.averaged_weights(trainer):
        inside = scale.data().asnumpy()
    assert inside.dtype == dtype
    assert np.array_equal(inside, average.astype(dtype))
    assert not np.array_equal(inside, before)
    assert np.array_equal(scale.data().asnumpy(), before)


@pytest.mark.parametrize(
    "options",
    [
        {"kvstore": "device", "update_on_kvstore": False},
        {"kvstore": "device", "update_on_kvstore": True},
        {"kvstore": "local", "update_on_kvstore": True},
        # Replicas that MXNet lets diverge: to each its own average.
        {"kvstore": None},
    ],
    ids=str,
)
def test_two_devices(options):
    one_by_one = {"aggregate_num": 1} if options.get("update_on_kvstore") else {}
    training = Training(mxadamax.Adam(0.02, ema_decay=0.8, **one_by_one), devices=2, **options)
    for t in range(5):
        training.step(t)
    before = [training.values(k) for k in range(2)]
    alike = np.array_equal(before[0]["2.weight"], before[1]["2.weight"])
    assert alike == (options["kvstore"] is not None)
    with mxadamax.averaged_weights(training.trainer):
        for k in range(2):
            training.assert_averages(0.8, k)
            assert not np.array_equal(training.values(k)["2.weight"], before[k]["2.weight"])
    for k in range(2):
        assert_same_values(training.values(k), before[k])
    training.step(5)
    with mxadamax.averaged_weights(training.trainer):
        for k in range(2):
            training.assert_averages(0.8, k)


# MXNet leaves a file open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("devices, on_kvstore", [(1, False), (2, False), (2, True)])
def test_saved_states(devices, on_kvstore, tmp_path):
    def make():
        options = {} if devices == 1 else {"kvstore": "device", "update_on_kvstore": on_kvstore}
        optimizer = mxadamax.Adam(0.02, ema_decay=0.8, aggregate_num=1 if on_kvstore else None)
        return Training(optimizer, devices, **options)

    whole, first, second = make(), make(), make()
    for t in range(8):
        whole.step(t)
    for t in range(4):
        first.step(t)
    first.trainer.save_states(str(tmp_path / "states"))
    first.net.save_parameters(str(tmp_path / "weights"))
    second.net.load_parameters(str(tmp_path / "weights"), ctx=second.devices)
    second.trainer.load_states(str(tmp_path / "states"))
    assert second.trainer.optimizer.ema_decay == 0.8
    inside = []
    for training in (first, second):
        with mxadamax.averaged_weights(training.trainer):
            first_device, last_device = training.values(0), training.values(devices - 1)
        for name in training.trained():
            assert_same_bits(first_device[name], last_device[name], name)
        inside.append({name: first_device[name] for name in training.trained()})
    assert_same_values(*inside)
    for t in range(4, 8):
        second.step(t)
    for device in range(devices):
        values = []
        for training in (whole, second):
            values.append(training.values(device))
            with mxadamax.averaged_weights(training.trainer):
                values.append(training.values(device))
        for name in whole.trained():
            assert_same_bits(values[0][name], values[2][name], name)
            assert_same_bits(values[1][name], values[3][name], name)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda own, average: None, "state is not a tuple of a state and an average"),
        (lambda own, average: own, "state is one NDArray, expected a tuple of 2 NDArrays"),
        (lambda own, average: (own,), "state is not a tuple of a state and an average"),
        (lambda own, average: own[0], "state is not a tuple of a state and an average"),
        (lambda own, average: (own, None), "state is not a tuple of a state and an average"),
        (lambda own, average: (own, own), "state is not a tuple of a state and an average"),
        (lambda own, average: (None, average), "state is None, expected a tuple of 2 NDArrays"),
        (lambda own, average: (average, own), "state is"),
        (
            lambda own, average: (own, mx.nd.ones((4,))),
            r"average has shape \(4,\), weight has \(3,\)",
        ),
        (
            lambda own, average: (own, average.astype("float64")),
            "average has dtype float64, weight has float32",
        ),
        (
            lambda own, average: (own, average.astype("float16")),
            "average has dtype float16, weight has float32",
        ),
        (lambda own, average: (own, own[0]), "average shares memory with the state 0 of"),
    ],
)
def test_foreign_states_are_refused(make, message):
    optimizer = mxadamax.Adam(ema_decay=0.9)
    arrays = [mx.nd.ones((3,)), mx.nd.ones((3,))]
    states = [optimizer.create_state(k, w) for k, w in enumerate(arrays)]
    states[1] = make(*states[1])
    with pytest.raises(ValueError, match="^adam_ext: parameter 1: " + message):
        optimizer.fused_step([0, 1], arrays, [w.copy() for w in arrays], states)
    # Of the first parameter, too.
    for array in (*arrays, states[0][1]):
        assert np.all(array.asnumpy() == 1)
    for array in states[0][0]:
        assert np.all(array.asnumpy() == 0)
    assert optimizer.num_update == 0


def test_an_average_in_the_place_of_none():
    weight = mx.nd.ones((3,))
    state = mxadamax.Adam(ema_decay=0.9).create_state(0, weight)
    with pytest.raises(ValueError, match="^adam_ext: parameter 0: state"):
        mxadamax.Adam().fused_step([0], [weight], [weight.copy()], [state])
    assert np.all(weight.asnumpy() == 1)


def test_averages_of_16_bit_weights_are_float32():
    weight = mx.nd.ones((3,), dtype="float16")
    optimizer = mxadamax.SGD(ema_decay=0.9)
    with pytest.raises(ValueError, match="average has dtype float16, expected float32"):
        optimizer.fused_step([0], [weight], [weight.copy()], [(None, weight.copy())])


@pytest.mark.parametrize("value", [1, 1.5, -0.1, math.nan, math.inf, "0.9", 1j])
def test_decays_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r"^sgd_ext: ema_decay must be in \[0, 1\) or None, got"):
        mxadamax.SGD(ema_decay=value)
    optimizer = mxadamax.SGD(ema_decay=0.5)
    weight = mx.nd.ones((3,))
    state = optimizer.create_state(0, weight)
    optimizer.ema_decay = value
    with pytest.raises(ValueError, match=r"^sgd_ext: ema_decay must be in \[0, 1\) or None, got"):
        optimizer.fused_step([0], [weight], [weight.copy()], [state])
    assert np.all(weight.asnumpy() == 1)


@pytest.mark.parametrize("name, rate", [("sgd_ext", 0.1), ("adam_ext", 0.2), ("adamax_ext", 0.3)])
def test_averages_are_better_where_steps_are_too_large(name, rate):
    """Least squares with noisy labels, few samples a step: the last weights keep jumping about."""
    last = averages = 0.0
    for seed in range(3):
        rng = np.random.RandomState(seed)
        inputs = rng.standard_normal((200, 8)).astype("float32")
        labels = inputs @ rng.standard_normal((8, 1)) + rng.standard_normal((200, 1))
        labels = labels.astype("float32")
        net = gluon.nn.Dense(1, in_units=8)
        net.initialize(mx.init.Zero())
        optimizer = mx.optimizer.create(name, learning_rate=rate, ema_decay=0.98)
        trainer = gluon.Trainer(net.collect_params(), optimizer)
        x, y = gluon_arrays.array(inputs), gluon_arrays.array(labels)
        for _ in range(150):
            some = gluon_arrays.array(rng.randint(0, 200, 4))
            with autograd.record():
                loss = (net(x[some]) - y[some]) ** 2
            loss.backward()
            trainer.step(4)
        solution = np.linalg.lstsq(np.c_[inputs, np.ones(200)], labels, rcond=None)
        best = solution[1][0] / 200
        before = mean_square(net(x) - y)
        last += before - best
        with mxadamax.averaged_weights(trainer):
            averages += mean_square(net(x) - y) - best
        assert mean_square(net(x) - y) == before
    assert 0 < averages < last / 3
