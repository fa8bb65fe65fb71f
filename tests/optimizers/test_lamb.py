# SPDX-License-Identifier: Apache-2.0
"""LAMB computes what the operator of the installed MXNet computes, to the last bit."""

from __future__ import annotations

from typing import Any

import common
import mxnet as mx
import numpy as np
import pytest

import mxadamax

pytestmark = pytest.mark.quick
SHAPES = ((1000,), (33,), (70, 100), (1,), (3, 4, 5))
COMMON = {"wd": 0.03, "rescale_grad": 0.7}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no_correction": {"bias_correction": False},
    "both_bounds": {"lower_bound": 3.0, "upper_bound": 5.0},
    "lower_bound": {"lower_bound": 7.0},
    "upper_bound": {"upper_bound": 0.6},
    "bounds_of_0": {"lower_bound": 0, "upper_bound": 0},
    "clip_gradient": {"clip_gradient": 0.5},
    "no_decay": {"wd": 0.0},
    "beta1": {"beta1": 0.0, "epsilon": 0.1},
    "beta2": {"beta2": 0.0},
    "begin_num_update": {"begin_num_update": 500},
    "large": {"learning_rate": 0.5},
}


def gradients(rng: np.random.RandomState) -> list[np.ndarray]:
    """Of magnitudes that differ, one of them zero now and then."""
    found = [rng.standard_normal(shape) * 10 ** rng.uniform(-4, 1) for shape in SHAPES]
    if rng.uniform() < 0.1:
        found[1][:] = 0
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_built_in_operator(name):
    """Weights and states, after each of 300 steps."""
    rng = np.random.RandomState(1)
    start = [rng.standard_normal(shape) for shape in SHAPES]
    # A norm of zero.
    start[2][:] = 0
    options = {"learning_rate": 0.0123, **COMMON, **OPTIONS[name]}
    updaters = {x: mx.optimizer.get_updater(mx.optimizer.create(x, **options))
                for x in ("lamb", "lamb_ext")}  # fmt: skip
    weights = {x: [mx.nd.array(w) for w in start] for x in updaters}
    for step in range(300):
        grads = gradients(rng)
        for kind, update in updaters.items():
            # The rates of a scheduler are no round numbers.
            update.optimizer.set_learning_rate(options["learning_rate"] * 0.99**step)
            update(list(range(len(SHAPES))), [mx.nd.array(g) for g in grads], weights[kind])
        for i, shape in enumerate(SHAPES):
            ours = [weights["lamb_ext"][i], *updaters["lamb_ext"].states[i]]
            theirs = [weights["lamb"][i], *updaters["lamb"].states[i]]
            for a, b in zip(ours, theirs):
                assert a.asnumpy().tobytes() == b.asnumpy().tobytes(), (step, shape)


def test_special_values_are_the_built_in_s():
    """NaN, infinities and numbers whose squares vanish or overflow."""
    for value in (np.nan, np.inf, -np.inf, 1e-30, 1e25):
        for what in ("weight", "gradient"):
            found = []
            for name in ("lamb", "lamb_ext"):
                arrays = {"weight": np.ones(40, "f"), "gradient": np.linspace(-1, 1, 40, dtype="f")}
                arrays[what][:3] = value
                weight, grad = (mx.nd.array(arrays[x]) for x in ("weight", "gradient"))
                update = mx.optimizer.get_updater(mx.optimizer.create(name, **COMMON))
                update([0], [grad], [weight])
                found.append([weight.asnumpy(), *(s.asnumpy() for s in update.states[0])])
            for a, b in zip(*found):
                np.testing.assert_array_equal(a, b, err_msg=f"{value} in {what}")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("multi_precision", [False, True])
def test_large_arrays_are_updated_in_two_stages(dtype, multi_precision):
    """Arrays too large for the cache are summed first, and updated in chunks by all threads."""
    size = 200_003
    rng = np.random.RandomState(2)
    start, grads = rng.standard_normal(size), rng.standard_normal((3, size))
    found = []
    for fused in (True, False):
        optimizer = mxadamax.LAMB(
            wd=0.1, ema_decay=0.5, multi_precision=multi_precision, use_fused_step=fused
        )
        update = mx.optimizer.get_updater(optimizer)
        weight, small = mx.nd.array(start, dtype=dtype), mx.nd.array(start[:50], dtype=dtype)
        for grad in grads:
            whole = mx.nd.array(grad, dtype=dtype)
            update([0, 1], [whole, whole[:50]], [weight, small])
        arrays = [weight, small, *common.leaves([update.states[i] for i in (0, 1)])]
        found.append([x.asnumpy() for x in arrays])
    for a, b in zip(*found):
        np.testing.assert_array_equal(a, b)


def test_rows_of_a_lazy_update_have_a_norm_of_their_own():
    rng = np.random.RandomState(3)
    start, values = rng.standard_normal((5, 4)), rng.standard_normal((2, 4)).astype("f")
    rows = [1, 3]
    dense = mx.nd.array(start[rows])
    mx.optimizer.get_updater(mxadamax.LAMB(wd=0.1))(0, mx.nd.array(values), dense)
    table = mx.nd.array(start)
    grad = mx.nd.sparse.row_sparse_array((values, rows), shape=table.shape)
    mx.optimizer.get_updater(mxadamax.LAMB(wd=0.1, lazy_update=True))(0, grad, table)
    expected = start.astype("f")
    expected[rows] = dense.asnumpy()
    np.testing.assert_array_equal(table.asnumpy(), expected)


def test_the_norm_decides_with_clipping_and_skipping():
    """What depends on all gradients comes before the sums of each tensor."""
    rng = np.random.RandomState(4)
    grads = [mx.nd.array(rng.standard_normal(30) * 100) for _ in range(2)]
    found = []
    for fused in (True, False):
        optimizer = mxadamax.LAMB(clip_global_norm=0.5, skip_nonfinite=True, use_fused_step=fused)
        update = mx.optimizer.get_updater(optimizer)
        weights = [mx.nd.ones(30), mx.nd.ones(30) * 2]
        update([0, 1], grads, weights)
        update([0, 1], [grads[0], grads[1] * float("nan")], weights)
        assert optimizer.skipped_steps == 1
        found.append([x.asnumpy() for x in weights])
    np.testing.assert_array_equal(*found)
