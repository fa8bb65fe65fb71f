# SPDX-License-Identifier: Apache-2.0
"""Steps that fail: the training goes on as if they had never been tried, and no failure is silent."""

import math
import sys
import threading

import mxnet as mx
import numpy as np
import pytest
from common import Run, assert_same_run
from gate import Gate, gated
from mxnet import autograd, gluon

import mxadamax


class ScheduleError(Exception):
    """Nothing that this package raises itself."""


def a_trainer(optimizer, values=(1.0, 2.0, 3.0), **options):
    """A parameter, its trainer, and a step whose gradient is a factor times the parameter."""
    parameter = gluon.Parameter("weight", shape=(len(values),))
    parameter.initialize(mx.init.One(), ctx=options.pop("ctx", mx.cpu()))
    trainer = gluon.Trainer([parameter], optimizer, **options)

    def step(factor=1.0):
        with autograd.record():
            losses = [factor * (parameter.data(ctx) ** 2).sum() for ctx in parameter.list_ctx()]
        autograd.backward(losses)
        trainer.step(1)

    return parameter, trainer, step


@pytest.mark.parametrize("kind", [math.nan, 1e308, ScheduleError("no rate today")], ids=str)
def test_failures_leave_nothing_that_later_steps_wait_for(kind):
    """With more failures than steps may be under way, Python still waits for nothing."""
    # With which a rate of 1e308 is found out only when the step is handed over.
    decay = {"wd": 19.0, "decoupled_wd": True}
    optimizer = mxadamax.Adam(skip_nonfinite=True, learning_rate=0.1, **decay)
    run = Run(optimizer, [np.ones(3, "float32")])
    for _ in range(2):
        run.step([np.ones(3, "float32")])

    def fail(num_update):
        if isinstance(kind, Exception):
            raise kind
        return kind

    optimizer.lr_scheduler = fail
    for _ in range(40):
        with pytest.raises((ValueError, ScheduleError)):
            run.step([np.ones(3, "float32")])
    optimizer.lr_scheduler = None
    Gate.opened.clear()
    # Only where Python waits for the steps below, this opens the gate for them.
    timer = threading.Timer(5, Gate.opened.set)
    timer.start()
    try:
        for _ in range(3):
            run.updater([0], [gated(mx.nd.ones((3,)))], list(run.weights))
        assert not Gate.opened.is_set()
    finally:
        timer.cancel()
        Gate.opened.set()
    expected = Run(mxadamax.Adam(learning_rate=0.1, **decay), [np.ones(3, "float32")])
    for _ in range(5):
        expected.step([np.ones(3, "float32")])
    assert_same_run(run, expected)


@pytest.mark.parametrize("fused_before", [True, False])
def test_a_step_that_is_not_handed_over_leaves_the_norm_of_the_one_before(fused_before):
    optimizer = mxadamax.Adam(
        clip_global_norm=1.0, wd=19.0, decoupled_wd=True, learning_rate=0.1, skip_nonfinite=True
    )
    run = Run(optimizer, [np.ones(2, "float32")])

    def fail(num_update):
        # Found out only when the step is handed over.
        return 1e308

    for _ in range(2):
        optimizer.lr_scheduler = fail
        with pytest.raises(ValueError, match="lr"):
            run.step([np.float32([30, 40])])
        assert optimizer.gradient_norm is None
        assert optimizer.skipped_steps == 0
    optimizer.lr_scheduler = None
    optimizer.use_fused_step = fused_before
    run.step([np.float32([3, 4])])
    optimizer.use_fused_step = True
    optimizer.lr_scheduler = fail
    with pytest.raises(ValueError, match="lr"):
        run.step([np.float32([30, 40])])
    assert optimizer.gradient_norm == 5.0
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize(
    "error", [ScheduleError, ZeroDivisionError, KeyError, RuntimeError, ValueError, TypeError]
)
def test_any_exception_under_a_key_value_store_is_loud(error, monkeypatch):
    """MXNet drops it there; the weight raises it where it is used next."""
    monkeypatch.setattr(sys, "unraisablehook", lambda report: None)
    parameter, trainer, step = a_trainer(
        mxadamax.Adamax(aggregate_num=1),
        ctx=[mx.cpu(0), mx.cpu(1)],
        update_on_kvstore=True,
    )
    step()
    before = parameter.data(mx.cpu(0)).asnumpy()

    def fail(num_update):
        raise error("no rate today")

    trainer._kvstore._updater.optimizer.lr_scheduler = fail
    with pytest.raises(mx.MXNetError, match="no rate today"):
        step()
        parameter.data(mx.cpu(0)).asnumpy()
    trainer._kvstore._updater.optimizer.lr_scheduler = None
    step()
    assert np.all(parameter.data(mx.cpu(0)).asnumpy() < before)
