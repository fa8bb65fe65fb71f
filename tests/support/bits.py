# SPDX-License-Identifier: Apache-2.0
"""Arrays that should be the same to the last bit."""

from __future__ import annotations

import numpy as np

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, where: str = "") -> None:
    """Fail unless both hold the same bits; of a NaN only that it is one counts.

    Which NaN comes out of an operation on two of them is the processor's choice by operand order, and
    compilers order the operands of commutative operations freely.
    """
    assert actual.shape == expected.shape, where
    assert actual.dtype == expected.dtype, where
    bits = {4: np.uint32, 8: np.uint64}[actual.dtype.itemsize]
    nan = np.isnan(actual) & np.isnan(expected)
    differ = (
        (actual.view(bits) != expected.view(bits)) & ~nan
        if actual.ndim
        else ~nan & (actual.tobytes() != expected.tobytes())
    )
    if np.any(differ):
        at = np.flatnonzero(differ)[:5]
        found, wanted = np.ravel(actual)[at], np.ravel(expected)[at]
        raise AssertionError(f"{where}: {differ.sum()} differ, at {at}: {found} for {wanted}")
