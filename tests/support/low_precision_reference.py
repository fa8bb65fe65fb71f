# SPDX-License-Identifier: Apache-2.0
"""Define the rounding of low-precision states in NumPy, independently of the code under test.

Numbers are float64 where the definition is of real numbers, and float32 where it is of float32
arithmetic. Each function takes the 16 random bits of every element.
"""

from __future__ import annotations

import numpy as np
from half_reference import ALL, decoded

BLOCK = 64
RNG_BLOCK = 512
KINDS = ("ratio", "signed", "denominator")
LEAST_SCALE = np.float32(2.0**-100)


def splitmix64(x):
    """Mix 64 bits, as Steele, Lea & Flood define it."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_numbers(seed, state, size):
    """Return the 16 random bits of each element: along a line in each block of 512."""
    block, place = np.divmod(np.arange(size, dtype=np.uint64), np.uint64(RNG_BLOCK))
    with np.errstate(over="ignore"):
        word = splitmix64(np.uint64(seed) + np.uint64(2) * block + np.uint64(state // 2))
    shift = 32 * (state % 2)
    offset = (word >> np.uint64(shift)) & np.uint64(0xFFFF)
    slope = (word >> np.uint64(shift + 16)) & np.uint64(0xFFFF)
    return ((offset + slope * place) & np.uint64(0xFFFF)).astype(np.int64)


def _in_table(magnitude, name):
    """Return the last of the non-negative numbers that is not larger, and all of them."""
    table = decoded(ALL[: {"float16": 0x7C01, "bfloat16": 0x7F81}[name]], name).astype(np.float64)
    table[-1] = {"float16": 2.0**16, "bfloat16": 2.0**128}[name]
    return np.searchsorted(table, magnitude, side="right") - 1, table


def encode_bfloat16(x, random, denominator):
    """Go up where the share of the way to the next number and the random share make a whole."""
    magnitude = np.abs(x.astype(np.float64))
    finite = np.isfinite(x)
    magnitude[~finite] = 0
    low, table = _in_table(magnitude, "bfloat16")
    share = (magnitude - table[low]) / (table[low + 1] - table[low])
    codes = low + (share + random / 2.0**16 >= 1)
    if denominator:
        codes = np.where((magnitude > 0) & (magnitude < 2.0**-133), 1, codes)
    codes = codes | (np.signbit(x).astype(np.int64) << 15)
    return np.where(finite, codes, x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def encode_float16(x, random, denominator):
    """Add up to the distance of two numbers, in float32, and cut off."""
    with np.errstate(invalid="ignore"):
        magnitude = np.abs(x)
    finite = np.isfinite(x)
    magnitude[~finite] = 0
    # The distance of two float16 numbers, in 2^13 parts.
    exponent = np.maximum(np.frexp(np.maximum(magnitude, 2.0**-149))[1] - 1, -14)
    noise = np.ldexp((random >> 3).astype(np.float64), exponent - 23).astype(np.float32)
    with np.errstate(over="ignore"):
        total = magnitude + noise
    codes, _ = _in_table(np.minimum(total.astype(np.float64), 65504.0), "float16")
    codes[np.isinf(total)] = 0x7C00
    if denominator:
        codes = np.where(magnitude > 0, np.maximum(codes, 1), codes)
    codes[np.isinf(x)] = 0x7C00
    payload = (x.view(np.uint32) >> np.uint32(13)).astype(np.int64) & 0x3FF
    codes = np.where(np.isnan(x), 0x7E00 | payload, codes)
    return (codes | (np.signbit(x).astype(np.int64) << 15)).astype(np.uint16)


def encode_short(x, name, denominator, seed, state):
    encode = {"float16": encode_float16, "bfloat16": encode_bfloat16}[name]
    return encode(x, random_numbers(seed, state, x.size), denominator)


def _bounded(largest):
    return np.maximum(largest, LEAST_SCALE)


def base_of(largest):
    """Return the power of two that a block's denominators are relative to.

    Fifteen powers below the largest, which counts as the next one from 31/16 of its own on, or
    what is as near to that as a part of 2^15.
    """
    fraction, exponent = np.frexp(_bounded(np.asarray(largest, np.float32)).astype(np.float64))
    up = 2 * fraction + 2.0**-4 + 2.0**-15 >= 2
    return np.ldexp(1.0, exponent - 1 + up - 15).astype(np.float32)


def ratio_codes(x, scale, random):
    """127 levels of either sign: of equal distance, in 2^15 units each."""
    units = np.float32(127 * 2**15) / _bounded(scale)
    whole = np.floor((x * units + np.float32(2**23)).astype(np.float64)) - 2**23
    return np.floor((whole + (random >> 1)) / 2**15)


def signed_codes(x, scale, random):
    """127 levels of either sign, spaced like squares."""
    units = np.float32(127 * 127) / _bounded(scale)
    threshold = ((2 * random + 1) / 2.0**17).astype(np.float32)
    inside = np.abs(x) * units - (threshold - threshold * threshold)
    root = np.sqrt(np.maximum(inside, np.float32(0)))
    return np.where(np.signbit(x), -1, 1) * np.minimum(np.floor(root + threshold), 127)


def denominator_codes(x, base, random):
    """16 codes for each doubling of the sum with the base."""
    with np.errstate(over="ignore"):
        total = np.minimum((base + x).astype(np.float64), 2.0**128)
    fraction, exponent = np.frexp(total / base)
    position = 16 * (exponent - 1 + 2 * fraction - 1)
    return np.maximum(np.floor(position + random / 2.0**16), x > 0)


def encode_int8(x, kind, seed, state):
    """Return the codes of numbers, as int8, and the scale of each block."""
    random = random_numbers(seed, state, x.size)
    blocks = -(-x.size // BLOCK)
    padded = np.zeros(blocks * BLOCK, np.float32)
    padded[: x.size] = x
    with np.errstate(invalid="ignore"):
        largest = np.abs(padded.reshape(blocks, BLOCK)).max(axis=1, initial=0)
    finite = np.isfinite(largest)
    if kind == "denominator":
        scales = base_of(np.where(finite, largest, 1))
    else:
        scales = np.where(largest > 0, _bounded(largest), np.float32(0))
    scales = np.where(finite, scales, np.float32(np.nan)).astype(np.float32)
    encode = {"ratio": ratio_codes, "signed": signed_codes, "denominator": denominator_codes}[kind]
    inside = finite.repeat(BLOCK)[: x.size]
    codes = np.zeros(x.size, np.int64)
    codes[inside] = encode(x[inside], scales.repeat(BLOCK)[: x.size][inside], random[inside])
    return (codes & 0xFF).astype(np.uint8).view(np.int8), scales


def decode_int8(codes, scales, kind):
    """Return the numbers that codes stand for."""
    scale = scales.repeat(BLOCK)[: codes.size]
    if kind == "ratio":
        return scale / np.float32(127) * codes.astype(np.float32)
    if kind == "signed":
        level = codes.astype(np.float32)
        return scale / np.float32(127 * 127) * (level * np.abs(level))
    octave, step = np.divmod(codes.view(np.uint8).astype(np.int64), 16)
    # 2^128 is infinity already where the base is subtracted.
    return (np.ldexp(1 + step / 16.0, octave) * scale).astype(np.float32) - scale
