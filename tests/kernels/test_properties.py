# SPDX-License-Identifier: Apache-2.0
"""Any shapes, types, hyperparameters and aggregation: equal to the built-in, or refused."""

import math

import mxnet as mx
import numpy as np
from common import Run, assert_same_run
from family import PORTABLE_FAMILY as FAMILY
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mxadamax.optimizers.options import FLOAT32, FLOAT64, RANGES, Range

shapes = st.lists(
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)
    | st.tuples(st.integers(0, 300)),
    min_size=1,
    max_size=8,
)
rates = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
options = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(0, 10, allow_subnormal=False),
        "beta1": rates,
        "beta2": rates,
        "epsilon": st.floats(0, 1, allow_subnormal=False),
        "rho": rates,
        "momentum": rates,
        "schedule_decay": st.floats(0, 1, allow_subnormal=False),
        "wd": st.floats(0, 1, allow_subnormal=False),
        "clip_gradient": st.none() | st.floats(1e-30, 1e30, allow_subnormal=False),
        "rescale_grad": st.floats(-1e3, 1e3, allow_subnormal=False),
        "begin_num_update": st.integers(0, 10000),
    },
)
aggregations = st.sampled_from([None, 1, 2, 3, math.inf])


# FTML refuses a rate of 0, and norms are added in another order; MXNet's
# engine flushes denormal numbers to zero, but not where it copies weights, as for DCASGD.
EQUAL = [
    member
    for member in FAMILY
    if member.built_in and member.name not in ("dcasgd_ext", "ftml_ext", "lans_ext", "lars_ext")
]


def values(dtype, shape):
    width = np.dtype(dtype).itemsize * 8
    return hnp.arrays(dtype, shape, elements=st.floats(width=width))


@settings(max_examples=250, deadline=None)
@given(
    st.data(),
    st.sampled_from(EQUAL),
    shapes,
    options,
    aggregations,
)
def test_equal_to_the_built_in(data, member, shapes, options, aggregate_num):
    optimizer = type(member.create())
    known = {*optimizer.ranges, *RANGES, "learning_rate", "begin_num_update"}
    options = {k: x for k, x in options.items() if k in known and k not in member.options}
    # Its portable step refuses to divide by a rate of 0.
    assume(member.name != "ftrl_ext" or options.get("learning_rate") != 0)
    dtype = st.sampled_from(["float32", "float64"])
    dtypes = [data.draw(dtype) for _ in shapes]
    if member.ours.get("schedule_per_parameter"):
        # Its result depends on the order of parameters, and MXNet sorts what it aggregates by type.
        dtypes = [dtypes[0]] * len(shapes)
    with mx.util.np_shape(True):
        start = [data.draw(values(dtype, shape)) for dtype, shape in zip(dtypes, shapes)]
        runs = [
            Run(member.create(aggregate_num=aggregate_num, **options), start),
            Run(member.create_reference(**options), start),
        ]
        for _ in range(data.draw(st.integers(1, 4))):
            grads = [data.draw(values(dtype, shape)) for dtype, shape in zip(dtypes, shapes)]
            for run in runs:
                run.step(grads)
            assert_same_run(*runs)


anything = (
    st.none()
    | st.floats()
    | st.integers(-(10**6), 10**6)
    | st.text(max_size=3)
    | st.booleans()
    | st.just(np.float32(0.5))
    | st.just(np.array([0.5]))
    | st.just(1j)
)
flags = ["maximize", "decoupled_wd", "lazy_update", "use_fused_step"]
hyperparameters = [
    (member, name)
    for member in FAMILY
    for name in [
        *type(member.create()).ranges,
        *RANGES,
        "learning_rate",
        *flags,
    ]
]


@settings(max_examples=800, deadline=None)
@given(st.sampled_from(hyperparameters), anything)
def test_a_hyperparameter_is_taken_or_refused_by_name(hyperparameter, value):
    """Whatever it is: no other exception, and nothing taken that makes a step fail."""
    member, name = hyperparameter
    with mx.util.np_shape(True):
        try:
            optimizer = member.create(**{name: value})
        except ValueError as error:
            assert str(error).startswith(f"{member.name}: {name} must be")
            assert f"got {value!r}" in str(error)
            return
        run = Run(optimizer, [np.ones(3, "float32")])
        run.step([np.ones(3, "float32")])
        assert np.all(np.isfinite(run.weights[0].asnumpy())) or abs(value) > 1e30


@given(
    st.floats(),
    st.floats(allow_nan=False),
    st.floats(allow_nan=False),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(0.0, math.inf), FLOAT32, FLOAT64, (1.0, 2.0)]),
)
def test_ranges(value, low, high, includes_high, includes_low, magnitudes):
    low, high = min(low, high), max(low, high)
    inside = low < value < high or (includes_high and value == high)
    inside = inside or (includes_low and value == low)
    if value != 0 and abs(value) != math.inf:
        inside = inside and magnitudes[0] <= abs(value) <= magnitudes[1]
    allowed = Range(low, high, includes_high, includes_low=includes_low, magnitudes=magnitudes)
    try:
        allowed.check("owner", "name", value)
        accepted = True
    except ValueError:
        accepted = False
    assert accepted == (inside and value != -math.inf)
