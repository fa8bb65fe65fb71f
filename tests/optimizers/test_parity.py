# SPDX-License-Identifier: Apache-2.0
"""Every optimizer against MXNet's built-ins, bit for bit where it is promised."""

from dataclasses import replace
from functools import partial
from typing import Sequence

import mxnet as mx
import numpy as np
import pytest
from common import SIZES, SPECIAL, Run, assert_same_run, gradients
from family import FAMILY, WITH_BUILT_IN, Member

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.optimizers.arithmetic import SERIES, built_in_class

DTYPES = ("float32", "float64")
OPTIONS = {"wd": 0.013, "clip_gradient": 0.37, "rescale_grad": 1 / 3, "learning_rate": 0.0123}
ADAMAX = FAMILY[0]

dtypes = pytest.mark.parametrize("dtype", DTYPES)
numerics = pytest.mark.parametrize("numerics", ["builtin", "portable"])


def members(table):
    return pytest.mark.parametrize("member", table, ids=str)


def weights(shapes, dtype, seed=1):
    rng = np.random.RandomState(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def divides_by_zero(member, numerics):
    """MXNet 1's AdaMax, whose weights become NaN where gradients have been zero from the start."""
    return ("zeros", SERIES) in member.exceptions and numerics == "builtin"


def scheduler():
    return mx.lr_scheduler.FactorScheduler(step=7, factor=0.9, stop_factor_lr=1e-5)


def pair(shapes, dtype, member=ADAMAX, ours=None, both=None, multipliers=False, numerics="builtin"):
    """Our optimizer and what it must equal, at the same start, with the same options."""
    if numerics == "builtin" and built_in_class(member.built_in) is None:
        pytest.skip("this MXNet has no such built-in")
    if member.name == "lars_ext":
        pytest.skip("adds its norms in another order than the reference step: test_lars_lans.py")
    runs = []
    reference = partial(member.create_reference, dtype)
    for create, own in ((member.create, ours or {}), (reference, {})):
        options = {**(both or {}), **member.options, "numerics": numerics}
        if options.pop("scheduled", False):
            options["lr_scheduler"] = scheduler()
        optimizer = create(**options, **own)
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


@numerics
@dtypes
@members(WITH_BUILT_IN)
def test_every_step_with_everything_on(member, dtype, numerics):
    # Each rule has its own loop, and so its own ends of arrays, which are alike in every step; what
    # changes from step to step are numbers, which are alike for all sizes. 300 steps of everything:
    # test_long_parity.py.
    every = [(size,) for size in SIZES] + [(), (3, 4, 5), (2, 0, 3)]
    few = [(33,), (3, 4, 5), (), (15,)]
    few_steps = 100 if numerics == "builtin" else 30
    longest = member is ADAMAX and dtype == "float32"
    for shapes, steps in (
        [(every, 100), (few, 1000)] if longest else [(every, 10), (few, few_steps)]
    ):
        both = {**OPTIONS, "scheduled": True}
        runs = pair(shapes, dtype, member, both=both, multipliers=True, numerics=numerics)
        compare(runs, gradients(shapes, dtype, steps))


@numerics
@dtypes
@members(WITH_BUILT_IN)
def test_not_a_number_and_infinite_gradients(member, dtype, numerics):
    special = [x for x in SPECIAL if x != 0] if divides_by_zero(member, numerics) else SPECIAL
    shapes = [(1000,), (33,), ()]
    for both in (OPTIONS, {}, {**OPTIONS, "clip_gradient": None}):
        runs = pair(shapes, dtype, member, both=both, numerics=numerics)
        compare(runs, gradients(shapes, dtype, 15, special=special))


@numerics
@dtypes
@members(WITH_BUILT_IN)
def test_options(member, dtype, numerics):
    common = (
        {"clip_gradient": 0.0},
        {"clip_gradient": float("inf"), "wd": 0.1},
        {"learning_rate": 0.0},
        {"learning_rate": 1 / 7, "wd": 1 / 11, "rescale_grad": -3.0, "clip_gradient": 1e-3},
        {"learning_rate": None},
    )
    shapes = [(257,), (3, 5)]
    for both in (*common, *member.variants):
        divides = member.name == "ftml_ext" or (member.name, numerics) == ("ftrl_ext", "portable")
        if divides and both.get("learning_rate") == 0:
            continue
        of_mxnet_1 = IS_MXNET_1 and numerics == "builtin"
        refused = "learning_rate" if member.name == "ftrl_ext" else "wd_lh"
        if (
            of_mxnet_1
            and refused in both
            and (both[refused] is None or not member.options.get("momentum", 1))
        ):
            # The built-in fails.
            continue
        variant = replace(member, options={**member.options, **both})
        special: Sequence[float] = SPECIAL
        if divides_by_zero(member, numerics):
            special = ()
            if both.get("clip_gradient") == 0 or "epsilon" in both:
                continue
        grads = gradients(shapes, dtype, 12, special=special)
        compare(pair(shapes, dtype, variant, numerics=numerics), grads)


@dtypes
def test_a_large_odd_size(dtype):
    shapes = [(100003,)]
    compare(pair(shapes, dtype, both=OPTIONS), gradients(shapes, dtype, 100))


def test_thousands_of_tensors_of_mixed_types():
    rng = np.random.RandomState(3)
    shapes = [(size,) for size in rng.randint(0, 40, 2000)]
    dtypes = [DTYPES[k] for k in rng.randint(0, 2, 2000)]
    ours, built_in = pair(shapes, "float32", both=OPTIONS, multipliers=True)
    for run in (ours, built_in):
        start = [w.astype(dtype) for w, dtype in zip(weights(shapes, "float64"), dtypes)]
        run.weights = Run(run.optimizer, start).weights
    # The second goes by what the first has noted of states.
    for grads in gradients(shapes, "float64", 2):
        step = [grad.astype(dtype) for grad, dtype in zip(grads, dtypes)]
        ours.step(step)
        built_in.step(step)
    assert_same_run(ours, built_in)


@pytest.mark.parametrize("ours", [{"aggregate_num": n} for n in (0, 1, 2, 5, 2**31 - 1)], ids=str)
def test_aggregation_does_not_matter(ours):
    shapes = [(size,) for size in SIZES]
    runs = pair(shapes, "float32", ours=ours, both=OPTIONS, multipliers=True)
    compare(runs, gradients(shapes, "float32", 20))


@dtypes
@members(FAMILY)
def test_readable_definition_equals_the_kernel(member, dtype):
    shapes = [(size,) for size in SIZES] + [()]
    for more in ({}, {"maximize": True}, {"decoupled_wd": True}, {"clip_gradient": None}):
        options = {**OPTIONS, **more, "wd": 0.013}
        runs = [
            Run(member.create(**options, use_fused_step=fused), weights(shapes, dtype))
            for fused in (True, False)
        ]
        compare(runs, gradients(shapes, dtype, 5, special=SPECIAL))


def test_nadam_schedule_advances_once_per_step():
    """So that equal parameters stay equal, unlike in the built-in; one parameter is like it."""
    start = [np.ones(3, "float32")] * 3
    grads = [np.full(3, 0.5, "float32")] * 3
    ours = Run(mxadamax.Nadam(numerics="portable"), start)
    built_in = Run(mx.optimizer.Nadam(), start)
    for _ in range(5):
        ours.step(grads)
        built_in.step(grads)
    first, second, third = (w.asnumpy() for w in ours.weights)
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)
    assert not np.array_equal(built_in.weights[0].asnumpy(), built_in.weights[1].asnumpy())

    shapes = [(50,)]
    nadam = next(member for member in FAMILY if member.built_in == "nadam")
    options = {**OPTIONS, "numerics": "portable"}
    optimizers = mxadamax.Nadam(**options), nadam.create_reference(**options)
    runs = [Run(optimizer, weights(shapes, "float32")) for optimizer in optimizers]
    compare(runs, gradients(shapes, "float32", 50))


