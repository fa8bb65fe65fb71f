# SPDX-License-Identifier: Apache-2.0
"""Take norms of arrays as MXNet's operators do, for reference steps."""

from typing import Any

import numpy
from mxnet.ndarray import NDArray


def sum_of_squares(x: NDArray, in_float32: bool = False, half_squares: bool = False) -> Any:
    """Add the squares of an array, one element after another.

    Parameters
    ----------
    x : NDArray
        Float32 or float64 numbers.
    in_float32 : bool, default False
        Whether each sum is rounded to float32.
    half_squares : bool, default False
        Whether each square is rounded to float16.
    """
    squares: Any = numpy.square(x.asnumpy().ravel())
    if half_squares:
        squares = squares.astype("float16").astype("float32")
    if in_float32 and squares.dtype != numpy.float32:
        total = numpy.float32(0)
        for square in squares:
            total = numpy.float32(total + square)
        return total
    return numpy.add.accumulate(squares)[-1] if squares.size else squares.dtype.type(0)


def norm(x: NDArray, in_float32: bool = False, half_squares: bool = False) -> Any:
    """Take the root of `sum_of_squares`."""
    return numpy.sqrt(sum_of_squares(x, in_float32, half_squares))
