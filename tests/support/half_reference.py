# SPDX-License-Identifier: Apache-2.0
"""Convert 16-bit types in NumPy, independently of the code under test."""

import numpy as np

from mxadamax.dtypes import BFLOAT16

TYPES = {"float16": np.dtype("float16"), "bfloat16": BFLOAT16}


ALL = np.arange(2**16, dtype=np.uint16)


def decoded(bits, name):
    """In NumPy, apart from the code under test."""
    if name == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encoded(values, name):
    if name == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    # The nearest of all finite numbers; an infinity stands for the next power of two.
    # NumPy 1.24 warns of NaNs that signal.
    with np.errstate(invalid="ignore"):
        values = values.astype(np.float64)
    numbers = decoded(ALL[:0x7F81], name).astype(np.float64)
    numbers[-1] = 2.0**128
    magnitude = np.abs(values)
    above = np.searchsorted(numbers, magnitude).clip(1, 0x7F80)
    low, high = numbers[above - 1], numbers[above]
    upper = (magnitude - low > high - magnitude) | (
        (magnitude - low == high - magnitude) & (above % 2 == 0)
    )
    bits = np.where(upper, above, above - 1).astype(np.uint16)
    bits[np.isnan(values)] = 0x7FC0
    return bits | (np.signbit(values).astype(np.uint16) << 15)
