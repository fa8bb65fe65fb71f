# SPDX-License-Identifier: Apache-2.0
"""Make row-sparse gradients."""

import mxnet as mx
import numpy as np

NOWHERE = 0x7E3A91C50D2B64F8
"""The number of a row that memory holds at no place, not even by accident as a small one."""


def row_sparse(values, rows, shape):
    if len(rows) == 0:
        return mx.nd.sparse.zeros("row_sparse", shape, dtype=values.dtype)
    return mx.nd.sparse.row_sparse_array((values[rows], rows), shape=shape, dtype=values.dtype)


def some_rows(count, rng):
    """None, all, runs of neighbours, or any."""
    kind = rng.randint(0, 5)
    if kind == 0:
        return np.arange(0)
    if kind == 1:
        return np.arange(count)
    if kind == 2:
        first, last = sorted(rng.randint(0, count + 1, 2))
        return np.arange(first, last)
    return np.flatnonzero(rng.rand(count) < 0.4)
