# SPDX-License-Identifier: Apache-2.0
"""Steps that nothing has waited for: how many there may be, and what is known of them afterwards."""

import math

import mxnet as mx
import numpy as np
import pytest
from common import Run, assert_same_run
from family import PORTABLE_FAMILY as FAMILY
from gate import Gate, gated
from mxnet import autograd, gluon

import mxadamax
from mxadamax.optimizers.step_tracker import MOST_PENDING

members = pytest.mark.parametrize("member", FAMILY, ids=str)


def ones(value=1.0):
    return np.full(3, value, "float32")


def test_most_steps_whose_outcome_is_open(monkeypatch):
    """With one more under way, Python waits, and what is updated stays right."""
    run = Run(mxadamax.Adam(0.01, skip_nonfinite=True), [ones()])
    run.step([ones()])
    mx.nd.waitall()
    waited = []
    original = mx.nd.NDArray.wait_to_read

    def wait(array):
        waited.append(t)
        Gate.opened.set()
        original(array)

    monkeypatch.setattr(mx.nd.NDArray, "wait_to_read", wait)
    Gate.opened.clear()
    try:
        for t in range(MOST_PENDING + 5):
            grad = mx.nd.full((3,), math.inf if t in (1, MOST_PENDING + 2) else 1.0)
            run.updater([0], [gated(grad) if t == 0 else grad], list(run.weights))
    finally:
        Gate.opened.set()
    assert waited[0] == MOST_PENDING + 1 == 33
    assert run.optimizer.skipped_steps == 2
    expected = Run(mxadamax.Adam(0.01), [ones()])
    for _ in range(MOST_PENDING + 4):
        expected.step([ones()])
    assert_same_run(run, expected)


@pytest.mark.parametrize("first", [True, False])
def test_the_norm_is_that_of_the_last_step_of_either_kind(first):
    run = Run(mxadamax.SGD(clip_global_norm=100.0, use_fused_step=first), [np.zeros(4, "float32")])
    for t, fused in enumerate((first, not first, not first, first, not first)):
        run.optimizer.use_fused_step = fused
        run.step([np.full(4, t + 1.0, "float32")])
        assert run.optimizer.gradient_norm == 2 * (t + 1)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("rescale_grad", [0.5, -0.5])
def test_a_norm_has_no_sign(fused, maximize, rescale_grad):
    run = Run(
        mxadamax.SGD(
            1.0,
            clip_global_norm=1.0,
            maximize=maximize,
            rescale_grad=rescale_grad,
            use_fused_step=fused,
        ),
        [np.zeros(4, "float32")],
    )
    run.step([np.full(4, 3.0, "float32")])
    assert run.optimizer.gradient_norm == 3.0
    # A step of length 1, against the gradient, but for the signs of both options.
    expected = 0.5 if maximize == (rescale_grad > 0) else -0.5
    np.testing.assert_allclose(run.weights[0].asnumpy(), np.full(4, expected), rtol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["adam_ext", "nadam_ext"])
def test_devices_count_what_they_skipped_apart(name, fused, tmp_path):
    """Replicas stay the same, and the same as on one device, also after going on from a file."""

    def start(devices, skip):
        parameter = gluon.Parameter("weight", shape=(3,))
        parameter.initialize(mx.init.One(), ctx=devices)
        optimizer = mx.optimizer.create(
            name, learning_rate=0.1, skip_nonfinite=skip, use_fused_step=fused
        )
        options = {"kvstore": "device", "update_on_kvstore": False} if len(devices) > 1 else {}
        return parameter, gluon.Trainer([parameter], optimizer, **options)

    def step(parameter, trainer, value):
        devices = parameter.list_ctx()
        with autograd.record():
            losses = [(parameter.data(ctx) * value).sum() for ctx in devices]
        autograd.backward(losses)
        trainer.step(len(devices))

    two, one = [mx.cpu(0), mx.cpu(1)], [mx.cpu(0)]
    expected, written, parameter = (
        start(d, s) for d, s in ((one, False), (one, True), (two, True))
    )
    for value in (1.0, 2.0, 3.0, 4.0):
        step(*expected, value)
    for value in (1.0, math.nan, 2.0):
        step(*written, value)
    mxadamax.save_states(written[1], tmp_path / "states")
    for _ in range(2):
        # The second time, the trainer has counted already.
        parameter[0].set_data(written[0].data())
        mxadamax.load_states(parameter[1], tmp_path / "states")
        for value in (math.inf, 3.0, math.nan, 4.0):
            step(*parameter, value)
        assert parameter[1].optimizer.skipped_steps == 3
        for device in two:
            found = parameter[0].data(device).asnumpy()
            assert found.tobytes() == expected[0].data().asnumpy().tobytes()


@members
@pytest.mark.parametrize("decoupled_wd", [True, False])
def test_each_parameter_has_its_own_count(member, decoupled_wd):
    """Parameters that join a training later, or come in another order: as if each were alone."""
    options = {**member.options, "wd": 0.1}
    options.update(decoupled_wd=True if member.name == "adamw_ext" else decoupled_wd)
    per_parameter = "schedule_per_parameter" in member.ours
    if per_parameter:
        options["schedule_per_parameter"] = False

    def make(count):
        optimizer = mx.optimizer.create(member.name, **{**options, "ema_decay": 0.7})
        return Run(optimizer, [ones()] * count)

    together, alone = make(3), [make(1) for _ in range(3)]
    rng = np.random.RandomState(0)
    for indices in ([2], [2], [1, 2], [2, 1], [2, 0, 1], [0, 1, 2], [1, 2, 0], [0, 1]):
        grads = {i: rng.standard_normal(3).astype("float32") for i in indices}
        together.updater(
            list(indices),
            [mx.nd.array(grads[i]) for i in indices],
            [together.weights[i] for i in indices],
        )
        for i in indices:
            alone[i].step([grads[i]])
        for i in range(3):
            part = Run(together.optimizer, [])
            part.weights = [together.weights[i]]
            part.updater.states = {0: together.updater.states.get(i)}
            part.indices = [0]
            assert_same_run(part, alone[i], f"parameter {i}")


@members
@pytest.mark.parametrize("fused", [True, False])
def test_a_bound_of_zero_leaves_no_gradient(member, fused):
    """Only weight decay is left, and without that, nothing at all."""
    arithmetic = member.create(**member.options).arithmetic
    if arithmetic.rule == "signsgd" or arithmetic.by_operator:
        pytest.skip("has no bound, or takes 0 for none")
    for wd in (0.0, 0.25):
        found = []
        for value, options in ((5.0, {"clip_gradient": 0}), (0.0, {})):
            options.update(member.options, wd=wd, use_fused_step=fused)
            if member.name != "adamw_ext":
                options["decoupled_wd"] = wd != 0
            found.append(Run(member.create(**options), [ones(), ones(-2.0)]))
            for _ in range(3):
                found[-1].step([ones(value), ones(value)])
        assert_same_run(*found)
