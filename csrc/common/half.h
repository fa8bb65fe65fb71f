// SPDX-License-Identifier: Apache-2.0
// What 16-bit numbers stand for, and which of them is nearest to a float.
//
// Rounds to nearest, ties to even; subnormal numbers, infinities and NaN go through, also where the
// processor is told to flush subnormal numbers. No branches, so that loops of them are vectorised.
#pragma once

#include <cstdint>

#include "rules/rule.h"

namespace mxadamax {

MXADAMAX_RULE std::uint32_t bit_cast_to_integer(float x) {
  return static_cast<std::uint32_t>(bits_of(x));
}

MXADAMAX_RULE float bit_cast_to_float(std::uint32_t bits) {
  return float_of(static_cast<std::int32_t>(bits));
}

MXADAMAX_RULE float decode_float16(std::uint16_t h) {
  constexpr std::uint32_t rebias = 112u << 23;
  const std::uint32_t sign = (h & 0x8000u) << 16;
  const std::uint32_t magnitude = (h & 0x7fffu) << 13;
  const bool special = (h & 0x7c00u) == 0x7c00u;
  const bool nan = (h & 0x7fffu) > 0x7c00u;
  const std::uint32_t normal =
      (magnitude + rebias + (special ? rebias : 0u)) | (nan ? 0x00400000u : 0u);
  // Converted as an integer: no subnormal float comes up.
  const std::uint32_t subnormal =
      bit_cast_to_integer(static_cast<float>(static_cast<std::int32_t>(h & 0x3ffu)) * 0x1p-24f);
  return bit_cast_to_float(sign | ((h & 0x7c00u) == 0 ? subnormal : normal));
}

MXADAMAX_RULE std::uint16_t encode_float16(float x) {
  constexpr std::uint32_t rebias = 112u << 23;
  const std::uint32_t sign = bit_cast_to_integer(x) >> 16 & 0x8000u;
  const std::uint32_t magnitude = bit_cast_to_integer(x) & 0x7fffffffu;
  const std::uint32_t normal = (magnitude - rebias + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // The processor rounds: next to one half, the unit in the last place is the smallest float16.
  const std::uint32_t subnormal =
      bit_cast_to_integer(bit_cast_to_float(magnitude) + 0.5f) - bit_cast_to_integer(0.5f);
  const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const std::uint32_t nan = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  const std::uint32_t special = magnitude > 0x7f800000u ? nan : 0x7c00u;
  return static_cast<std::uint16_t>(sign | (magnitude >= 0x47800000u ? special : finite));
}

MXADAMAX_RULE float decode_bfloat16(std::uint16_t h) {
  return bit_cast_to_float(static_cast<std::uint32_t>(h) << 16);
}

MXADAMAX_RULE std::uint16_t encode_bfloat16(float x) {
  const std::uint32_t bits = bit_cast_to_integer(x);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const std::uint32_t nan = bits >> 16 | 0x40u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

}  // namespace mxadamax
