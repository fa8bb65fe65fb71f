// SPDX-License-Identifier: Apache-2.0
// Low-precision states: what they are rounded to, and by which random bits.
//
// Rounding is at random, so that the mean of many roundings is the number itself: steps that are
// too small to change a rounded state do so now and then. In 16 bits each state is rounded by
// itself; in 8 bits a signed state goes alone or with the one that it is divided by.
//
// Where there are two, steps are a plain state divided by another (itself or its root, which is
// what comes in here). In 8 bits neither survives alone: a denominator rounded towards zero under a
// first moment that was not makes a step without bounds. So the first is kept as a ratio to the
// second, in equal levels of both signs, which is the size of the step itself; whatever rounding
// does to the denominator, the step is right. The denominator, which has no sign, uses all 256
// levels, spaced like squares: fine near 0, and nothing but 0 becomes 0. Each block of elements has
// its own ranges.
//
// A signed state alone has 127 levels of either sign, spaced like squares too: a rule that takes no
// more than the sign of it (Lion) moves small elements of a block like large ones.
//
// No branches, so that loops of these are vectorised.
#pragma once

#include <cstdint>

#include "half.h"
#include "rules/rule.h"

namespace mxadamax {

// Elements that share the scales of their 8-bit states, one for each state.
constexpr std::int64_t block_size = 64;
// Elements that share the random bits of their 8-bit states.
constexpr std::int64_t rng_block = 512;

// How many blocks an array has, of which the last may be shorter.
constexpr std::int64_t blocks_of(std::int64_t size) { return (size + block_size - 1) / block_size; }

// Whether the states of a rule can be kept in 8 bits: a signed one, alone or with a denominator.
template <class R>
constexpr bool supports_int8_state = [] {
  // A rule of one state has no second kind to look at.
  if constexpr (R::states == 2) {
    return R::supports_low_precision_state && R::kinds[0] == StateKind::with_sign &&
           R::kinds[1] != StateKind::with_sign;
  } else {
    return R::supports_low_precision_state && R::states == 1 && R::kinds[0] == StateKind::with_sign;
  }
}();

// Which states of a rule are of a kind, a bit for each: an array would be none of a device's.
template <class R, StateKind kind>
constexpr unsigned states_of_kind = [] {
  unsigned found = 0;
  for (int k = 0; k < R::states; ++k) found |= (R::kinds[k] == kind ? 1u : 0u) << k;
  return found;
}();

// What random bits depend on, besides the position of an element.
struct RngKey {
  std::uint32_t first, second;
};

// A good mix of 64 bits (Steele, Lea & Flood, "Fast splittable pseudorandom number generators").
MXADAMAX_RULE std::uint64_t splitmix64(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// What all random bits of one update of a parameter depend on.
MXADAMAX_RULE std::uint64_t rng_seed(std::uint64_t rng_stream, std::uint64_t step) {
  return splitmix64(splitmix64(rng_stream) ^ step);
}

// Those of two states, at positions that are alike in their upper 32 bits.
MXADAMAX_RULE RngKey rng_key(std::uint64_t seed, int pair, std::int64_t position) {
  const std::uint64_t upper = static_cast<std::uint64_t>(position) >> 32;
  const std::uint64_t key = splitmix64(seed ^ upper << 8 ^ static_cast<unsigned>(pair));
  return {static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)};
}

// A permutation of 32 bits with good avalanche (the constants are C. Wellons's "lowbias32"), keyed
// before and between its rounds: arrays whose positions overlap after the first key part ways at
// the second. Nothing but key and position counts, so any thread makes them for any element.
MXADAMAX_RULE std::uint32_t random_bits_at(RngKey key, std::uint32_t position) {
  std::uint32_t x = position + key.first;
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15 ^ key.second;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

// Integers with a sign are what most instruction sets compare.
MXADAMAX_RULE std::int32_t bit_cast_to_signed(float x) {
  return static_cast<std::int32_t>(bit_cast_to_integer(x));
}

// Rounds up with a probability of what would be cut off, from 16 random bits. Finite numbers stay
// finite.
MXADAMAX_RULE std::int32_t encode_float16_stochastic(float x, std::int32_t random) {
  const std::int32_t sign = bit_cast_to_signed(x) >> 16 & 0x8000;
  const std::int32_t magnitude = bit_cast_to_signed(x) & 0x7fffffff;
  const std::int32_t normal = (magnitude - (112 << 23) + (random & 0x1fff)) >> 13;
  const float small = magnitude < 0x38800000 ? x : 0.0f;
  const std::int32_t units = static_cast<std::int32_t>(absolute(small) * 0x1p40f);
  const std::int32_t subnormal = (units + random) >> 16;
  const std::int32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  const std::int32_t bounded = finite < 0x7bff ? finite : 0x7bff;
  const std::int32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  return sign | (magnitude >= 0x7f800000 ? special : bounded);
}

MXADAMAX_RULE std::int32_t encode_bfloat16_stochastic(float x, std::int32_t random) {
  const std::int32_t sign = bit_cast_to_signed(x) >> 16 & 0x8000;
  const std::int32_t magnitude = bit_cast_to_signed(x) & 0x7fffffff;
  const std::int32_t rounded = (magnitude + random) >> 16;
  const std::int32_t bounded = rounded < 0x7f7f ? rounded : 0x7f7f;
  const std::int32_t special = magnitude > 0x7f800000 ? 0x7fc0 : 0x7f80;
  return sign | (magnitude >= 0x7f800000 ? special : bounded);
}

// Of numbers that steps are divided by, what is not 0 does not become 0, which would make a step
// without bounds of it.
MXADAMAX_RULE std::int32_t zero_preserving_encode(float x, std::int32_t encoded) {
  const std::int32_t least = (bit_cast_to_signed(x) & 0x7fffffff) > 0 ? 1 : 0;
  return encoded > least ? encoded : least;
}

constexpr float ratio_levels = 127;
constexpr float denominator_levels = 255;
constexpr float signed_levels = 127;

// A plain state as its ratio to the denominator. Divided by infinity, what is finite becomes 0, and
// what is not, NaN.
MXADAMAX_RULE float ratio_of(float plain, float denominator) {
  return plain / (denominator <= 0 ? __builtin_inff() : denominator);
}

// What a range is divided by stays far from where quotients overflow.
MXADAMAX_RULE float bounded_below(float range) { return range > 0x1p-100f ? range : 0x1p-100f; }

// Units for each 1, of ratios, denominators and signed states whose largest is `range`.
MXADAMAX_RULE float ratio_units(float range) {
  return 0x1p15f * ratio_levels / bounded_below(range);
}
MXADAMAX_RULE float denominator_units(float range) {
  return denominator_levels * denominator_levels / bounded_below(range);
}
MXADAMAX_RULE float signed_units(float range) {
  return signed_levels * signed_levels / bounded_below(range);
}

// The other way round: how much the distance of two levels of ratios is, and a unit of denominators
// and signed states.
MXADAMAX_RULE float ratio_level_size(float range) { return range / ratio_levels; }
MXADAMAX_RULE float denominator_unit_size(float range) {
  return range / (denominator_levels * denominator_levels);
}
MXADAMAX_RULE float signed_unit_size(float range) {
  return range / (signed_levels * signed_levels);
}

// Where element i of a block rounds up, of all whose group has these random bits: what has levels
// like squares, as a float from 0 to 1, and the ratio, in units of a 2^15th of a level.
//
// A threshold is a bit pattern of the element's own with random bits exclusive-or: any of 2^16
// (2^15) numbers, equally likely. So every rounding is without bias and independent of the other
// state's and of other updates'. Within a block they differ by fixed patterns, which lie evenly,
// also in pairs: 39 i and 37 i, modulo 64.
MXADAMAX_RULE float square_threshold(std::uint32_t random, std::uint32_t i) {
  // The fraction of a number from 1 to 2; half a unit off, so that none is 0.
  const std::uint32_t fraction = (39 * i % 64 << 10 ^ random >> 16) << 7 | 1u << 6;
  return bit_cast_to_float(bit_cast_to_integer(1.0f) | fraction) - 1;
}
MXADAMAX_RULE std::int32_t ratio_threshold(std::uint32_t random, std::uint32_t i) {
  return static_cast<std::int32_t>(37 * i % 64 << 9 ^ (random & 0x7fffu));
}

// Levels are found as integers of full width: mixed with narrow ones, the compiler spends most of
// its time between the widths. Of a ratio's, the lowest 8 bits count: it is found from 256 levels
// below 0 on, so that what is cut off is below. The largest of a block comes out as 127 levels to
// the unit: what it may be off by is less than half of one, and this sum rounds to whole ones.
MXADAMAX_RULE std::int32_t ratio_level(float ratio, float units_per_one, std::int32_t threshold) {
  const auto units = static_cast<std::int32_t>(ratio * units_per_one + 0x1p23f);
  return (units + threshold) >> 15;
}

// Level q stands for q^2 units. One goes from q to the next where, of the 2 q + 1 units between
// them, there are more than a share of 1 - threshold. Solved for q, that is this, where `variance`
// is threshold - threshold^2.
MXADAMAX_RULE std::int32_t square_level(float number, float units_per_one, float threshold,
                                        float variance, std::int32_t most) {
  const float units = number * units_per_one - variance;
  const std::int32_t positive = bit_cast_to_signed(units) > 0 ? bit_cast_to_signed(units) : 0;
  const float root = square_root(bit_cast_to_float(static_cast<std::uint32_t>(positive)));
  const auto level = static_cast<std::int32_t>(root + threshold);
  return level < most ? level : most;
}
MXADAMAX_RULE std::int32_t denominator_level(float denominator, float units_per_one,
                                             float threshold, float variance) {
  const std::int32_t bounded = square_level(denominator, units_per_one, threshold, variance, 255);
  const std::int32_t least =
      bit_cast_to_signed(denominator) < 1 ? bit_cast_to_signed(denominator) : 1;
  return bounded > least ? bounded : least;
}
MXADAMAX_RULE std::int32_t signed_level(float state, float units_per_one, float threshold,
                                        float variance) {
  const std::int32_t level = square_level(absolute(state), units_per_one, threshold, variance, 127);
  return bit_cast_to_signed(state) < 0 ? -level : level;
}

// The states that levels stand for.
MXADAMAX_RULE float denominator_at(std::uint8_t level, float unit_size) {
  const float root = static_cast<float>(level);
  return unit_size * (root * root);
}
MXADAMAX_RULE float plain_at(std::int8_t level, float level_size, float denominator) {
  return level_size * static_cast<float>(level) * denominator;
}
MXADAMAX_RULE float signed_at(std::int8_t level, float unit_size) {
  const float root = static_cast<float>(level);
  return unit_size * (root * absolute(root));
}

}  // namespace mxadamax
