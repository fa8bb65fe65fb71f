# SPDX-License-Identifier: Apache-2.0
"""Signum, FTML and Ftrl against the installed MXNet's built-ins, as they are by default."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from common import SPECIAL, assert_same_bits, gradients, leaves, nd
from sparse_gradients import row_sparse, some_rows

from mxadamax._mxnet.compatibility import IS_MXNET_1

SHAPES = [(33, 3), (1,), (257,), (3, 4, 5)]
OWN = {
    "signum": [{}, {"momentum": 0.0}, {"momentum": 0.123, "wd_lh": 0.3}],
    "ftml": [{}, {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3}],
    "ftrl": [{}, {"lamda1": 0.5, "beta": 0.1}],
}
COMMON = [
    {},
    {"wd": 0.013, "rescale_grad": 1 / 3, "learning_rate": 0.0123},
    {"wd": 0.013, "rescale_grad": 1 / 3, "clip_gradient": 0.37},
    {"wd": 0.013, "clip_gradient": 0.0},
]
CASES = [
    (name, {**own, **more}) for name, all_own in OWN.items() for own in all_own for more in COMMON
]
cases = pytest.mark.parametrize("name, options", CASES, ids=str)


def compare(name, options, dtype, convert=nd, convert_grad=nd, steps=30, shapes=SHAPES):
    """Step ours and the built-in alike; weights and states have the same bits."""
    rng = np.random.RandomState(1)
    start = [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    updaters, weights = [], []
    for registered in (f"{name}_ext", name):
        optimizer = mx.optimizer.create(registered, **options)
        optimizer.set_lr_mult({0: 0.5, 2: 2.0})
        optimizer.set_wd_mult({1: 0.0, 3: 3.0})
        updaters.append(mx.optimizer.get_updater(optimizer))
        weights.append([convert(w) for w in start])
    for t, step in enumerate(gradients(shapes, dtype, steps, special=SPECIAL)):
        grads = [convert_grad(grad) for grad in step]
        for updater, own in zip(updaters, weights):
            for index, (weight, grad) in enumerate(zip(own, grads)):
                updater(index, grad.copy(), weight)
        for index in range(len(shapes)):
            ours, theirs = (
                [own[index], *leaves(updater.states[index])]
                for updater, own in zip(updaters, weights)
            )
            if options.get("multi_precision"):
                # In MXNet 1 and 2 the copy is in other places.
                ours, theirs = (
                    sorted(x, key=lambda a: a.asnumpy().tobytes()) for x in (ours, theirs)
                )
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs):
                a, b = (x.tostype("default").astype("float64").asnumpy() for x in (a, b))
                assert_same_bits(a, b, f"step {t + 1}, parameter {index}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@cases
def test_every_step(name, options, dtype):
    if name == "ftrl" and dtype == "float64":
        pytest.skip("the built-in's states are float32")
    compare(name, options, dtype)


@cases
def test_masters(name, options):
    compare(name, {**options, "multi_precision": True}, "float16")


@pytest.mark.parametrize("stype", ["default", "row_sparse"])
@cases
def test_row_sparse_gradients(name, options, stype):
    rng = np.random.RandomState(2)
    compare(
        *(name, options, "float32"),
        convert=lambda weight: nd(weight).tostype(stype),
        convert_grad=lambda grad: row_sparse(grad, some_rows(len(grad), rng), grad.shape),
        shapes=[(33, 3), (9, 2), (50, 7)],
    )


@pytest.mark.skipif(IS_MXNET_1, reason="MXNet 1's refuses it")
def test_decoupled_decay_without_momentum():
    compare("signum", {"momentum": 0.0, "wd": 0.1, "wd_lh": 0.3}, "float32")


@pytest.mark.parametrize("name", OWN)
def test_a_scheduler(name):
    """With an own rate of its base."""
    rates = []
    for registered in (name, f"{name}_ext"):
        scheduler = mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=0.37)
        optimizer = mx.optimizer.create(registered, lr_scheduler=scheduler)
        update, weight = mx.optimizer.get_updater(optimizer), mx.nd.ones((2,))
        found = []
        for _ in range(5):
            update(0, mx.nd.ones((2,)), weight)
            found.append(optimizer.learning_rate)
        rates.append(found)
    assert rates[0] == rates[1]


@pytest.mark.parametrize("name", ["ftml", "ftrl"])
def test_a_learning_rate_of_zero(name):
    """A step divides by it: NaN in the built-in; portable, an error that leaves all as it was."""
    compare(name, {"learning_rate": 0.0}, "float32", steps=3)
    optimizer = mx.optimizer.create(f"{name}_ext", learning_rate=0.0, numerics="portable")
    update, weight = mx.optimizer.get_updater(optimizer), mx.nd.ones((2,))
    with pytest.raises(ValueError, match=f"^{name}_ext: the learning rate is 0 "):
        update(0, mx.nd.ones((2,)), weight)
    assert weight.asnumpy().tolist() == [1.0, 1.0]
    assert optimizer.num_update == 0
    optimizer.set_learning_rate(0.1)
    update(0, mx.nd.ones((2,)), weight)
    assert weight.asnumpy().tolist() != [1.0, 1.0]


@pytest.mark.parametrize("numerics", ["builtin", "portable"])
def test_signs_without_momentum_see_neither_rescaling_nor_bounds(numerics):
    found = []
    for options in ({}, {"rescale_grad": -3.0}, {"rescale_grad": 0.0}, {"clip_gradient": 0.0}):
        optimizer = mx.optimizer.create("signum_ext", momentum=0.0, numerics=numerics, **options)
        weight = mx.nd.ones((3,))
        mx.optimizer.get_updater(optimizer)(0, mx.nd.array([1e-30, -2.0, 0.0]), weight)
        found.append(weight.asnumpy())
    for each in found:
        assert_same_bits(each, np.array([0.99, 1.01, 1.0], "float32"))
    climbing = mx.optimizer.create("signum_ext", momentum=0.0, numerics=numerics, maximize=True)
    weight = mx.nd.ones((3,))
    mx.optimizer.get_updater(climbing)(0, mx.nd.array([1.0, -2.0, 0.0]), weight)
    assert_same_bits(weight.asnumpy(), np.array([1.01, 0.99, 1.0], "float32"))
