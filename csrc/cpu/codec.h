// SPDX-License-Identifier: Apache-2.0
// Conversion between float and the 16-bit types that arrays may be stored in.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage. half.h defines
// the conversions, low_precision.h stochastic rounding. The loops have no branches, so the compiler
// vectorizes them; F16C instructions are written by hand, because it does not find them.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/low_precision.h"
#include "kernel.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace mxadamax::cpu {
namespace {

struct Float16 {
  static float decode(std::uint16_t h) { return decode_float16(h); }
  static std::uint16_t encode(float x) { return encode_float16(x); }
  static std::int32_t encode_stochastic(float x, std::int32_t random) {
    return encode_float16_stochastic(x, random);
  }

#if defined(__F16C__)
  static std::int64_t decode_vectors(const std::uint16_t* from, float* to, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(h));
    }
    return i;
  }

  static std::int64_t encode_vectors(const float* from, std::uint16_t* to, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      const __m128i h =
          _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), h);
    }
    return i;
  }
#endif
};

struct Bfloat16 {
  static float decode(std::uint16_t h) { return decode_bfloat16(h); }
  static std::uint16_t encode(float x) { return encode_bfloat16(x); }
  static std::int32_t encode_stochastic(float x, std::int32_t random) {
    return encode_bfloat16_stochastic(x, random);
  }
};

template <class Type>
void decode(const void* from, float* to, std::int64_t count) noexcept {
  const auto* const stored = static_cast<const std::uint16_t*>(from);
  std::int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<Type, Float16>) i = Type::decode_vectors(stored, to, count);
#endif
  for (; i < count; ++i) to[i] = Type::decode(stored[i]);
}

template <class Type>
void encode(const float* from, void* to, std::int64_t count) noexcept {
  auto* const stored = static_cast<std::uint16_t*>(to);
  std::int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<Type, Float16>) i = Type::encode_vectors(from, stored, count);
#endif
  for (; i < count; ++i) stored[i] = Type::encode(from[i]);
}

// `shift` says which 16 of an element's random bits are meant.
template <class Type, bool denominator>
void encode_stochastic(const float* from, const std::uint32_t* random, int shift, void* to,
                       std::int64_t count) noexcept {
  auto* const stored = static_cast<std::uint16_t*>(to);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto bits = static_cast<std::int32_t>(random[i] >> shift & 0xffffu);
    std::int32_t found = Type::encode_stochastic(from[i], bits);
    if constexpr (denominator) found = zero_preserving_encode(from[i], found);
    stored[i] = static_cast<std::uint16_t>(found);
  }
}

}  // namespace
}  // namespace mxadamax::cpu
