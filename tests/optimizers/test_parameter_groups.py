# SPDX-License-Identifier: Apache-2.0
"""Parameters with the same multipliers form a group, and are counted together or not at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mxnet as mx
import numpy as np
import pytest

import mxadamax
from mxadamax import _native

pytestmark = pytest.mark.quick
MOST = 32
"""Groups, which a byte has to number."""


def with_multipliers(*pairs: tuple[Any, Any]) -> dict[int, Any]:
    return {k: SimpleNamespace(lr_mult=lr, wd_mult=wd) for k, (lr, wd) in enumerate(pairs)}


def groups_of(parameters: dict[int, Any], keys: Any = None) -> Any:
    return _native.parameter_groups(list(parameters) if keys is None else keys, parameters)


def test_equal_pairs_are_one_group():
    pairs = [(1.0, 1.0), (1.0, 0.0), (0.5, 0.0), (1.0, 1.0), (1.0, 0.0)]
    groups = groups_of(with_multipliers(*pairs))
    assert list(zip(groups.lr_mults, groups.wd_mults)) == [(1.0, 1.0), (1.0, 0.0), (0.5, 0.0)]


@pytest.mark.parametrize("which", [0, 1])
def test_no_more_groups_than_a_byte_numbers_with_ease(which):
    def pairs(count):
        return [(float(k), 1.0) if which == 0 else (1.0, float(k)) for k in range(count)]

    assert len(groups_of(with_multipliers(*pairs(MOST))).lr_mults) == MOST
    assert groups_of(with_multipliers(*pairs(MOST + 1))) is None


@pytest.mark.parametrize("multiplier", [-0.0, np.nan, np.inf, 1, np.float64(1), mx.nd.ones((1,))])
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_that_are_not_plain_are_left_to_python(which, multiplier):
    pair = (multiplier, 1.0) if which == 0 else (1.0, multiplier)
    assert groups_of(with_multipliers((1.0, 1.0), pair)) is None


def test_a_parameter_that_nobody_knows():
    assert groups_of(with_multipliers((1.0, 1.0)), keys=[0, 1]) is None
    with pytest.raises(TypeError, match="unhashable"):
        groups_of(with_multipliers((1.0, 1.0)), keys=[[]])
    with pytest.raises(AttributeError, match="lr_mult"):
        groups_of({0: object()})


@pytest.mark.parametrize("counts, after", [({}, 8), ({0: 4, 1: 4}, 5), ({0: 7}, 8), ({1: 7}, 8)])
def test_parameters_are_counted_together(counts, after):
    """Those without a count begin with the default."""
    given = dict(counts)
    assert _native.count_together(given, [0, 1], 7) == after
    assert given == {0: after, 1: after}


@pytest.mark.parametrize(
    "counts", [{0: 4, 1: 5}, {0: 4}, {0: -1, 1: -1}, {0: 4.0, 1: 4.0}, {0: 2**70, 1: 2**70}]
)
def test_else_none_is_counted(counts):
    given = dict(counts)
    assert _native.count_together(given, [0, 1], 7) is None
    assert given == counts


def test_counts_that_cannot_be_looked_up():
    with pytest.raises(TypeError, match="unhashable"):
        _native.count_together({}, [[]], 0)


@pytest.mark.parametrize("count", [np.int64(3), 2**70])
def test_a_step_with_other_counts(count):
    """Goes the way of Python, which counts any number."""
    found = []
    for value in (count, int(count)):
        optimizer = mxadamax.SGD(learning_rate=0.5)
        optimizer.param_dict = with_multipliers((1.0, 1.0), (0.5, 1.0))
        optimizer._index_update_count.update({0: value, 1: value})
        weights = [mx.nd.ones((3,)), mx.nd.ones((4,))]
        optimizer.update([0, 1], weights, [w.copy() for w in weights], [None, None])
        found.append([w.asnumpy().tolist() for w in weights])
    assert found[0] == found[1] == [[0.5] * 3, [0.75] * 4]


def test_as_many_multipliers_as_parameters():
    """More than there can be groups: each has its own rate."""
    count = MOST + 5
    optimizer = mxadamax.SGD(learning_rate=1.0)
    optimizer.param_dict = with_multipliers(*((k / 64, 1.0) for k in range(count)))
    weights = [mx.nd.ones((3,)) for _ in range(count)]
    grads = [w.copy() for w in weights]
    optimizer.update(list(range(count)), weights, grads, [None] * count)
    assert [w.asnumpy()[0] for w in weights] == [1 - k / 64 for k in range(count)]
