// SPDX-License-Identifier: Apache-2.0
// The states of a rule in 8 bits each, as low_precision.h says: a signed one alone, or with the
// denominator of steps.
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

// Where the elements of a block round up, where levels lie like squares.
struct SquareThresholds {
  explicit SquareThresholds(std::uint32_t random) {
    for (std::uint32_t i = 0; i < block_size; ++i) {
      const float found = square_threshold(random, i);
      threshold[i] = found;
      variance[i] = found - found * found;
    }
  }
  float threshold[block_size];
  // threshold - threshold^2
  float variance[block_size];
};

// Makes levels narrow, in a loop of their own.
template <class Level>
void narrow(const std::int32_t* found, Level* levels) {
  for (int i = 0; i < block_size; ++i) levels[i] = static_cast<Level>(found[i]);
}

// Makes scales of the ranges of one block. Returns whether they are finite; if not, nothing in the
// block means anything any more, as its next step will show.
template <int n>
bool finish_scales(float* scales) {
  float sum = 0;
  for (int j = 0; j < n; ++j) sum += scales[j];
  const bool finite = sum < __builtin_inff();
  for (int j = 0; j < n; ++j) {
    if (!finite) scales[j] = __builtin_nanf("");
    if (scales[j] > 0) scales[j] = bounded_below(scales[j]);
  }
  return finite;
}

// A signed state alone.
struct SignedState {
  static constexpr int states = 1;

  // Encodes whole blocks of one group.
  static void encode(const float* const* from, std::uint32_t random, void* const* to, float* scales,
                     int blocks) {
    constexpr int n = block_size;
    const float* const state = from[0];
    auto* const levels = static_cast<std::int8_t*>(to[0]);
    float per_one[rng_block / block_size];
    for (int k = 0; k < blocks; ++k) scales[k] = largest_of<n>(state + k * n);
    for (int k = 0; k < blocks; ++k) per_one[k] = signed_units(scales[k]);
    const SquareThresholds thresholds(random);
    for (int k = 0; k < blocks; ++k) {
      if (!finish_scales<states>(scales + k)) {
        std::memset(levels + k * n, 0, n);
        continue;
      }
      std::int32_t found[n];
      for (int i = 0; i < n; ++i) {
        found[i] = signed_level(state[k * n + i], per_one[k], thresholds.threshold[i],
                                thresholds.variance[i]);
      }
      narrow(found, levels + k * n);
    }
  }

  static void decode_block(const void* const* from, const float* scales, float* const* to) {
    const auto* const levels = static_cast<const std::int8_t*>(from[0]);
    float* const state = to[0];
    const float unit_size = signed_unit_size(scales[0]);
    for (int i = 0; i < block_size; ++i) state[i] = signed_at(levels[i], unit_size);
  }
};

// A signed state as its ratio to the denominator of steps, and that.
struct RatioState {
  static constexpr int states = 2;

  static void encode(const float* const* from, std::uint32_t random, void* const* to, float* scales,
                     int blocks) {
    constexpr int n = block_size;
    const float* const plain = from[0];
    const float* const denominator = from[1];
    auto* const ratios = static_cast<std::int8_t*>(to[0]);
    auto* const denominators = static_cast<std::uint8_t*>(to[1]);
    constexpr int most = rng_block / block_size * states;
    float ratio[rng_block], per_one[most];
    for (int k = 0; k < blocks; ++k) {
      find_ratios(plain + k * n, denominator + k * n, ratio + k * n, scales + k * states);
    }
    for (int k = 0; k < blocks * states; ++k) {
      per_one[k] = k % states == 0 ? ratio_units(scales[k]) : denominator_units(scales[k]);
    }
    const SquareThresholds thresholds(random);
    std::int32_t ratio_thresholds[n];
    for (std::uint32_t i = 0; i < n; ++i) ratio_thresholds[i] = ratio_threshold(random, i);
    for (int k = 0; k < blocks; ++k) {
      if (!finish_scales<states>(scales + k * states)) {
        std::memset(ratios + k * n, 0, n);
        std::memset(denominators + k * n, 0, n);
        continue;
      }
      const float* const per = per_one + k * states;
      std::int32_t ratio_levels_found[n], denominator_levels_found[n];
      for (int i = 0; i < n; ++i) {
        ratio_levels_found[i] = ratio_level(ratio[k * n + i], per[0], ratio_thresholds[i]);
      }
      for (int i = 0; i < n; ++i) {
        denominator_levels_found[i] = denominator_level(
            denominator[k * n + i], per[1], thresholds.threshold[i], thresholds.variance[i]);
      }
      narrow(ratio_levels_found, ratios + k * n);
      narrow(denominator_levels_found, denominators + k * n);
    }
  }

