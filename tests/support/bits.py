# SPDX-License-Identifier: Apache-2.0
"""Arrays that should be the same to the last bit."""

from __future__ import annotations

import numpy as np

from mxadamax import _native

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, where: str = "") -> None:
    """Fail unless both hold the same bits; of a NaN only that it is one counts.

    Which NaN comes out of an operation on two of them is the processor's choice by operand order, and
    compilers order the operands of commutative operations freely.
    """
    assert actual.shape == expected.shape, where
    assert actual.dtype == expected.dtype, where
    if actual.tobytes() == expected.tobytes():
        return
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[actual.dtype.itemsize]
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


def assert_same_or_near(
    actual: np.ndarray, expected: np.ndarray, rule: str, dtype: str = "", where: str = ""
) -> None:
    """Fail unless both hold the same bits, or nearly the same numbers of a rule that sums.

    GPUs sum up a tensor in another order and precision than the processor. `dtype` is that of the
    arrays that the numbers come from, where it is a shorter one.
    """
    if not _native.rules[rule].sums:
        assert_same_bits(actual, expected, where)
        return
    digits = {"float16": 2e-3, "bfloat16": 4e-2, "float64": 1e-10}
    if "_mxnet" in rule and rule.startswith(("lamb", "lars")):
        # The sums of the processor are in single precision.
        del digits["float64"]
    near = digits.get(dtype or actual.dtype.name, 1e-5)
    np.testing.assert_allclose(actual, expected, near, near, equal_nan=True, err_msg=where)
