// SPDX-License-Identifier: Apache-2.0
// Vectors of numbers, as wide as the registers that are compiled for, and what the language has for
// numbers alone: rules and codecs are written once for both.
//
// The compiler makes vectors of most loops by itself. These are for loops in which types of several
// widths meet, where it does not find the short way.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define MXADAMAX_RULE __host__ __device__ __forceinline__
#else
// Always inlined: one library contains these headers compiled for several instruction sets, and the
// linker must not keep an out-of-line copy for the widest one.
#define MXADAMAX_RULE inline __attribute__((always_inline))
#endif

#if defined(__SSE2__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

namespace mxadamax {

MXADAMAX_RULE double absolute(double a) { return __builtin_fabs(a); }
MXADAMAX_RULE float absolute(float a) { return __builtin_fabsf(a); }

MXADAMAX_RULE double square_root(double a) { return __builtin_sqrt(a); }
MXADAMAX_RULE float square_root(float a) { return __builtin_sqrtf(a); }

// Conversion, towards zero to integers.
MXADAMAX_RULE std::int32_t to_integer(float a) { return static_cast<std::int32_t>(a); }
MXADAMAX_RULE float to_float(std::int32_t a) { return static_cast<float>(a); }

MXADAMAX_RULE float to_single(double a) { return static_cast<float>(a); }
MXADAMAX_RULE float to_single(float a) { return a; }

// Shifts zeros in.
MXADAMAX_RULE std::int32_t shifted_right(std::int32_t a, int bits) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) >> bits);
}
// Sums that wrap around.
MXADAMAX_RULE std::int32_t wrapping_sum(std::int32_t a, std::int32_t b) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) + static_cast<std::uint32_t>(b));
}

template <class Float>
struct IntegerOf {
  using type = std::int32_t;
};

#if !defined(__CUDACC__)

#if defined(__AVX512BW__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif
using Floats __attribute__((vector_size(4 * lanes))) = float;
using Integers __attribute__((vector_size(4 * lanes))) = std::int32_t;
using UnsignedIntegers __attribute__((vector_size(4 * lanes))) = std::uint32_t;

template <>
struct IntegerOf<Floats> {
  using type = Integers;
};

MXADAMAX_RULE Floats absolute(Floats a) {
  return reinterpret_cast<Floats>(reinterpret_cast<Integers>(a) & 0x7fffffff);
}

MXADAMAX_RULE Floats square_root(Floats a) {
#if defined(__AVX512BW__)
  // GCC warns of the plain one, which has an operand that is not initialized.
  return _mm512_maskz_sqrt_ps(0xffff, a);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(a);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(a);
#else
  Floats roots;
  for (int i = 0; i < lanes; ++i) roots[i] = square_root(a[i]);
  return roots;
#endif
}

MXADAMAX_RULE Integers to_integer(Floats a) { return __builtin_convertvector(a, Integers); }
MXADAMAX_RULE Floats to_float(Integers a) { return __builtin_convertvector(a, Floats); }
MXADAMAX_RULE Floats to_single(Floats a) { return a; }
MXADAMAX_RULE Integers shifted_right(Integers a, int bits) {
  return reinterpret_cast<Integers>(reinterpret_cast<UnsignedIntegers>(a) >> bits);
}
MXADAMAX_RULE Integers wrapping_sum(Integers a, Integers b) {
  return reinterpret_cast<Integers>(reinterpret_cast<UnsignedIntegers>(a) +
                                    reinterpret_cast<UnsignedIntegers>(b));
}

template <class Vector, class Number>
MXADAMAX_RULE Vector load(const Number* from) {
  Vector found;
  std::memcpy(&found, from, sizeof found);
  return found;
}
template <class Vector, class Number>
MXADAMAX_RULE void store(Number* to, Vector given) {
  std::memcpy(to, &given, sizeof given);
}

#endif

template <class Float>
using IntegerOf_t = typename IntegerOf<Float>::type;

// A number, in each place of a vector.
template <class T, class Number>
MXADAMAX_RULE T constant(Number x) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<T>(x);
  } else {
    return T{} + static_cast<std::decay_t<decltype(T{}[0])>>(x);
  }
}

// The bits of a number, and the number of bits.
template <class Float>
MXADAMAX_RULE IntegerOf_t<Float> bits_of(Float x) {
  IntegerOf_t<Float> bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
MXADAMAX_RULE float float_of(std::int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
#if !defined(__CUDACC__)
MXADAMAX_RULE Floats float_of(Integers bits) { return reinterpret_cast<Floats>(bits); }
#endif

}  // namespace mxadamax
