# SPDX-License-Identifier: Apache-2.0
"""Options that need the whole model in one call, where dtypes change from training to training.

MXNet 1 makes a call for each dtype of weights. What counts is the step at hand.
"""

from __future__ import annotations

import pickle

import mxnet as mx
import numpy as np
import pytest
from common import network_shapes, parameters_of
from mxnet.gluon import Trainer, nn

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1, gluon_arrays

pytestmark = pytest.mark.quick

OPTIONS = [{"clip_global_norm": 0.5}, {"skip_nonfinite": True}]
every_option = pytest.mark.parametrize("option", OPTIONS, ids=str)
REFUSAL = "^adamax_ext: {} needs the whole model in one call, but MXNet 1 makes one for each dtype"


@pytest.fixture(autouse=True)
def shapes_of_networks():
    with network_shapes():
        yield


def a_net(dtype="float32"):
    net = nn.Dense(2, in_units=3)
    net.initialize(mx.init.Constant(0.5))
    net.cast(dtype)
    return net


def backward(*nets):
    with mx.autograd.record():
        for net in nets:
            dtype = net.weight.dtype
            loss = (net(gluon_arrays.ones((4, 3), dtype=dtype)) ** 2).sum()
            loss.backward()


def weights_of(*nets):
    return [p.data().asnumpy() for net in nets for p in parameters_of(net).values()]


def all_parameters(*nets):
    return [p for net in nets for p in parameters_of(net).values()]


def assert_trains(trainer, *nets):
    """Steps change weights, as those of an optimizer that has seen nothing before would."""
    for _ in range(2):
        before = weights_of(*nets)
        backward(*nets)
        trainer.step(4)
        for a, b in zip(weights_of(*nets), before):
            assert not np.array_equal(a, b)


@every_option
@pytest.mark.parametrize("other", ["float64", "float32"])
def test_a_network_that_is_cast_between_trainings(option, other):
    optimizer = mxadamax.Adamax(0.125, **option)
    net = a_net()
    assert_trains(Trainer(net.collect_params(), optimizer), net)
    net.cast("float64")
    assert_trains(Trainer(net.collect_params(), optimizer), net)
    net.cast(other)
    assert_trains(Trainer(net.collect_params(), optimizer), net)
    assert optimizer.num_update == 6


@every_option
def test_weights_and_counts_after_a_cast(option):
    """What the optimizer has seen before changes nothing but its counts."""
    used, fresh = (
        mxadamax.SGD(learning_rate=0.01, **option),
        mxadamax.SGD(learning_rate=0.01, **option),
    )
    first = a_net()
    assert_trains(Trainer(first.collect_params(), used), first)
    # A Trainer multiplies what the one before has left.
    used.rescale_grad = 1.0
    nets = [a_net("float64"), a_net("float64")]
    trainers = [Trainer(n.collect_params(), o) for n, o in zip(nets, (used, fresh))]
    for _ in range(3):
        for net, trainer in zip(nets, trainers):
            backward(net)
            trainer.step(4)
        for a, b in zip(weights_of(nets[0]), weights_of(nets[1])):
            assert np.array_equal(a, b)
        assert used.gradient_norm == fresh.gradient_norm


@every_option
def test_a_frozen_part_of_another_dtype(option, tmp_path):
    trained, frozen = a_net(), a_net("float64")
    for parameter in parameters_of(frozen).values():
        parameter.grad_req = "null"
    trainer = Trainer(all_parameters(trained, frozen), "adamax_ext", option)
    assert_trains(trainer, trained)
    file = str(tmp_path / "states")
    mxadamax.save_states(trainer, file)
    assert_trains(trainer, trained)
    mxadamax.load_states(trainer, file)
    assert_trains(trainer, trained)


@every_option
def test_a_part_that_is_frozen_after_a_while(option, tmp_path):
    """The states of both are there; the step is about one."""
    first, second = a_net(), a_net("float64")
    trainer = Trainer(all_parameters(first, second), "adamax_ext", option)
    if not IS_MXNET_1:
        assert_trains(trainer, first, second)
    else:
        backward(first, second)
        with pytest.raises(ValueError, match=REFUSAL.format(next(iter(option)))):
            trainer.step(4)
    for parameter in parameters_of(second).values():
        parameter.grad_req = "null"
    assert_trains(trainer, first)
    file = str(tmp_path / "states")
    trainer.save_states(file)
    trainer.load_states(file)
    assert_trains(trainer, first)


