// SPDX-License-Identifier: Apache-2.0
// Two states of a rule in 8 bits each.
//
// Steps are a plain state divided by another (itself or its root, which is what comes in here). In
// 8 bits neither survives alone: a divisor rounded towards zero under a first moment that was not
// makes a step without bounds. So the first is kept as a ratio to the second, in equal levels of
// both signs, which is the size of the step itself; whatever rounding does to the divisor, the step
// is right. The divisor, which has no sign, uses all 256 levels, spaced like squares: fine near 0,
// and nothing but 0 becomes 0. Each block of elements has its own ranges. Rounding is at random, so
// that a decay of a thousandth is not lost below the distance of two levels.
//
// This is arithmetic of one core against the memory, so every operation counts. What depends on the
// largest of a block is a loop of its own, after all blocks of a group have been looked at: else
// the processor waits for one number in each block. And blocks of a group share their random
// numbers.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "codec.h"
#include "kernel.h"

namespace mxadamax::cpu {
namespace {

constexpr float ratio_levels = 127;
constexpr float divisor_levels = 255;

// The largest magnitude of `n` numbers; infinite or NaN if one is. The bits of magnitudes are
// ordered like the magnitudes, and integers are what the compiler finds the largest of in vectors.
template <int n>
float largest_of(const float* numbers) {
  std::int32_t largest = 0;
  for (int i = 0; i < n; ++i) {
    const auto magnitude = static_cast<std::int32_t>(bits_of(numbers[i]) & 0x7fffffffu);
    largest = magnitude > largest ? magnitude : largest;
  }
  return from_bits(static_cast<std::uint32_t>(largest));
}

// What a range is divided by stays far from where quotients overflow.
float bounded_below(float range) { return range > 0x1p-100f ? range : 0x1p-100f; }

// Where the elements of a block round up: with a chance that is left of it, the divisors, as a
// float from 0 to 1; and the ratios, in units of a 2^15th of a level.
//
// A chance is a bit pattern of the element's own with random bits exclusive-or: any of 2^16 (2^15)
// numbers, equally likely. So every rounding is without bias and independent of the other state's
// and of other updates'. Within a block they differ by fixed patterns, which lie evenly, also in
// pairs: 39 i and 37 i, modulo 64.
struct Chances {
  float divisor[scaled_block];
  // chance - chance^2
  float spread[scaled_block];
  std::int32_t ratio[scaled_block];
};

template <std::uint32_t factor>
constexpr std::array<std::uint32_t, scaled_block> pattern = [] {
  std::array<std::uint32_t, scaled_block> found{};
  for (std::uint32_t i = 0; i < scaled_block; ++i) found[i] = factor * i % scaled_block;
  return found;
}();

Chances chances_of(std::uint32_t random) {
  Chances found;
  const std::uint32_t upper = random >> 16;
  const std::uint32_t lower = random & 0x7fffu;
  for (int i = 0; i < scaled_block; ++i) {
    // The fraction of a number from 1 to 2; half a unit off, so that none is 0.
    const std::uint32_t fraction = (pattern<39>[i] << 10 ^ upper) << 7 | 1u << 6;
    const float chance = from_bits(bits_of(1.0f) | fraction) - 1;
    found.divisor[i] = chance;
    found.spread[i] = chance - chance * chance;
    found.ratio[i] = static_cast<std::int32_t>(pattern<37>[i] << 9 ^ lower);
  }
  return found;
}

// Finds the ratios of a block, and the ranges of both states.
void find_ratios(const float* plain, const float* divisor, float* ratio, float* scales) {
  constexpr int n = scaled_block;
  for (int i = 0; i < n; ++i) {
    // Divided by infinity, what is finite becomes 0, and what is not, NaN.
    ratio[i] = plain[i] / (divisor[i] <= 0 ? __builtin_inff() : divisor[i]);
  }
  scales[0] = largest_of<n>(ratio);
  scales[1] = largest_of<n>(divisor);
}

// `per_ratio` and `per_divisor` are units for each 1.
void encode_block(const float* ratio, const float* divisor, const Chances& chances, float per_ratio,
                  float per_divisor, std::int8_t* ratios, std::uint8_t* divisors) {
  constexpr int n = scaled_block;
  // Levels are found as integers of full width, and made narrow by themselves: mixed, the compiler
  // spends most of its time between the widths.
  std::int32_t ratio_level[n], divisor_level[n];
  for (int i = 0; i < n; ++i) {
    // From 256 levels below 0 on, so that what is cut off is below; the lowest 8 bits are those of
    // the level. The largest of a block comes out as 127 levels to the unit: what it may be off by
    // is less than half of one, and this sum rounds to whole ones.
    const auto units = static_cast<std::int32_t>(ratio[i] * per_ratio + 0x1p23f);
    ratio_level[i] = (units + chances.ratio[i]) >> 15;
  }
  for (int i = 0; i < n; ++i) {
    // Level q stands for q^2 units. One goes from q to the next where, of the 2 q + 1 units between
    // them, there are more than a share of 1 - chance. Solved for q, that is:
    const float units = divisor[i] * per_divisor - chances.spread[i];
    const std::int32_t positive = signed_bits_of(units) > 0 ? signed_bits_of(units) : 0;
    const float root = square_root(from_bits(static_cast<std::uint32_t>(positive)));
    const auto level = static_cast<std::int32_t>(root + chances.divisor[i]);
    const std::int32_t bounded = level < 255 ? level : 255;
    const std::int32_t least = signed_bits_of(divisor[i]) < 1 ? signed_bits_of(divisor[i]) : 1;
    divisor_level[i] = bounded > least ? bounded : least;
  }
  for (int i = 0; i < n; ++i) ratios[i] = static_cast<std::int8_t>(ratio_level[i]);
  for (int i = 0; i < n; ++i) divisors[i] = static_cast<std::uint8_t>(divisor_level[i]);
}

// Encodes whole blocks of one group.
void encode_group(const float* plain, const float* divisor, std::uint32_t random,
                  std::int8_t* ratios, std::uint8_t* divisors, float* scales, int blocks) {
  constexpr int n = scaled_block;
  constexpr int most = random_group / scaled_block * scales_of_block;
  const int numbers = blocks * scales_of_block;
  float ratio[random_group], per[most];
  for (int k = 0; k < blocks; ++k) {
    find_ratios(plain + k * n, divisor + k * n, ratio + k * n, scales + k * scales_of_block);
  }
  for (int k = 0; k < numbers; ++k) {
    constexpr float units[] = {0x1p15f * ratio_levels, divisor_levels * divisor_levels};
    per[k] = units[k % 2] / bounded_below(scales[k]);
  }
  const Chances chances = chances_of(random);
  for (int k = 0; k < blocks; ++k) {
    float* const range = scales + k * scales_of_block;
    if (!(range[0] + range[1] < __builtin_inff())) {
      // Nothing in the block means anything any more, as its next step will show.
      std::memset(ratios + k * n, 0, n);
      std::memset(divisors + k * n, 0, n);
      range[0] = range[1] = __builtin_nanf("");
      continue;
    }
    encode_block(ratio + k * n, divisor + k * n, chances, per[k * 2], per[k * 2 + 1],
                 ratios + k * n, divisors + k * n);
    for (int j = 0; j < scales_of_block; ++j) {
      if (range[j] > 0) range[j] = bounded_below(range[j]);
    }
  }
}

void decode_block(const std::int8_t* ratios, const std::uint8_t* divisors, const float* scales,
                  float* plain, float* divisor) noexcept {
  constexpr int n = scaled_block;
  const float ratio_unit = scales[0] / ratio_levels;
  const float divisor_unit = scales[1] / (divisor_levels * divisor_levels);
  for (int i = 0; i < n; ++i) {
    const float level = static_cast<float>(divisors[i]);
    divisor[i] = divisor_unit * (level * level);
    plain[i] = ratio_unit * static_cast<float>(ratios[i]) * divisor[i];
  }
}

template <class T>
void copy(const T* from, std::int64_t count, T* to) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
}

// Arrays begin where a block does, and `random` with the group that they begin in; what goes beyond
// it begins where it does. Only the last block may be shorter.
void encode_int8(const float* plain, const float* divisor, const std::uint32_t* random,
                 void* ratios, void* divisors, float* scales, std::int64_t count) noexcept {
  auto* const r = static_cast<std::int8_t*>(ratios);
  auto* const d = static_cast<std::uint8_t*>(divisors);
  const std::int64_t whole = count / scaled_block * scaled_block;
  for (std::int64_t i = 0; i < whole; i += random_group) {
    const std::int64_t elements = whole - i < random_group ? whole - i : random_group;
    encode_group(plain + i, divisor + i, random[i / random_group], r + i, d + i,
                 scales + i / scaled_block * scales_of_block,
                 static_cast<int>(elements / scaled_block));
  }
  const std::int64_t rest = count - whole;
  if (rest == 0) return;
  float rest_plain[scaled_block] = {}, rest_divisor[scaled_block] = {};
  std::int8_t rest_ratios[scaled_block];
  std::uint8_t rest_divisors[scaled_block];
  copy(plain + whole, rest, rest_plain);
  copy(divisor + whole, rest, rest_divisor);
  encode_group(rest_plain, rest_divisor, random[whole / random_group], rest_ratios, rest_divisors,
               scales + whole / scaled_block * scales_of_block, 1);
  copy(rest_ratios, rest, r + whole);
  copy(rest_divisors, rest, d + whole);
}

void decode_int8(const void* ratios, const void* divisors, const float* scales, float* plain,
                 float* divisor, std::int64_t count) noexcept {
  const auto* const r = static_cast<const std::int8_t*>(ratios);
  const auto* const d = static_cast<const std::uint8_t*>(divisors);
  std::int64_t i = 0;
  for (; i + scaled_block <= count; i += scaled_block, scales += scales_of_block) {
    decode_block(r + i, d + i, scales, plain + i, divisor + i);
  }
  if (i == count) return;
  const std::int64_t rest = count - i;
  std::int8_t rest_ratios[scaled_block] = {};
  std::uint8_t rest_divisors[scaled_block] = {};
  float rest_plain[scaled_block], rest_divisor[scaled_block];
  copy(r + i, rest, rest_ratios);
  copy(d + i, rest, rest_divisors);
  decode_block(rest_ratios, rest_divisors, scales, rest_plain, rest_divisor);
  copy(rest_plain, rest, plain + i);
  copy(rest_divisor, rest, divisor + i);
}

}  // namespace
}  // namespace mxadamax::cpu
