# SPDX-License-Identifier: Apache-2.0
"""The arrays that a parameter keeps, put together and taken apart."""

import mxnet as mx
import numpy as np
import pytest
from family import FAMILY

import mxadamax
from mxadamax import _native
from mxadamax.optimizers.state_layout import (
    BFLOAT16,
    ParameterState,
    StateLayout,
    arrays_of,
    describe,
    map_arrays,
    state_specs,
    without_average,
)

pytestmark = pytest.mark.quick


def test_nesting():
    """As docs/optimizers.md has it, and files of every version."""
    master, m, v, average = (mx.nd.full((2,), k) for k in range(4))
    cases = [
        (ParameterState(None, (), None), None),
        (ParameterState(None, (m,), None), m),
        (ParameterState(None, (m, v), None), (m, v)),
        (ParameterState(None, (), average), (None, average)),
        (ParameterState(None, (m,), average), (m, average)),
        (ParameterState(None, (m, v), average), ((m, v), average)),
        (ParameterState(master, (), None), (master, None)),
        (ParameterState(master, (m,), None), (master, m)),
        (ParameterState(master, (m, v), average), (master, ((m, v), average))),
    ]
    for parts, expected in cases:
        assert repr(parts.nested) == repr(expected)
        has_master, has_average = parts.master is not None, parts.average is not None
        rule = ("sgd", "adagrad", "adam")[len(parts.own)]
        dtype = np.dtype("float16" if has_master else "float32")
        layout = StateLayout(rule, dtype, has_master, None, has_average)
        found = layout.unpack(parts.nested)
        assert found.master is parts.master and found.average is parts.average
        assert [a is b for a, b in zip(found.own, parts.own)] == [True] * len(parts.own)
        assert len(found.own) == len(parts.own)
        assert list(map(id, arrays_of(parts.nested))) == [
            id(array) for array in (parts.master, *parts.own, parts.average) if array is not None
        ]
        if has_average:
            without = parts._replace(average=None).nested
            assert repr(without_average(parts.nested)) == repr(without)


@pytest.mark.parametrize("member", FAMILY, ids=str)
@pytest.mark.parametrize("dtype", [np.dtype("float32"), np.dtype("float64"), BFLOAT16], ids=str)
@pytest.mark.parametrize("multi_precision", [False, True])
def test_arrays_of_an_optimizer(member, dtype, multi_precision):
    """What is made is what is taken apart."""
    optimizer = member.create(multi_precision=multi_precision, ema_decay=0.5)
    weight = mx.nd.cast(mx.nd.ones((3, 5)), dtype=dtype)
    state = optimizer.create_state_multi_precision(0, weight)
    parts = optimizer.state_layout(weight).unpack(state)
    has_master = multi_precision and dtype == BFLOAT16
    wide = np.float64 if dtype == np.float64 else np.float32
    assert (parts.master is not None) == has_master
    assert parts.average.dtype == wide
    assert {array.dtype for array in parts.own} <= {np.float32 if has_master else dtype.type, dtype}
    assert len(parts.own) == _native.rules[optimizer.rule].states
    assert optimizer.average_of(state, weight) is parts.average
    optimizer.update_multi_precision([0], [weight], [weight.copy()], [state])
    mx.nd.waitall()


def test_a_subclass_can_begin_with_other_states():
    """Also behind a master weight."""

    class Warm(mxadamax.AdaGrad):
        def create_state(self, index, weight):
            state = super().create_state(index, weight)
            state[:] = 0.1
            return state

    weight = mx.nd.ones((2,), dtype="float16")
    master, history = Warm(multi_precision=True).create_state_multi_precision(0, weight)
    assert master.dtype == np.float32 and history.asnumpy().tolist() == [np.float32(0.1)] * 2


@pytest.mark.parametrize(("shape", "blocks"), [((), 1), ((0,), 0), ((64,), 1), ((5, 13), 2)])
def test_scales_of_states_in_8_bits(shape, blocks):
    specs = state_specs("adam", np.float32, "int8")
    assert [spec.dtype for spec in specs] == [np.int8, np.int8, np.float32]
    found = [spec.shape(shape) for spec in specs]
    assert found == [shape, shape, (blocks, 2)]
    specs = state_specs("lion", np.float32, "int8")
    assert [spec.dtype for spec in specs] == [np.int8, np.float32]
    assert [spec.shape(shape) for spec in specs] == [shape, (blocks, 1)]
    specs = state_specs("amsgrad", np.float32, "int8")
    assert [spec.dtype for spec in specs] == [np.int8, np.int8, np.int8, np.float32]
    assert [spec.shape(shape) for spec in specs] == [shape, shape, shape, (blocks, 3)]


def test_descriptions():
    m, half = mx.nd.ones((2, 3)), mx.nd.cast(mx.nd.ones((4,)), dtype=BFLOAT16)
    sparse = mx.nd.ones((2, 3)).tostype("row_sparse")
    assert describe((m, [half, None])) == "(float32 (2, 3), (bfloat16 (4,), none))"
    assert describe(sparse) == "float32 (2, 3) row_sparse"
    assert describe("x") == "a str"


def test_mapping_keeps_the_nesting():
    assert map_arrays(lambda x: x + 1, (1, [2, None], (3,))) == (2, (3, None), (4,))
