"""AdaMax against MXNet's built-in, bit for bit."""

import mxnet as mx
import numpy as np
import pytest
from support import SIZES, Run, assert_same_run, gradients

import mxadamax

DTYPES = ("float32", "float64")
OPTIONS = {"wd": 0.013, "clip_gradient": 0.37, "rescale_grad": 1 / 3, "learning_rate": 0.0123}


def weights(shapes, dtype, seed=1):
    rng = np.random.RandomState(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def scheduler():
    return mx.lr_scheduler.FactorScheduler(step=7, factor=0.9, stop_factor_lr=1e-5)


def pair(shapes, dtype, ours=None, both=None, multipliers=False):
    """Our optimizer and the built-in at the same start, with the same options."""
    runs = []
    for name, own in (("adamax_ext", ours or {}), ("adamax", {})):
        options = dict(both or {})
        if options.pop("scheduled", False):
            options["lr_scheduler"] = scheduler()
        optimizer = mx.optimizer.create(name, **options, **own)
        if multipliers:
            optimizer.set_lr_mult({k: 0.5 + 0.3 * k for k in range(0, len(shapes), 2)})
            optimizer.set_wd_mult({k: 0.7 * k for k in range(0, len(shapes), 3)})
        runs.append(Run(optimizer, weights(shapes, dtype)))
    return runs


def compare(runs, grads):
    for t, step in enumerate(grads):
        for run in runs:
            run.step(step)
        assert_same_run(*runs, where=f"step {t + 1}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_thousand_steps_with_everything_on(dtype):
    shapes = [(size,) for size in SIZES] + [(), (3, 4, 5), (2, 0, 3)]
    runs = pair(shapes, dtype, both={**OPTIONS, "scheduled": True}, multipliers=True)
    compare(runs, gradients(shapes, dtype, 1000))


@pytest.mark.parametrize("dtype", DTYPES)
def test_not_a_number_and_infinite_gradients(dtype):
    shapes = [(1000,), (33,), ()]
    for both in (OPTIONS, {}, {**OPTIONS, "clip_gradient": None}):
        compare(pair(shapes, dtype, both=both), gradients(shapes, dtype, 40, special=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_odd_size(dtype):
    shapes = [(100003,)]
    compare(pair(shapes, dtype, both=OPTIONS), gradients(shapes, dtype, 100))


def test_thousands_of_tensors_of_mixed_types():
    rng = np.random.RandomState(3)
    shapes = [(size,) for size in rng.randint(0, 40, 3000)]
    dtypes = [DTYPES[k] for k in rng.randint(0, 2, 3000)]
    ours, built_in = pair(shapes, "float32", both=OPTIONS, multipliers=True)
    for run in (ours, built_in):
        start = [w.astype(dtype) for w, dtype in zip(weights(shapes, "float64"), dtypes)]
        run.weights = Run(run.optimizer, start).weights
    for grads in gradients(shapes, "float64", 3):
        step = [grad.astype(dtype) for grad, dtype in zip(grads, dtypes)]
        ours.step(step)
        built_in.step(step)
    assert_same_run(ours, built_in)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "both",
    [
        {"beta1": 0.0, "beta2": 0.0},
        {"epsilon": 0.0},
        {"epsilon": 1e-3, "clip_gradient": 0.0},
        {"clip_gradient": float("inf"), "wd": 0.1},
        {"learning_rate": 0.0},
        {"begin_num_update": 500},
        {"learning_rate": 1 / 7, "wd": 1 / 11, "rescale_grad": -3.0, "clip_gradient": 1e-3},
        {"learning_rate": None},
    ],
    ids=str,
)
def test_options(dtype, both):
    shapes = [(257,), (3, 5)]
    compare(pair(shapes, dtype, both=both), gradients(shapes, dtype, 60, special=True))


@pytest.mark.parametrize("ours", [{"aggregate_num": n} for n in (1, 2, 5, 2**31 - 1)], ids=str)
def test_aggregation_does_not_matter(ours):
    shapes = [(size,) for size in SIZES]
    runs = pair(shapes, "float32", ours=ours, both=OPTIONS, multipliers=True)
    compare(runs, gradients(shapes, "float32", 20))


@pytest.mark.parametrize("dtype", DTYPES)
def test_readable_definition_equals_the_kernel(dtype):
    shapes = [(size,) for size in SIZES] + [()]
    runs = [
        Run(mxadamax.Adamax(**OPTIONS, use_fused_step=fused), weights(shapes, dtype))
        for fused in (True, False)
    ]
    compare(runs, gradients(shapes, dtype, 50, special=True))


def test_parameters_that_are_not_updated_each_step():
    """Counts run apart, and with them bias corrections and what the scheduler is asked."""
    shapes = [(5,), (6,), (7,)]
    runs = pair(shapes, "float32", both={**OPTIONS, "scheduled": True})
    rng = np.random.RandomState(5)
    for grads in gradients(shapes, "float32", 120):
        chosen = [k for k in rng.permutation(3) if rng.rand() < 0.6]
        for run in runs:
            all_weights = run.weights
            run.indices, run.weights = chosen, [all_weights[k] for k in chosen]
            run.step([grads[k] for k in chosen])
            run.indices, run.weights = [0, 1, 2], all_weights
        assert runs[0].optimizer.num_update == runs[1].optimizer.num_update
        assert runs[0].optimizer._index_update_count == runs[1].optimizer._index_update_count
    assert_same_run(*runs)


def test_a_zero_gradient_from_the_start_leaves_the_weight():
    run = Run(mxadamax.Adamax(), weights([(9,)], "float32"))
    before = run.weights[0].asnumpy()
    run.step([np.zeros(9, "float32")])
    assert np.array_equal(run.weights[0].asnumpy(), before)
