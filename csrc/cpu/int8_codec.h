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
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

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

void encode_block(const float* plain, const float* divisor, const std::uint32_t* random,
                  std::int8_t* ratios, std::uint8_t* divisors, float* scales) noexcept {
  constexpr int n = scaled_block;
  float ratio[n];
  for (int i = 0; i < n; ++i) {
    const float quotient = plain[i] / divisor[i];
    ratio[i] = divisor[i] > 0 ? quotient : plain[i] * 0;
  }
  float ratio_range = largest_of<n>(ratio);
  float divisor_range = largest_of<n>(divisor);
  if (!(ratio_range + divisor_range < __builtin_inff())) {
    // Nothing in the block means anything any more, as its next step will show.
    std::memset(ratios, 0, n);
    std::memset(divisors, 0, n);
    scales[0] = scales[1] = __builtin_nanf("");
    return;
  }
  if (ratio_range > 0) ratio_range = bounded_below(ratio_range);
  if (divisor_range > 0) divisor_range = bounded_below(divisor_range);
  const float per_ratio = ratio_levels / bounded_below(ratio_range);
  const float per_divisor = divisor_levels * divisor_levels / bounded_below(divisor_range);
  // Levels are found as integers of full width, and made narrow by themselves: mixed, the compiler
  // spends most of its time between the widths.
  std::int32_t ratio_level[n], divisor_level[n];
  for (int i = 0; i < n; ++i) {
    // In units of 2^-16 levels, from below the lowest level on; random bits decide about the rest.
    const float units = (ratio[i] * per_ratio + (ratio_levels + 1)) * 0x1p16f;
    const std::int32_t level =
        (static_cast<std::int32_t>(units) + static_cast<std::int32_t>(random[i] & 0xffffu)) >> 16;
    ratio_level[i] = (level < 1 ? 1 : level > 255 ? 255 : level) - 128;
  }
  for (int i = 0; i < n; ++i) {
    // Between level q and the next lie 2 q + 1 units.
    const float units = divisor[i] * per_divisor;
    const auto q = static_cast<std::int32_t>(square_root(units));
    const float level = static_cast<float>(q);
    const float chance = static_cast<float>(static_cast<std::int32_t>(random[i] >> 16)) * 0x1p-16f;
    const float above = units - level * level - chance * (2 * level + 1);
    const std::int32_t rounded = q + (signed_bits_of(above) > 0 ? 1 : 0);
    const std::int32_t bounded = rounded < 255 ? rounded : 255;
    const std::int32_t least = signed_bits_of(divisor[i]) > 0 ? 1 : 0;
    divisor_level[i] = bounded > least ? bounded : least;
  }
  for (int i = 0; i < n; ++i) ratios[i] = static_cast<std::int8_t>(ratio_level[i]);
  for (int i = 0; i < n; ++i) divisors[i] = static_cast<std::uint8_t>(divisor_level[i]);
  scales[0] = ratio_range;
  scales[1] = divisor_range;
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

// Arrays begin where a block does; only the last block may be shorter.
void encode_int8(const float* plain, const float* divisor, const std::uint32_t* random,
                 void* ratios, void* divisors, float* scales, std::int64_t count) noexcept {
  auto* const r = static_cast<std::int8_t*>(ratios);
  auto* const d = static_cast<std::uint8_t*>(divisors);
  std::int64_t i = 0;
  for (; i + scaled_block <= count; i += scaled_block, scales += scales_of_block) {
    encode_block(plain + i, divisor + i, random + i, r + i, d + i, scales);
  }
  if (i == count) return;
  const std::int64_t rest = count - i;
  float rest_plain[scaled_block] = {}, rest_divisor[scaled_block] = {};
  std::uint32_t rest_random[scaled_block] = {};
  std::int8_t rest_ratios[scaled_block];
  std::uint8_t rest_divisors[scaled_block];
  copy(plain + i, rest, rest_plain);
  copy(divisor + i, rest, rest_divisor);
  copy(random + i, rest, rest_random);
  encode_block(rest_plain, rest_divisor, rest_random, rest_ratios, rest_divisors, scales);
  copy(rest_ratios, rest, r + i);
  copy(rest_divisors, rest, d + i);
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
