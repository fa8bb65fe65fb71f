// SPDX-License-Identifier: Apache-2.0
// Two states of a rule in 8 bits each, as few_bits.h says.
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

#include "few_bits.h"
#include "kernel.h"

namespace mxadamax::cpu {
namespace {

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

// Where the elements of a block round up.
struct Chances {
  float divisor[scaled_block];
  // chance - chance^2
  float spread[scaled_block];
  std::int32_t ratio[scaled_block];
};

Chances chances_of(std::uint32_t random) {
  Chances found;
  for (std::uint32_t i = 0; i < scaled_block; ++i) {
    const float chance = divisor_chance(random, i);
    found.divisor[i] = chance;
    found.spread[i] = chance - chance * chance;
    found.ratio[i] = ratio_chance(random, i);
  }
  return found;
}

// Finds the ratios of a block, and the ranges of both states.
void find_ratios(const float* plain, const float* divisor, float* ratio, float* scales) {
  constexpr int n = scaled_block;
  for (int i = 0; i < n; ++i) ratio[i] = ratio_of(plain[i], divisor[i]);
  scales[0] = largest_of<n>(ratio);
  scales[1] = largest_of<n>(divisor);
}

// `per_ratio` and `per_divisor` are units for each 1.
void encode_block(const float* ratio, const float* divisor, const Chances& chances, float per_ratio,
                  float per_divisor, std::int8_t* ratios, std::uint8_t* divisors) {
  constexpr int n = scaled_block;
  // Made narrow in loops of their own.
  std::int32_t ratio_levels_found[n], divisor_levels_found[n];
  for (int i = 0; i < n; ++i) {
    ratio_levels_found[i] = ratio_level(ratio[i], per_ratio, chances.ratio[i]);
  }
  for (int i = 0; i < n; ++i) {
    divisor_levels_found[i] =
        divisor_level(divisor[i], per_divisor, chances.divisor[i], chances.spread[i]);
  }
  for (int i = 0; i < n; ++i) ratios[i] = static_cast<std::int8_t>(ratio_levels_found[i]);
  for (int i = 0; i < n; ++i) divisors[i] = static_cast<std::uint8_t>(divisor_levels_found[i]);
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
    per[k] = k % 2 == 0 ? ratio_units(scales[k]) : divisor_units(scales[k]);
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
  const float ratio_size = ratio_level_size(scales[0]);
  const float divisor_size = divisor_unit_size(scales[1]);
  for (int i = 0; i < n; ++i) {
    divisor[i] = divisor_at(divisors[i], divisor_size);
    plain[i] = plain_at(ratios[i], ratio_size, divisor[i]);
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
