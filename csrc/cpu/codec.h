// SPDX-License-Identifier: Apache-2.0
// Conversion between float and the 16-bit types that arrays may be stored in.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage. half.h defines
// the conversions, low_precision.h stochastic rounding. The compiler finds neither the instructions
// that convert float16 nor those that narrow without a detour: they are written by hand, and give
// the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/half.h"
#include "common/low_precision.h"
#include "kernel.h"

namespace mxadamax::cpu {
namespace {

// std::min is not inlined everywhere.
constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// 16-bit numbers, each in a lane of 32 bits.
Integers load_halves(const std::uint16_t* from) {
#if defined(__AVX512BW__)
  return reinterpret_cast<Integers>(_mm512_maskz_cvtepu16_epi32(0xffff, load<__m256i>(from)));
#elif defined(__AVX2__)
  return reinterpret_cast<Integers>(_mm256_cvtepu16_epi32(load<__m128i>(from)));
#else
  Integers found;
  for (int i = 0; i < lanes; ++i) found[i] = from[i];
  return found;
#endif
}

// Stores the upper halves of two vectors, one after another.
void store_upper_halves(std::uint16_t* to, Integers low, Integers high) {
#if defined(__AVX512BW__)
  using Halves __attribute__((vector_size(64))) = std::uint16_t;
  constexpr Halves upper = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                            33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  store(to,
        _mm512_permutex2var_epi16(reinterpret_cast<__m512i>(low), reinterpret_cast<__m512i>(upper),
                                  reinterpret_cast<__m512i>(high)));
#elif defined(__AVX2__)
  // In each half of a register, some of `low` and then of `high`.
  const __m256i packed = _mm256_packus_epi32(reinterpret_cast<__m256i>(shifted_right(low, 16)),
                                             reinterpret_cast<__m256i>(shifted_right(high, 16)));
  store(to, _mm256_permute4x64_epi64(packed, 0xd8));
#else
  for (int i = 0; i < lanes; ++i) {
    to[i] = static_cast<std::uint16_t>(shifted_right(low[i], 16));
    to[lanes + i] = static_cast<std::uint16_t>(shifted_right(high[i], 16));
  }
#endif
}

struct Bfloat16 {
  static float decode(std::uint16_t h) { return decode_bfloat16(h); }
  static std::uint16_t encode(float x) { return encode_bfloat16(x); }

  static Floats load_vector(const std::uint16_t* from) { return float_of(load_halves(from) << 16); }