@every_option
def test_a_step_for_the_fresh_gradients_only(option):
    """Two dtypes, and each step is about one of them."""
    first, second = a_net(), a_net("float64")
    trainer = Trainer(all_parameters(first, second), "adamax_ext", option)
    for used, other in [(first, second), (second, first), (first, second)]:
        before, others = weights_of(used), weights_of(other)
        backward(used)
        trainer.step(4, ignore_stale_grad=True)
        assert all(np.array_equal(a, b) for a, b in zip(weights_of(other), others))
        assert not any(np.array_equal(a, b) for a, b in zip(weights_of(used), before))


@every_option
def test_dtypes_do_not_travel_with_an_optimizer(option):
    optimizer = mxadamax.Adamax(0.125, **option)
    net = a_net()
    assert_trains(Trainer(net.collect_params(), optimizer), net)
    double = a_net("float64")
    copy = pickle.loads(pickle.dumps(optimizer))
    assert_trains(Trainer(double.collect_params(), copy), double)


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 makes one call for all dtypes")
@every_option
@pytest.mark.parametrize("swapped", [False, True])
def test_two_dtypes_in_one_step_are_refused_before_anything_is_written(option, swapped):
    nets = [a_net("float64"), a_net()] if swapped else [a_net(), a_net("float64")]
    trainer = Trainer(all_parameters(*nets), "adamax_ext", option)
    before = weights_of(*nets)
    for _ in range(2):
        backward(*nets)
        with pytest.raises(ValueError, match=REFUSAL.format(next(iter(option)))):
            trainer.step(4)
    assert all(np.array_equal(a, b) for a, b in zip(weights_of(*nets), before))
    assert trainer.optimizer.num_update == 0
    # One of them in a trainer of its own goes on.
    assert_trains(Trainer(all_parameters(nets[0]), trainer.optimizer), nets[0])


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 makes one call for all dtypes")
def test_two_dtypes_under_an_optimizer_that_wraps_another():
    class Wrapper(mx.optimizer.Optimizer):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.aggregate_num = inner, inner.aggregate_num

        def create_state_multi_precision(self, index, weight):
            return self.inner.create_state_multi_precision(index, weight)

        def update_multi_precision(self, *arguments):
            self.inner.update_multi_precision(*arguments)

    inner = mxadamax.Adamax(clip_global_norm=1.0)
    weights = [mx.nd.ones((2,)), mx.nd.ones((2,), dtype="float64")]
    updater = mx.optimizer.get_updater(Wrapper(inner))
    with pytest.raises(ValueError, match=REFUSAL.format("clip_global_norm")):
        updater([0, 1], [w.copy() for w in weights], weights)
    assert [w.asnumpy().tolist() for w in weights] == [[1, 1], [1, 1]]
    for index, weight in enumerate(weights):
        updater(index, weight.copy(), weight)
    assert inner.num_update == 1


def test_the_norm_of_the_last_step_whichever_way_it_was_computed():
    optimizer = mxadamax.SGD(learning_rate=0.125, clip_global_norm=100.0)
    weight = mx.nd.zeros((1,))
    assert optimizer.gradient_norm is None
    for t, fused in enumerate([True, False, False, True, True, False], 1):
        optimizer.use_fused_step = fused
        optimizer.update(0, weight, mx.nd.array([float(t)]), None)
        assert optimizer.gradient_norm == t
        for way in (not fused, fused):
            optimizer.use_fused_step = way
            assert_refused_steps_leave_the_norm(optimizer, weight, t)


def assert_refused_steps_leave_the_norm(optimizer, weight, t):
    optimizer.lr = float("nan")
    with pytest.raises(ValueError, match="learning_rate must be in"):
        optimizer.update(0, weight, mx.nd.array([50.0]), None)
    optimizer.lr = 1e200
    optimizer.set_lr_mult({0: 1e200})
    with pytest.raises(ValueError, match="lr is inf"):
        optimizer.update(0, weight, mx.nd.array([50.0]), None)
    optimizer.lr = 0.125
    optimizer.set_lr_mult({})
    assert optimizer.gradient_norm == t
    assert optimizer.num_update == t
