// SPDX-License-Identifier: Apache-2.0
// Two states of a rule in 8 bits each, as low_precision.h says.
//
// This is arithmetic of one core against the memory, so every operation counts. What depends on the
// largest of a block is a loop of its own, after all blocks of a group have been looked at: else
// the processor waits for one number in each block. And blocks of a group share their random
// numbers.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/low_precision.h"
#include "kernel.h"

namespace mxadamax::cpu {
namespace {

// The largest magnitude of `n` numbers; infinite or NaN if one is. The bits of magnitudes are
// ordered like the magnitudes, and integers are what the compiler finds the largest of in vectors.
template <int n>
float largest_of(const float* numbers) {
  std::int32_t largest = 0;
  for (int i = 0; i < n; ++i) {
    const auto magnitude = static_cast<std::int32_t>(bit_cast_to_integer(numbers[i]) & 0x7fffffffu);
    largest = magnitude > largest ? magnitude : largest;
  }
  return bit_cast_to_float(static_cast<std::uint32_t>(largest));
}

// Where the elements of a block round up.
struct RoundingThresholds {
  float denominator[block_size];
  // threshold - threshold^2
  float variance[block_size];
  std::int32_t ratio[block_size];
};

RoundingThresholds rounding_thresholds(std::uint32_t random) {
  RoundingThresholds found;
  for (std::uint32_t i = 0; i < block_size; ++i) {
    const float threshold = denominator_threshold(random, i);
    found.denominator[i] = threshold;
    found.variance[i] = threshold - threshold * threshold;
    found.ratio[i] = ratio_threshold(random, i);
  }
  return found;
}

// Finds the ratios of a block, and the ranges of both states.
void find_ratios(const float* plain, const float* denominator, float* ratio, float* scales) {
  constexpr int n = block_size;
  for (int i = 0; i < n; ++i) ratio[i] = ratio_of(plain[i], denominator[i]);
  scales[0] = largest_of<n>(ratio);
  scales[1] = largest_of<n>(denominator);
}

// `per_ratio` and `per_denominator` are units for each 1.
void encode_block(const float* ratio, const float* denominator,
                  const RoundingThresholds& thresholds, float per_ratio, float per_denominator,
                  std::int8_t* ratios, std::uint8_t* denominators) {
  constexpr int n = block_size;
  // Made narrow in loops of their own.
  std::int32_t ratio_levels_found[n], denominator_levels_found[n];
  for (int i = 0; i < n; ++i) {
    ratio_levels_found[i] = ratio_level(ratio[i], per_ratio, thresholds.ratio[i]);
  }
  for (int i = 0; i < n; ++i) {
    denominator_levels_found[i] = denominator_level(
        denominator[i], per_denominator, thresholds.denominator[i], thresholds.variance[i]);
  }
  for (int i = 0; i < n; ++i) ratios[i] = static_cast<std::int8_t>(ratio_levels_found[i]);
  for (int i = 0; i < n; ++i)
    denominators[i] = static_cast<std::uint8_t>(denominator_levels_found[i]);
}

// Encodes whole blocks of one group.
void encode_group(const float* plain, const float* denominator, std::uint32_t random,
                  std::int8_t* ratios, std::uint8_t* denominators, float* scales, int blocks) {
  constexpr int n = block_size;
  constexpr int most = rng_block / block_size * scales_per_block;
  const int numbers = blocks * scales_per_block;
  float ratio[rng_block], per[most];
  for (int k = 0; k < blocks; ++k) {
    find_ratios(plain + k * n, denominator + k * n, ratio + k * n, scales + k * scales_per_block);
  }
  for (int k = 0; k < numbers; ++k) {
    per[k] = k % 2 == 0 ? ratio_units(scales[k]) : denominator_units(scales[k]);
  }
  const RoundingThresholds thresholds = rounding_thresholds(random);
  for (int k = 0; k < blocks; ++k) {
    float* const range = scales + k * scales_per_block;
    if (!(range[0] + range[1] < __builtin_inff())) {
      // Nothing in the block means anything any more, as its next step will show.
      std::memset(ratios + k * n, 0, n);
      std::memset(denominators + k * n, 0, n);
      range[0] = range[1] = __builtin_nanf("");
      continue;
    }
    encode_block(ratio + k * n, denominator + k * n, thresholds, per[k * 2], per[k * 2 + 1],
                 ratios + k * n, denominators + k * n);
    for (int j = 0; j < scales_per_block; ++j) {
      if (range[j] > 0) range[j] = bounded_below(range[j]);
    }
  }
}

void decode_block(const std::int8_t* ratios, const std::uint8_t* denominators, const float* scales,
                  float* plain, float* denominator) noexcept {
  constexpr int n = block_size;
  const float ratio_size = ratio_level_size(scales[0]);
  const float denominator_size = denominator_unit_size(scales[1]);
  for (int i = 0; i < n; ++i) {
    denominator[i] = denominator_at(denominators[i], denominator_size);
    plain[i] = plain_at(ratios[i], ratio_size, denominator[i]);
  }
}

template <class T>
void copy(const T* from, std::int64_t count, T* to) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
}

// Arrays begin where a block does, and `random` with the group that they begin in; what goes beyond
// it begins where it does. Only the last block may be shorter.
void encode_int8(const float* plain, const float* denominator, const std::uint32_t* random,
                 void* ratios, void* denominators, float* scales, std::int64_t count) noexcept {
  auto* const r = static_cast<std::int8_t*>(ratios);
  auto* const d = static_cast<std::uint8_t*>(denominators);
  const std::int64_t whole = count / block_size * block_size;
  for (std::int64_t i = 0; i < whole; i += rng_block) {
    const std::int64_t elements = whole - i < rng_block ? whole - i : rng_block;
    encode_group(plain + i, denominator + i, random[i / rng_block], r + i, d + i,
                 scales + i / block_size * scales_per_block,
                 static_cast<int>(elements / block_size));
  }
  const std::int64_t rest = count - whole;
  if (rest == 0) return;
  float rest_plain[block_size] = {}, rest_denominator[block_size] = {};
  std::int8_t rest_ratios[block_size];
  std::uint8_t rest_denominators[block_size];
  copy(plain + whole, rest, rest_plain);
  copy(denominator + whole, rest, rest_denominator);
  encode_group(rest_plain, rest_denominator, random[whole / rng_block], rest_ratios,
               rest_denominators, scales + whole / block_size * scales_per_block, 1);
  copy(rest_ratios, rest, r + whole);
  copy(rest_denominators, rest, d + whole);
}

void decode_int8(const void* ratios, const void* denominators, const float* scales, float* plain,
                 float* denominator, std::int64_t count) noexcept {
  const auto* const r = static_cast<const std::int8_t*>(ratios);
  const auto* const d = static_cast<const std::uint8_t*>(denominators);
  std::int64_t i = 0;
  for (; i + block_size <= count; i += block_size, scales += scales_per_block) {
    decode_block(r + i, d + i, scales, plain + i, denominator + i);
  }
  if (i == count) return;
  const std::int64_t rest = count - i;
  std::int8_t rest_ratios[block_size] = {};
  std::uint8_t rest_denominators[block_size] = {};
  float rest_plain[block_size], rest_denominator[block_size];
  copy(r + i, rest, rest_ratios);
  copy(d + i, rest, rest_denominators);
  decode_block(rest_ratios, rest_denominators, scales, rest_plain, rest_denominator);
  copy(rest_plain, rest, plain + i);
  copy(rest_denominator, rest, denominator + i);
}

}  // namespace
}  // namespace mxadamax::cpu
