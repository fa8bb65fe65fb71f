"""Any shapes, types, hyperparameters and aggregation: equal to the built-in, or refused."""

import math

import mxnet as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import Run, assert_same_run

import mxadamax
from mxadamax.hyperparameters import Range

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
        "wd": st.floats(0, 1, allow_subnormal=False),
        "clip_gradient": st.none() | st.floats(1e-30, 1e30, allow_subnormal=False),
        "rescale_grad": st.floats(-1e3, 1e3, allow_subnormal=False),
        "begin_num_update": st.integers(0, 10000),
    },
)
aggregations = st.sampled_from([None, 1, 2, 3, math.inf])


def values(dtype, shape):
    width = np.dtype(dtype).itemsize * 8
    return hnp.arrays(dtype, shape, elements=st.floats(width=width))


@settings(max_examples=150, deadline=None)
@given(st.data(), shapes, options, aggregations)
def test_equal_to_the_built_in(data, shapes, options, aggregate_num):
    dtypes = [data.draw(st.sampled_from(["float32", "float64"])) for _ in shapes]
    with mx.util.np_shape(True):
        start = [data.draw(values(dtype, shape)) for dtype, shape in zip(dtypes, shapes)]
        runs = [
            Run(mxadamax.Adamax(aggregate_num=aggregate_num, **options), start),
            Run(mx.optimizer.create("adamax", **options), start),
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
names = [*mxadamax.Adamax.ranges, *mxadamax.Adamax._common_ranges, "learning_rate"]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(names), anything)
def test_a_hyperparameter_is_taken_or_refused_by_name(name, value):
    """Whatever it is: no other exception, and nothing taken that makes a step fail."""
    with mx.util.np_shape(True):
        try:
            optimizer = mxadamax.Adamax(**{name: value})
        except ValueError as error:
            assert str(error).startswith(f"adamax_ext: {name} must be")
            assert str(error).endswith(f"got {value!r}")
            return
        run = Run(optimizer, [np.ones(3, "float32")])
        run.step([np.ones(3, "float32")])
        assert np.all(np.isfinite(run.weights[0].asnumpy())) or abs(value) > 1e30


@given(st.floats(), st.floats(allow_nan=False), st.floats(allow_nan=False), st.booleans())
def test_ranges(value, low, high, includes_high):
    low, high = min(low, high), max(low, high)
    inside = value != -math.inf and (low <= value < high or (includes_high and value == high))
    try:
        Range(low, high, includes_high).check("owner", "name", value)
        accepted = True
    except ValueError:
        accepted = False
    assert accepted == inside
