# SPDX-License-Identifier: Apache-2.0
"""Optimizers that went through pickle, as to a parameter server or a file: the same updates."""

import pickle

import mxnet as mx
import numpy as np
import pytest
from common import Run, assert_same_run, run_python
from family import CLASSES
from mxnet import autograd, gluon

import mxadamax

pytestmark = pytest.mark.quick


def parameters(count=3):
    found = []
    for i in range(count):
        parameter = gluon.Parameter(f"w{i}", shape=(4,))
        parameter.initialize(mx.init.One())
        found.append(parameter)
    return found


def update(optimizer, count=3):
    """What this optimizer makes of ones, with gradients of one, where MXNet calls it by itself."""
    run = Run(optimizer, [np.ones(4, "float32")] * count)
    run.step([np.ones(4, "float32")] * count)
    return [weight.asnumpy().tolist() for weight in run.weights]


@pytest.mark.parametrize("name", ["lr_mult", "wd_mult"])
def test_a_multiplier_that_has_changed_since_the_last_pickling(name, tmp_path):
    """A parameter's own multiplier is the one that travels, whatever an earlier file has said."""
    params = parameters()
    setattr(params[0], name, 0.5)
    setattr(params[1], name, 4.0)
    trainer = gluon.Trainer(params, mxadamax.SGD(learning_rate=0.25, wd=0.5))
    with autograd.record():
        loss = sum(p.data().sum() for p in params)
    loss.backward()
    trainer.step(1)
    trainer.save_states(str(tmp_path / "states"))
    trainer.load_states(str(tmp_path / "states"))
    setattr(params[0], name, 2.0)
    setattr(params[1], name, 1.0)
    # SGD without momentum: 1 - lr * (1 + wd).
    wanted = {"lr_mult": [0.25, 0.625, 0.625], "wd_mult": [0.5, 0.625, 0.625]}[name]
    sent = pickle.loads(pickle.dumps(trainer.optimizer))
    assert update(sent) == [[value] * 4 for value in wanted]
    # Once more on the way, as from a worker's file to a server.
    assert update(pickle.loads(pickle.dumps(sent))) == [[value] * 4 for value in wanted]


def test_multipliers_by_name_travel_beside_those_of_parameters():
    params = parameters()
    params[2].lr_mult = 3.0
    optimizer = mxadamax.SGD(
        learning_rate=0.25, param_dict={2: params[2]}, param_idx2name={0: "w0", 1: "w1"}
    )
    optimizer.set_lr_mult({"w1": 2.0})
    expected = [[0.75] * 4, [0.5] * 4, [0.25] * 4]
    assert update(optimizer) == update(pickle.loads(pickle.dumps(optimizer))) == expected


# These two have no average, and are compared in test_python_built_ins.py.
@pytest.mark.parametrize("name", sorted(CLASSES.keys() - {"GroupAdaGrad", "SGLD", "LBSGD"}))
@pytest.mark.parametrize("again", [pickle.loads, None], ids=["pickle", "set_states"])
def test_training_goes_on_in_the_copy(name, again):
    def make():
        return Run(
            CLASSES[name](learning_rate=0.01, wd=0.1, ema_decay=0.9, clip_global_norm=3.0),
            [np.linspace(-1, 1, 5, dtype="float32"), np.ones((2, 3), "float32")],
        )

    rng = np.random.RandomState(0)
    steps = [[rng.standard_normal(s).astype("float32") for s in ((5,), (2, 3))] for _ in range(6)]
    whole, first, second = make(), make(), make()
    for grads in steps:
        whole.step(grads)
    for grads in steps[:3]:
        first.step(grads)
    if again:
        second.optimizer = again(pickle.dumps(first.optimizer))
        second.updater = mx.optimizer.get_updater(second.optimizer)
        second.assign(first)
        second.updater.set_states(first.updater.get_states())
    else:
        second.updater.set_states(first.updater.get_states(dump_optimizer=True))
        second.optimizer = second.updater.optimizer
    for mine, theirs in zip(second.weights, first.weights):
        mine[:] = theirs
    for grads in steps[3:]:
        second.step(grads)
    assert_same_run(second, whole)
    assert second.optimizer.gradient_norm == whole.optimizer.gradient_norm


RANDOM_STATES = """
import mxnet as mx, numpy as np, mxadamax
optimizer = mxadamax.Adamax(state_dtype={".*": "float16"}, state_seed=3)
updater = mx.optimizer.get_updater(optimizer)
grad = np.random.RandomState(0).standard_normal(200)
for index in ("dense0_weight", "dense0_bias"):
    updater(index, mx.nd.array(grad), mx.nd.ones((200,)))
found = [updater.states[i][0].asnumpy().tobytes().hex() for i in sorted(updater.states)]
"""


def test_random_numbers_of_a_named_parameter_are_those_of_any_process():
    here = {}
    exec(RANDOM_STATES, here)
    assert here["found"][0] != here["found"][1]
    there = run_python(RANDOM_STATES + "print(*found)", PYTHONHASHSEED="12345")
    assert there.split() == here["found"]
