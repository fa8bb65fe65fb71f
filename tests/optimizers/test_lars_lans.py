# SPDX-License-Identifier: Apache-2.0
"""LARS and LANS compute what the built-ins of the installed MXNet compute."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import mxnet as mx
import numpy as np
import pytest

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1

pytestmark = pytest.mark.quick
SHAPES = ((1000,), (33,), (70, 100), (1,), (3, 4, 5), (70_001,), (17,))
NAMES = dict(
    enumerate(("a_weight", "b_gamma", "c_weight", "d_beta", "e_weight", "f_weight", "g_bias"))
)
LISTS: dict[str, Any] = {} if IS_MXNET_1 else {"aggregate_num": 40}
"""With which the built-in LARS updates lists of parameters."""
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "common": {"wd": 0.03, "rescale_grad": 0.7},
    "clip_gradient": {"wd": 0.03, "rescale_grad": 0.7, "clip_gradient": 0.1},
    "clip_gradient of 0": {"wd": 0.03, "clip_gradient": 0.0},
    # With which the operator for lists has norms below zero.
    "rescale_grad below 0": {"wd": 0.03, "rescale_grad": -0.7},
}


def falling(num_update: int) -> float:
    """The learning rate of each update."""
    return 0.3 / (1 + num_update // 3)


def compare(ours: Any, theirs: Any, dtype: str = "float32", steps: int = 12) -> None:
    """Fail where weights or states differ."""
    rng = np.random.RandomState(1)
    start = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    # A norm of zero.
    start[4][:] = 0
    updaters = [mx.optimizer.get_updater(x) for x in (ours, theirs)]
    weights = [[mx.nd.array(w, dtype=dtype) for w in start] for _ in updaters]
    for step in range(steps):
        grads = [rng.standard_normal(s) * 10 ** rng.uniform(-3, 1) for s in SHAPES]
        if step == 4 and ours.registered_name == "lars_ext":
            grads[1][:] = 0
        if step == 6:
            grads[2][0, 0] = np.nan
            grads[0][5] = np.inf
        for update, arrays in zip(updaters, weights):
            given = [mx.nd.array(g, dtype=dtype) for g in grads]
            update(list(range(len(SHAPES))), given, arrays)
        for i, shape in enumerate(SHAPES):
            a, b = (
                [arrays[i], *as_tuple(update.states[i])]
                for update, arrays in zip(updaters, weights)
            )
            for x, y in zip(a, b):
                message = f"{step}, {shape}"
                np.testing.assert_array_equal(x.asnumpy(), y.asnumpy(), err_msg=message)


def as_tuple(state: Any) -> tuple[Any, ...]:
    return () if state is None else state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", OPTIONS)
def test_lars_has_the_bits_of_the_operators_for_lists(name, momentum, dtype):
    """With names, a scheduler, and in MXNet 1 its correction of the momentum."""
    options = {"momentum": momentum, "eta": 0.1, "param_idx2name": NAMES, **OPTIONS[name], **LISTS}
    found = [
        mx.optimizer.create(x, lr_scheduler=falling, learning_rate=None, **options)
        for x in ("lars_ext", "lars")
    ]
    compare(*found, dtype)


@pytest.mark.skipif(IS_MXNET_1, reason="updates lists by default")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", OPTIONS)
def test_lars_has_the_bits_of_the_default_of_mxnet_2(name, momentum, dtype):
    # Rates of 1e-5, which MXNet's operator does not round correctly.
    options = {"learning_rate": 0.011, "momentum": momentum, "eta": 0.001, **OPTIONS[name]}
    compare(*(mx.optimizer.create(x, **options) for x in ("lars_ext", "lars")), dtype, steps=6)


@pytest.mark.skipif(IS_MXNET_1, reason="adds on one thread")
def test_norms_are_of_as_many_parts_as_there_are_threads():
    """In the default of MXNet 2's LARS."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    only = ["-k", "default_of_mxnet_2 and common"]
    environment = {**os.environ, "OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([*command, *only], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(IS_MXNET_1, reason="has no LANS")
@pytest.mark.parametrize("more", [{}, {"lower_bound": 0.5, "upper_bound": 2.0}], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_lans_has_the_bits_of_the_operator(name, more):
    compare(*(mx.optimizer.create(x, **OPTIONS[name], **more) for x in ("lans_ext", "lans")))


@pytest.mark.parametrize("numerics", ["builtin", "portable"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lars_in_operators(numerics, momentum, dtype):
    """The definition in MXNet's operators, with norms of the gradient before it is clipped."""
    options = {"numerics": numerics, "momentum": momentum, "eta": 0.1, **OPTIONS["clip_gradient"]}
    found = [mx.optimizer.create("lars_ext", use_fused_step=x, **options) for x in (True, False)]
    compare(*found, dtype, steps=4)


def test_lans_in_operators():
    found = [mxadamax.LANS(use_fused_step=x, wd=0.03, clip_gradient=0.1) for x in (True, False)]
    compare(*found, steps=4)


@pytest.mark.parametrize("numerics", ["builtin", "portable"])
def test_the_momentum_is_corrected_when_the_rate_changes(numerics):
    """Of all parameters, or in MXNet 1 of as many as MXNet updates in the first call."""
    if numerics == "builtin" and not IS_MXNET_1:
        pytest.skip("MXNet 2 does not correct it")
    optimizer = mxadamax.LARS(
        learning_rate=0.1, momentum=0.5, momentum_correction=True, numerics=numerics
    )
    update = mx.optimizer.get_updater(optimizer)
    count = 6
    weights, nothing = ([f((2,)) for _ in range(count)] for f in (mx.nd.ones, mx.nd.zeros))
    update(list(range(count)), [mx.nd.ones((2,)) for _ in weights], weights)
    before = [update.states[i].asnumpy() for i in range(count)]
    optimizer.set_learning_rate(0.05)
    update.set_states(update.get_states(dump_optimizer=True))
    update(list(range(count)), nothing, weights)
    ratios = [update.states[i].asnumpy()[0] / before[i][0] for i in range(count)]
    corrected = 4 if numerics == "builtin" else count
    np.testing.assert_allclose(ratios, [0.25] * corrected + [0.5] * (count - corrected), 1e-6)


def test_a_step_that_fails_leaves_the_last_learning_rates(monkeypatch):
    optimizer = mxadamax.LARS(momentum=0.5, momentum_correction=True)
    update = mx.optimizer.get_updater(optimizer)
    weight, grad = mx.nd.ones((2,)), mx.nd.ones((2,))
    update([0], [grad], [weight])
    optimizer.set_learning_rate(0.05)
    before = optimizer.last_lr, optimizer.cur_lr
    with monkeypatch.context() as patch:
        # After the step has been counted.
        patch.setattr(mxadamax.LARS, "scalars", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            update([0], [grad], [weight])
    assert (optimizer.last_lr, optimizer.cur_lr) == before
    update([0], [grad], [weight])
    assert (optimizer.last_lr, optimizer.cur_lr) == (before[1], 0.05)
    again = pickle.loads(pickle.dumps(optimizer))
    assert (again.last_lr, again.cur_lr) == (before[1], 0.05)


@pytest.mark.parametrize("name", ["lars_ext", "lans_ext"])
def test_large_arrays_are_updated_in_chunks(name):
    """Arrays too large for the cache give the numbers of small ones, and all threads the same."""
    size = 200_003
    rng = np.random.RandomState(2)
    start, grads = rng.standard_normal(size), rng.standard_normal((3, size))
    found = []
    for fused in (True, False):
        optimizer = mx.optimizer.create(name, wd=0.1, use_fused_step=fused)
        update = mx.optimizer.get_updater(optimizer)
        weight = mx.nd.array(start)
        for grad in grads:
            update([0], [mx.nd.array(grad)], [weight])
        found.append(weight.asnumpy())
    np.testing.assert_array_equal(*found)
