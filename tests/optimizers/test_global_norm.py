# SPDX-License-Identifier: Apache-2.0
"""Clipping by the norm of all gradients together, inside the step."""

import math
import sys

import mxnet as mx
import numpy as np
import pytest
from common import SIZES, Run, assert_same_bits, assert_same_run, gradients, nd, run_python
from family import PORTABLE_FAMILY as FAMILY
from mxnet import autograd, gluon

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1, gluon_arrays, seed_all

SHAPES = [(size,) for size in SIZES] + [(), (3, 4, 5), (40000,)]
RESCALE = 0.25

members = pytest.mark.parametrize("member", FAMILY, ids=str)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def weights(dtype):
    rng = np.random.RandomState(1)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def norm_of(grads, rescale_grad=RESCALE):
    squares = [np.sum(np.square(grad.astype(np.longdouble))) for grad in grads]
    return abs(rescale_grad) * float(np.sqrt(np.sum(squares)))


@members
@dtypes
def test_like_gradients_scaled_before(member, dtype):
    """The same step with a smaller `rescale_grad`; where the norm is small, with the same."""
    options = {**member.options, "wd": 0.0, "clip_gradient": 3.0}
    clipped = Run(
        member.create(**options, rescale_grad=RESCALE, clip_global_norm=100.0), weights(dtype)
    )
    plain = Run(member.create(**options), weights(dtype))
    factors = []
    near = {"float32": (5e-7, 1e-14), "float64": (1e-13, 1e-14)}[dtype]
    if member.create().arithmetic.by_operator:
        # Its `rescale_grad` is of single precision, the factor of the norm is not.
        near = (5e-7, 1e-7)
    for t, grads in enumerate(gradients(SHAPES, dtype, 8)):
        grads = [grad * np.asarray(10.0 ** -(t % 3), dtype) for grad in grads]
        norm = norm_of(grads)
        factors.append(min(1.0, 100.0 / norm))
        plain.optimizer.rescale_grad = RESCALE * factors[-1]
        clipped.step(grads)
        plain.step(grads)
        assert clipped.optimizer.gradient_norm == pytest.approx(norm, rel=1e-14)
        for a, b in zip(clipped.arrays(), plain.arrays()):
            np.testing.assert_allclose(a, b, *near)
    # Some steps were clipped, some were not.
    assert min(factors) < 0.5
    assert max(factors) == 1


def test_vectors_alone():
    """Whose places in memory are remembered after their first step: later ones are clipped too."""
    shapes = [(7,), (300,)]
    matrix = np.zeros((2, 2), "float32")
    runs = []
    for more in ([], [matrix]):
        updater = mx.optimizer.get_updater(mxadamax.Adam(clip_global_norm=1.0))
        weights = [nd(np.ones(shape, "float32")) for shape in shapes] + [nd(m) for m in more]
        # The same arrays in each step, as a Trainer has them.
        grads = [nd(np.zeros(shape, "float32")) for shape in shapes] + [nd(m) for m in more]
        runs.append((updater, weights, grads))
    for found in gradients(shapes, "float32", 5):
        for updater, weights, grads in runs:
            for grad, values in zip(grads, found):
                grad[:] = values
            updater(list(range(len(weights))), grads, weights)
            norm = updater.optimizer.gradient_norm
            assert norm == pytest.approx(norm_of(found, 1), rel=1e-14)
            assert norm > 1
        for mine, other in zip(runs[0][1], runs[1][1]):
            assert_same_bits(mine.asnumpy(), other.asnumpy())


@members
def test_the_norm_is_of_rescaled_gradients_where_nothing_is_clipped(member):
    run = Run(
        member.create(**member.options, rescale_grad=0.5, clip_global_norm=1e3),
        [np.ones(4, "float32")],
    )
    run.step([np.full(4, 100, "float32")])
    assert run.optimizer.gradient_norm == pytest.approx(100.0)


@dtypes
def test_large_bounds_change_nothing(dtype):
    for bound in (1e30, math.inf):
        runs = [
            Run(
                mxadamax.Adam(wd=0.1, rescale_grad=1 / 3, numerics="portable", **options),
                weights(dtype),
            )
            for options in ({}, {"clip_global_norm": bound})
        ]
        for grads in gradients(SHAPES, dtype, 5):
            for run in runs:
                run.step(grads)
            assert_same_run(*runs)
        assert runs[0].optimizer.gradient_norm is None
        assert runs[1].optimizer.gradient_norm == pytest.approx(norm_of(grads, 1 / 3), rel=1e-14)


