# SPDX-License-Identifier: Apache-2.0
"""Which numbers are taken, at the very ends of their ranges, and what is said of others."""

import math
import re

import mxnet as mx
import numpy as np
import pytest

from mxadamax.optimizers.options import (
    FINITE,
    FLOAT32,
    FLOAT64,
    Range,
    as_number,
    check_flag,
    check_integer,
)

pytestmark = pytest.mark.quick

OPEN = Range(0.0, 1.0, includes_low=False)
SHARE = Range(0.0, 1.0)
CLOSED = Range(0.0, 1.0, includes_high=True)
BOUND = Range(
    0.0, math.inf, includes_high=True, optional=True, includes_low=False, magnitudes=FLOAT32
)
SMALL = "adam_ext: it must be 0 or between 2.2e-308 and 1.8e+308 in magnitude, got "
SMALL32 = "adam_ext: it must be 0, infinite or between 1.2e-38 and 3.4e+38 in magnitude, got "


def refused(message, check, *arguments, **options):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check("adam_ext", "it", *arguments, **options)


@pytest.mark.parametrize(
    ("accepted", "value"),
    [
        (SHARE, 0.0),
        (SHARE, -0.0),
        (SHARE, np.float32(0.5)),
        (SHARE, 1 - 2**-53),
        (SHARE, FLOAT64[0]),
        (CLOSED, 1),
        (OPEN, FLOAT64[0]),
        (FINITE, FLOAT64[1]),
        (FINITE, -FLOAT64[1]),
        (FINITE, -FLOAT64[0]),
        (FINITE, 0),
        (BOUND, None),
        (BOUND, math.inf),
        (BOUND, FLOAT32[0]),
        (BOUND, FLOAT32[1]),
    ],
    ids=str,
)
def test_numbers_in_a_range(accepted, value):
    accepted.check("adam_ext", "it", value)


@pytest.mark.parametrize(
    ("accepted", "value", "said"),
    [
        (SHARE, 1.0, "adam_ext: it must be in [0, 1), got 1.0"),
        (SHARE, -(2.0**-53), "adam_ext: it must be in [0, 1), got -1.1102230246251565e-16"),
        (SHARE, None, "adam_ext: it must be in [0, 1), got None"),
        (SHARE, math.nan, "adam_ext: it must be in [0, 1), got nan"),
        (SHARE, False, "adam_ext: it must be in [0, 1), got False"),
        (SHARE, "0", "adam_ext: it must be in [0, 1), got '0'"),
        (SHARE, 5e-324, SMALL + "5e-324"),
        (OPEN, 0.0, "adam_ext: it must be in (0, 1), got 0.0"),
        (CLOSED, 1.5, "adam_ext: it must be in [0, 1], got 1.5"),
        (FINITE, math.inf, "adam_ext: it must be finite, got inf"),
        (FINITE, -math.inf, "adam_ext: it must be finite, got -inf"),
        (FINITE, -1e-308, SMALL + "-1e-308"),
        (BOUND, 0, "adam_ext: it must be in (0, inf] or None, got 0"),
        (BOUND, 1e-38, SMALL32 + "1e-38"),
        (BOUND, 1e39, SMALL32 + "1e+39"),
        (
            CLOSED._replace(magnitudes=FLOAT32),
            1e-40,
            "adam_ext: it must be 0 or between 1.2e-38 and 3.4e+38 in magnitude, got 1e-40",
        ),
    ],
    ids=str,
)
def test_what_is_not_in_a_range(accepted, value, said):
    refused(said, accepted.check, value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.5, 0.5),
        (3, 3),
        (2**70, 2**70),
        (np.float16(0.5), 0.5),
        (np.array(0.1), 0.1),
        (np.array([[3]]), 3.0),
        (mx.nd.array([0.1], dtype="float64"), 0.1),
        (mx.nd.array([2**53 - 1], dtype="int64"), 2.0**53 - 1),
        (mx.np.array(0.25), 0.25),
    ],
    ids=repr,
)
def test_numbers_and_arrays_of_one(value, number):
    found = as_number(value)
    assert found == number
    assert type(found) is (int if type(value) is int else float)


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), "1", None, 10**400, np.array([10**400]), np.ones(2), [1.0], 1j],
    ids=lambda value: str(type(value)),
)
def test_what_is_no_number_stays_what_it_is(value):
    assert as_number(value) is value


def test_integers():
    check_integer("adam_ext", "it", 2, 2)
    check_integer("adam_ext", "it", np.int64(7), 2, below=8)
    check_integer("adam_ext", "it", 2**80, 2)
    check_integer("adam_ext", "it", math.inf, 2, or_infinity=True)
    plain = "adam_ext: it must be an integer of at least 2, got "
    for value in (1, True, 2.5, 3.0, math.inf, -math.inf, math.nan, None, "2", np.ones(1)):
        refused(f"{plain}{value!r}", check_integer, value, 2)
    limited = "adam_ext: it must be an integer of at least 2 and less than 8, got "
    for value in (1, 8, math.inf):
        refused(f"{limited}{value!r}", check_integer, value, 2, below=8)
    open_ended = "adam_ext: it must be an integer of at least 2 or numpy.inf, got "
    for value in (1, 2.5, -math.inf, math.nan, "inf"):
        refused(f"{open_ended}{value!r}", check_integer, value, 2, or_infinity=True)
    both = "adam_ext: it must be an integer of at least 2 or numpy.inf and less than 8, got 9"
    refused(both, check_integer, 9, 2, or_infinity=True, below=8)


def test_flags():
    for value in (True, False, np.bool_(True)):
        check_flag("adam_ext", "it", value)
    for value in (0, 1, None, "yes", 1.0):
        refused(f"adam_ext: it must be True or False, got {value!r}", check_flag, value)


@pytest.mark.skipif(mx.__version__.startswith("1."), reason="MXNet 1 has no bfloat16")
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_an_array_of_many_bits_is_not_rounded_and_of_few_read(dtype):
    types = {"bfloat16": np.dtype([("bfloat16", np.uint16)])}
    value = mx.nd.array([1.0], dtype="float64") * (1 + 2.0**-40)
    number = as_number(value.astype(types.get(dtype, dtype)))
    assert number == (1.0 if dtype == "bfloat16" else 1 + 2.0**-40)