  // What is stored, two vectors at a time.
  using Rounded = Integers;
  template <bool denominator>
  static Rounded round_stochastic(Floats x, Integers random) {
    return bfloat16_sum<denominator>(x, random);
  }
  static void store_vectors(std::uint16_t* to, Rounded low, Rounded high) {
    store_upper_halves(to, low, high);
  }
};

struct Float16 {
  static float decode(std::uint16_t h) { return decode_float16(h); }
  static std::uint16_t encode(float x) { return encode_float16(x); }

#if defined(__F16C__)

#if defined(__AVX512BW__)
  using Rounded = __m256i;
  static Floats load_vector(const std::uint16_t* from) {
    return _mm512_maskz_cvtph_ps(0xffff, load<__m256i>(from));
  }
  template <int rounding>
  static Rounded rounded(Floats x) {
    return _mm512_maskz_cvtps_ph(0xffff, x, rounding | _MM_FROUND_NO_EXC);
  }
  static Rounded at_least(Rounded code, Integers least) {
    return _mm256_max_epu16(code,
                            _mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(least)));
  }
#else
  using Rounded = __m128i;
  static Floats load_vector(const std::uint16_t* from) {
    return _mm256_cvtph_ps(load<__m128i>(from));
  }
  template <int rounding>
  static Rounded rounded(Floats x) {
    return _mm256_cvtps_ph(x, rounding | _MM_FROUND_NO_EXC);
  }
  static Rounded at_least(Rounded code, Integers least) {
    const auto wide = reinterpret_cast<__m256i>(least);
    return _mm_max_epu16(
        code, _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
  }
#endif
  static void store_vectors(std::uint16_t* to, Rounded low, Rounded high) {
    store(to, low);
    store(to + lanes, high);
  }
  template <bool denominator>
  static Rounded round_stochastic(Floats x, Integers random) {
    const Rounded code = rounded<_MM_FROUND_TO_ZERO>(float16_sum(x, random));
    if constexpr (!denominator) return code;
    // Negative ones are -0 and NaN, which no least code replaces.
    const Integers bits = bits_of(x);
    return at_least(code, bits > 0 ? constant<Integers>(1) : Integers{});
  }

#else

  // The upper halves count.
  using Rounded = Integers;
  static Floats load_vector(const std::uint16_t* from) {
    Floats found;
    for (int i = 0; i < lanes; ++i) found[i] = decode(from[i]);
    return found;
  }
  template <bool denominator>
  static Rounded round_stochastic(Floats x, Integers random) {
    return encode_float16_stochastic<denominator>(x, random) << 16;
  }
  static void store_vectors(std::uint16_t* to, Rounded low, Rounded high) {
    store_upper_halves(to, low, high);
  }

#endif
};

template <class Type>
void decode(const void* from, float* to, std::int64_t count) noexcept {
  const auto* const stored = static_cast<const std::uint16_t*>(from);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(to + i, Type::load_vector(stored + i));
  for (; i < count; ++i) to[i] = Type::decode(stored[i]);
}

template <class Type>
void encode(const float* from, void* to, std::int64_t count) noexcept {
  auto* const stored = static_cast<std::uint16_t*>(to);
  std::int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<Type, Float16>) {
    for (; i + lanes <= count; i += lanes) {
      store(stored + i, Type::template rounded<_MM_FROUND_TO_NEAREST_INT>(load<Floats>(from + i)));
    }
  }
#endif
  for (; i < count; ++i) stored[i] = Type::encode(from[i]);
}

// The random numbers of the elements of a vector, which go along a line.
struct RandomNumbers {
  using Halves __attribute__((vector_size(4 * lanes))) = std::uint16_t;

  RandomNumbers() = default;
  explicit RandomNumbers(RngLine line) {
    UnsignedIntegers places{};
    for (std::uint32_t i = 0; i < lanes; ++i) places[i] = i;
    numbers = reinterpret_cast<Integers>((places * line.slope + line.offset) & 0xffffu);
    step = constant<Integers>(static_cast<std::int32_t>(line.slope * lanes & 0xffffu));
  }
  // The upper halves stay 0.
  void advance() {
    numbers = reinterpret_cast<Integers>(reinterpret_cast<Halves>(numbers) +
                                         reinterpret_cast<Halves>(step));
  }

  Integers numbers, step;
};

// Two vectors.
constexpr std::int64_t step_length = 2 * lanes;

// Rounds at random, by the numbers that come next.
template <class Type, bool denominator>
void encode_stochastic(const float* from, RandomNumbers random, std::uint16_t* to,
                       std::int64_t count) {
  const auto step = [&](const float* numbers, std::uint16_t* codes) {
    typename Type::Rounded rounded[2];
    for (int half = 0; half < 2; ++half) {
      const Floats x = load<Floats>(numbers + half * lanes);
      rounded[half] = Type::template round_stochastic<denominator>(x, random.numbers);
      random.advance();
    }
    Type::store_vectors(codes, rounded[0], rounded[1]);
  };
  std::int64_t i = 0;
  for (; i + step_length <= count; i += step_length) step(from + i, to + i);
  if (i == count) return;
  const auto rest = static_cast<std::size_t>(count - i);
  float numbers[step_length] = {};
  std::uint16_t codes[step_length];
  std::memcpy(numbers, from + i, rest * sizeof(float));
  step(numbers, codes);
  std::memcpy(to + i, codes, rest * sizeof(std::uint16_t));
}

template <class Type, bool denominator>
void encode_along(const float* from, RngLine line, void* to, std::int64_t count) noexcept {
  encode_stochastic<Type, denominator>(from, RandomNumbers(line), static_cast<std::uint16_t*>(to),
                                       count);
}

}  // namespace
}  // namespace mxadamax::cpu