@members
def test_readable_definition(member):
    runs = [
        Run(
            member.create(use_fused_step=fused, clip_global_norm=0.5, rescale_grad=RESCALE),
            weights("float32"),
        )
        for fused in (True, False)
    ]
    for grads in gradients(SHAPES, "float32", 5):
        for run in runs:
            run.step(grads)
        norms = [run.optimizer.gradient_norm for run in runs]
        assert norms[0] == pytest.approx(norms[1], rel=1e-12)
        for a, b in zip(*(run.arrays() for run in runs)):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-30)


def test_very_large_and_very_small_gradients():
    """Whose squares float32 does not have."""
    for size in (1e30, 1e-30):
        run = Run(
            mxadamax.SGD(learning_rate=1.0, clip_global_norm=1e-3 * size), [np.zeros(10, "float32")]
        )
        run.step([np.full(10, size, "float32")])
        assert run.optimizer.gradient_norm == pytest.approx(size * math.sqrt(10), rel=1e-6)
        expected = -1e-3 * size / math.sqrt(10)
        np.testing.assert_allclose(run.weights[0].asnumpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_no_numbers_go_through(value):
    """As in PyTorch: a norm of NaN makes NaN of all, an infinite one clips what is finite to zero."""
    run = Run(
        mxadamax.SGD(learning_rate=1.0, clip_global_norm=1.0),
        [np.ones(3, "float32"), np.ones(2, "float32")],
    )
    run.step([np.array([1, value, 2], "float32"), np.ones(2, "float32")])
    first, second = (weight.asnumpy() for weight in run.weights)
    assert np.isnan(first[1])
    if math.isnan(value):
        assert np.all(np.isnan(first))
        assert np.all(np.isnan(second))
    else:
        assert np.array_equal(first[[0, 2]], [1, 1])
        assert np.array_equal(second, [1, 1])
    assert run.optimizer.gradient_norm == value or math.isnan(value)


def test_the_same_bits_for_any_number_of_threads():
    code = """
import numpy as np, mxadamax, mxnet as mx
optimizer = mxadamax.Adam(clip_global_norm=1.0)
rng = np.random.RandomState(0)
arrays = [mx.nd.array(rng.standard_normal(n)) for n in (300000, 17, 1000, 100003)]
states = [optimizer.create_state(k, a) for k, a in enumerate(arrays)]
optimizer.fused_step([0, 1, 2, 3], arrays, [a.copy() for a in arrays], states)
print(optimizer.gradient_norm.hex())
"""
    found = {
        run_python(code, **environment)
        for environment in (
            {"OMP_NUM_THREADS": "1", "MXADAMAX_INSTRUCTION_SET": "baseline"},
            {"OMP_NUM_THREADS": "3"},
        )
    }
    assert len(found) == 1
    assert float.fromhex(found.pop()) > 500


def test_16_bit_gradients():
    for dtype in ("float16", "float32"):
        optimizer = mxadamax.SGD(learning_rate=1.0, multi_precision=True, clip_global_norm=1.0)
        weight = mx.nd.zeros((2000,), dtype=dtype)
        grad = mx.nd.array(np.random.RandomState(0).standard_normal(2000)).astype(dtype)
        state = optimizer.create_state_multi_precision(0, weight)
        optimizer.update_multi_precision([0], [weight], [grad], [state])
        assert optimizer.gradient_norm == pytest.approx(norm_of([grad.asnumpy()], 1.0), rel=1e-14)
        assert np.linalg.norm(weight.asnumpy().astype("float64")) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("lazy", [True, False])
def test_row_sparse_gradients(lazy):
    values = np.random.RandomState(0).standard_normal((3, 4)).astype("float32")
    grad = mx.nd.sparse.row_sparse_array((values, [1, 5, 6]), shape=(10, 4))
    optimizer = mxadamax.SGD(learning_rate=1.0, clip_global_norm=0.5, lazy_update=lazy)
    weight = mx.nd.zeros((10, 4))
    optimizer.fused_step([0], [weight], [grad], [None])
    assert optimizer.gradient_norm == pytest.approx(norm_of([values], 1.0), rel=1e-14)
    np.testing.assert_allclose(
        weight.asnumpy()[[1, 5, 6]], -values * 0.5 / norm_of([values], 1.0), rtol=1e-6
    )


def test_no_elements_and_no_gradient():
    with mx.util.np_shape(True):
        run = Run(mxadamax.Adam(clip_global_norm=1.0), [np.zeros((0, 3), "float32")])
        run.step([np.zeros((0, 3), "float32")])
        assert run.optimizer.gradient_norm == 0
    run = Run(mxadamax.Adam(clip_global_norm=1.0), [np.ones(3, "float32")])
    run.step([np.zeros(3, "float32")])
    assert run.optimizer.gradient_norm == 0
    assert np.array_equal(run.weights[0].asnumpy(), [1, 1, 1])


def train(optimizer, clip_by_gluon):
    seed_all(0)
    net = gluon.nn.Dense(5, in_units=20)
    net.initialize(mx.init.Xavier())
    trainer = gluon.Trainer(net.collect_params(), optimizer, kvstore=None)
    rng = np.random.RandomState(0)
    for _ in range(10):
        x = gluon_arrays.array(rng.standard_normal((8, 20)) * 10)
        with autograd.record():
            loss = (net(x) ** 2).sum()
        loss.backward()
        if clip_by_gluon:
            grads = [p.grad() for p in net.collect_params().values()]
            # Gluon's norm is of gradients that have not been rescaled.
            gluon.utils.clip_global_norm(grads, 0.3 * 8)
        trainer.step(8)
    return [p.data().asnumpy() for p in net.collect_params().values()]


def test_trainer_against_gluon():
    ours = train(mxadamax.SGD(learning_rate=0.1, momentum=0.9, clip_global_norm=0.3), False)
    gluons = train(mxadamax.SGD(learning_rate=0.1, momentum=0.9), True)
    for a, b in zip(ours, gluons):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_pickled_optimizers_have_no_norm():
    import pickle

    run = Run(mxadamax.Adam(clip_global_norm=1.0), [np.ones(3, "float32")])
    run.step([np.ones(3, "float32")])
    copy = pickle.loads(pickle.dumps(run.optimizer))
    assert copy.gradient_norm is None
    assert copy.clip_global_norm == 1.0


@pytest.mark.parametrize("aggregate_num", [0, 1, 4])
def test_refused_where_parameters_come_in_parts(aggregate_num):
    message = "clip_global_norm needs the whole model in one call .aggregate_num=numpy.inf., got"
    with pytest.raises(ValueError, match=f"^adam_ext: {message} aggregate_num={aggregate_num}"):
        mxadamax.Adam(clip_global_norm=1.0, aggregate_num=aggregate_num)


def test_refused_on_a_parameter_server(monkeypatch):
    monkeypatch.setenv("DMLC_ROLE", "worker")
    with pytest.raises(ValueError, match="clip_global_norm needs the whole model in one call"):
        mxadamax.Adam(clip_global_norm=1.0)


def test_refused_in_a_key_value_store():
    """Where MXNet drops the exception: the weight raises it instead."""
    store = mx.kv.create("local")
    store.set_optimizer(mxadamax.Adam(clip_global_norm=1.0))
    weight = mx.nd.ones((3,))
    store.init(0, weight)
    hook, sys.unraisablehook = sys.unraisablehook, lambda report: None
    try:
        store.push(0, mx.nd.ones((3,)))
        with pytest.raises(
            mx.MXNetError, match="but a key-value store updates parameters one by one"
        ):
            store.pull(0, out=weight)
            weight.asnumpy()
    finally:
        sys.unraisablehook = hook


@pytest.mark.parametrize("value", [0, -1, math.nan, "1"])
def test_bounds_out_of_range_are_refused(value):
    with pytest.raises(
        ValueError, match=r"^sgd_ext: clip_global_norm must be in \(0, inf\] or None"
    ):
        mxadamax.SGD(clip_global_norm=value)


def test_gradients_are_left_as_they_are():
    grad = nd(np.full(5, 3.0, "float32"))
    optimizer = mxadamax.SGD(learning_rate=1.0, clip_global_norm=1.0)
    optimizer.fused_step([0], [nd(np.ones(5, "float32"))], [grad], [None])
    assert_same_bits(grad.asnumpy(), np.full(5, 3.0, "float32"))


@pytest.mark.parametrize("option", [{"clip_global_norm": 1.0}, {"skip_nonfinite": True}], ids=str)
def test_weights_of_several_dtypes(option):
    """One call of MXNet 2; of MXNet 1 one for each dtype, so there it is refused, by the first."""
    starts = [np.ones(3, "float32"), np.ones(2, "float64")]
    run = Run(mxadamax.SGD(learning_rate=0.5, **option), starts)
    grads = [np.full(3, 2.0, "float32"), np.full(2, 2.0, "float64")]
    if IS_MXNET_1:
        with pytest.raises(
            ValueError, match=f"^sgd_ext: {next(iter(option))} needs the whole model"
        ):
            run.step(grads)
        for weight in run.weights:
            assert np.all(weight.asnumpy() == 1)
        return
    run.step(grads)
    factor = 1 / np.sqrt(20) if "clip_global_norm" in option else 1
    for weight in run.weights:
        np.testing.assert_allclose(weight.asnumpy(), 1 - factor, rtol=1e-6)
