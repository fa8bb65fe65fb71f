# SPDX-License-Identifier: Apache-2.0
"""A step changes weights and states, and nothing else in MXNet, nor in the batches that follow."""

import os
import resource

import mxnet as mx
import numpy as np
import pytest
from common import nd
from mxnet import autograd

import mxadamax
from mxadamax import _native
from mxadamax._mxnet.engine import native


def ones(*shape, dtype="float32"):
    return nd(np.ones(shape, dtype))


@pytest.mark.parametrize("records", [True, False])
def test_autograd_records_as_before(records):
    """Also what a layout of oneDNN's takes, which are operators of MXNet's."""
    weight, optimizer = ones(3, 4), mxadamax.SGD(learning_rate=0.25)
    weight.attach_grad()
    with autograd.record() if records else autograd.pause():
        optimizer.update([0], [weight], [ones(3, 4)], [None])
        assert autograd.is_recording() == records
        loss = (3 * weight * weight).sum()
    assert not autograd.is_recording()
    assert weight.asnumpy().tolist() == [[0.75] * 4] * 3
    if records:
        loss.backward()
        assert weight.grad.asnumpy().tolist() == [[4.5] * 4] * 3


def test_the_engine_joins_as_many_operations_as_before():
    weights, grads = [ones(3, 4), ones(5, 6)], [ones(3, 4), ones(5, 6)]
    before = mx.engine.set_bulk_size(11)
    try:
        mxadamax.SGD().update([0, 1], weights, grads, [None, None])
        assert mx.engine.set_bulk_size(11) == 11
    finally:
        mx.engine.set_bulk_size(before)


def test_arrays_are_let_go_of():
    """Gradients and states that nothing else holds any more, after the step that has used them."""
    weight, size = ones(500_000), 500_000
    optimizer = mxadamax.SGD(momentum=0.9)

    def peak(steps):
        for _ in range(steps):
            optimizer.update([0], [weight], [ones(size)], [ones(size)])
            mx.nd.waitall()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    # KiB; the arrays of all these steps are 115 MiB.
    first = peak(5)
    assert peak(30) - first < 40 * 1024


def test_exceptions_are_let_go_of():
    """Those of C++, whose references csrc/common/old_libraries.cc counts."""

    def peak(times):
        refused = 0
        for _ in range(times):
            try:
                native().share_memory(None, None)
            except _native.ParameterError:
                refused += 1
        assert refused == times
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    # KiB; each takes 200 bytes at least.
    first = peak(1000)
    assert peak(50_000) - first < 4 * 1024


def test_no_file_stays_open():
    """Where MXNet keeps row indices is looked for through a pipe."""
    numbers = [[1, 5], [2, 7], [3, 8]]
    shape = (9, 1)
    arrays = [
        mx.nd.sparse.row_sparse_array(([[1.0], [2.0]], rows), shape=shape) for rows in numbers
    ]
    mx.nd.waitall()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert native().find_row_indices(list(zip(arrays, numbers)))
    assert sorted(os.listdir("/proc/self/fd")) == before


WRONG = {
    "multi_precision": (True, False, None),
    "average": (False, True, None),
    "state_dtype": (False, False, "float16"),
}


@pytest.mark.parametrize("options", WRONG.values(), ids=WRONG)
def test_a_state_that_was_fine_is_looked_at_again_for_another_format(options):
    """The same tuple, which the batch before has found to fit."""
    weight, grad = ones(3, dtype="float16"), ones(3, dtype="float16")
    state = (ones(3, dtype="float16"), ones(3, dtype="float16"))
    memo = _native.StateCache()

    def batch(lazy, multi_precision, average, state_dtype):
        given = ("adam", [weight], [grad], [state], memo)
        return native().FusedUpdate(*given, lazy, multi_precision, average, state_dtype)

    plain = (False, False, None)
    for _ in range(2):
        batch(False, *plain)
    if options[-1] is None:
        with pytest.raises(_native.ParameterError, match="state is one NDArray"):
            batch(False, *options)
    else:
        # It fits: what differs is how it is rounded.
        batch(False, *options)
    batch(False, *plain)


@pytest.mark.parametrize("kind", ["average", "master"])
def test_a_list_deep_in_a_state_may_hold_other_arrays_the_next_time(kind):
    options = {"average": {"ema_decay": 0.5}, "master": {"multi_precision": True, "ema_decay": 0.5}}
    optimizer = mxadamax.Adamax(learning_rate=0.1, **options[kind])
    dtype = {"average": "float32", "master": "float16"}[kind]

    def state(own):
        average = ones(3)
        return (ones(3), (own, average)) if kind == "master" else ((own, average),)[0]

    def arrays(value):
        return [nd(np.full(3, value, "float32")) for _ in range(2)]

    own = arrays(1.0)
    given = state(own)
    found = []
    for value in (1.0, 3.0):
        own[:] = arrays(value)
        optimizer.update_multi_precision(
            [0], [ones(3, dtype=dtype)], [ones(3, dtype=dtype)], [given]
        )
        found.append(own[0].asnumpy()[0])
    assert found == pytest.approx([0.9 + 0.1, 0.9 * 3 + 0.1], rel=1e-3)