  static void decode_block(const void* const* from, const float* scales, float* const* to) {
    const auto* const ratios = static_cast<const std::int8_t*>(from[0]);
    const auto* const denominators = static_cast<const std::uint8_t*>(from[1]);
    float* const plain = to[0];
    float* const denominator = to[1];
    const float ratio_size = ratio_level_size(scales[0]);
    const float denominator_size = denominator_unit_size(scales[1]);
    for (int i = 0; i < block_size; ++i) {
      denominator[i] = denominator_at(denominators[i], denominator_size);
      plain[i] = plain_at(ratios[i], ratio_size, denominator[i]);
    }
  }

 private:
  // Finds the ratios of a block, and the ranges of both states.
  static void find_ratios(const float* plain, const float* denominator, float* ratio,
                          float* scales) {
    constexpr int n = block_size;
    for (int i = 0; i < n; ++i) ratio[i] = ratio_of(plain[i], denominator[i]);
    scales[0] = largest_of<n>(ratio);
    scales[1] = largest_of<n>(denominator);
  }
};

// Arrays begin where a block does, and `random` with the group that they begin in; what goes beyond
// it begins where it does. Only the last block may be shorter.
template <class Format>
void encode_int8(const float* const* from, const std::uint32_t* random, void* const* to,
                 float* scales, std::int64_t count) noexcept {
  constexpr int n = Format::states;
  const std::int64_t whole = count / block_size * block_size;
  const float* from_here[n];
  void* to_here[n];
  const auto go_to = [&](std::int64_t i) {
    for (int k = 0; k < n; ++k) {
      from_here[k] = from[k] + i;
      to_here[k] = static_cast<char*>(to[k]) + i;
    }
    return scales + i / block_size * n;
  };
  for (std::int64_t i = 0; i < whole; i += rng_block) {
    const std::int64_t elements = whole - i < rng_block ? whole - i : rng_block;
    float* const scales_here = go_to(i);
    Format::encode(from_here, random[i / rng_block], to_here, scales_here,
                   static_cast<int>(elements / block_size));
  }
  const auto rest = static_cast<std::size_t>(count - whole);
  if (rest == 0) return;
  float* const scales_here = go_to(whole);
  float padded[n][block_size] = {};
  char levels[n][block_size];
  const float* padded_arrays[n];
  void* level_arrays[n];
  for (int k = 0; k < n; ++k) {
    std::memcpy(padded[k], from_here[k], rest * sizeof(float));
    padded_arrays[k] = padded[k];
    level_arrays[k] = levels[k];
  }
  Format::encode(padded_arrays, random[whole / rng_block], level_arrays, scales_here, 1);
  for (int k = 0; k < n; ++k) std::memcpy(to_here[k], levels[k], rest);
}

template <class Format>
void decode_int8(const void* const* from, const float* scales, float* const* to,
                 std::int64_t count) noexcept {
  constexpr int n = Format::states;
  const void* from_here[n];
  float* to_here[n];
  const auto go_to = [&](std::int64_t i) {
    for (int k = 0; k < n; ++k) {
      from_here[k] = static_cast<const char*>(from[k]) + i;
      to_here[k] = to[k] + i;
    }
  };
  std::int64_t i = 0;
  for (; i + block_size <= count; i += block_size, scales += n) {
    go_to(i);
    Format::decode_block(from_here, scales, to_here);
  }
  if (i == count) return;
  go_to(i);
  const auto rest = static_cast<std::size_t>(count - i);
  char levels[n][block_size] = {};
  float padded[n][block_size];
  const void* level_arrays[n];
  float* padded_arrays[n];
  for (int k = 0; k < n; ++k) {
    std::memcpy(levels[k], from_here[k], rest);
    level_arrays[k] = levels[k];
    padded_arrays[k] = padded[k];
  }
  Format::decode_block(level_arrays, scales, padded_arrays);
  for (int k = 0; k < n; ++k) std::memcpy(to_here[k], padded[k], rest * sizeof(float));
}

}  // namespace
}  // namespace mxadamax::cpu