def test_nadam_forgets_products_of_another_momentum():
    """Whoever changes the momentum goes on as one who has had it from the beginning."""
    runs = [
        Run(mxadamax.Nadam(beta1=beta1, numerics="portable"), weights([(5,)], "float32"))
        for beta1 in (0.9, 0.8)
    ]
    for grads in gradients([(5,)], "float32", 3):
        for run in runs:
            run.step(grads)
    changed, other = (run.updater.optimizer for run in runs)
    changed.beta1 = 0.8
    assert changed.scalars([0.1], [4]) == other.scalars([0.1], [4])


def test_no_parameters_at_all():
    for use_fused_step in (True, False):
        optimizer = mxadamax.Adamax(use_fused_step=use_fused_step)
        optimizer.update_multi_precision([], [], [], [])
        assert optimizer.num_update == 0


@dtypes
def test_nag_without_momentum_is_sgd(dtype):
    runs = [
        Run(
            cls(
                learning_rate=0.1,
                momentum=0.0,
                wd=0.1,
                use_fused_step=fused,
                numerics="portable",
            ),
            weights([(33,), ()], dtype),
        )
        for cls in (mxadamax.NAG, mxadamax.SGD)
        for fused in (True, False)
    ]
    for grads in gradients([(33,), ()], dtype, 5):
        for run in runs:
            run.step(grads)
    for run in runs[1:]:
        assert_same_run(runs[0], run)


def test_nadam_schedule_is_not_advanced_by_a_refused_step():
    start = weights([(5,), (6,)], "float32")
    runs = [Run(mxadamax.Nadam(schedule_per_parameter=True), start) for _ in range(2)]
    for grads in gradients([(5,), (6,)], "float32", 3):
        # Found out once the schedule has been asked.
        runs[0].optimizer.lr_scheduler = lambda num_update: 1e200
        runs[0].optimizer.set_lr_mult({1: 1e200})
        with pytest.raises(ValueError, match="lr is inf"):
            runs[0].step(grads)
        runs[0].optimizer.lr_scheduler = None
        runs[0].optimizer.set_lr_mult({})
        for run in runs:
            run.step(grads)
        assert_same_run(*runs)


def test_momentum_can_change_but_not_from_zero():
    start = weights([(5,)], "float32")
    runs = pair([(5,)], "float32", Member("sgd_ext", "sgd", {"momentum": 0.9}))
    # MXNet 1's operator leaves the state as it is while the momentum is 0.
    between = 0.1 if IS_MXNET_1 else 0.0
    for momentum, grads in zip((0.9, 0.5, between, 0.7), gradients([(5,)], "float32", 4)):
        for run in runs:
            run.optimizer.momentum = momentum
            run.step(grads)
        assert_same_run(*runs)
    run = Run(mxadamax.SGD(), start)
    run.optimizer.momentum = 0.9
    with pytest.raises(ValueError, match="sgd_ext: momentum must stay 0"):
        run.step([np.ones(5, "float32")])


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
