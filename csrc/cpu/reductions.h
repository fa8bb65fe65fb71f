// SPDX-License-Identifier: Apache-2.0
// What is found out about a gradient before a step: sums of squares, and whether all is finite.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace mxadamax::cpu {
namespace {

// The sum of term(number), in double precision: squares of float32 numbers neither overflow nor
// vanish there. In lanes, as layout.h says.
template <class T, class Term>
inline __attribute__((always_inline)) double sum_of(const void* numbers, std::int64_t count,
                                                    Term term) {
  constexpr int lanes = sum_lanes;
  const T* const x = static_cast<const T*>(numbers);
  double sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (int k = 0; k < lanes; ++k) sums[k] += term(x[i + k]);
  }
  for (int k = 0; i + k < count; ++k) sums[k] += term(x[i + k]);
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
  }
  return sums[0];
}

template <class T>
double sum_of_squares(const void* numbers, std::int64_t count) noexcept {
  return sum_of<T>(numbers, count, [](double x) { return x * x; });
}

// 0 where all numbers are finite, else NaN.
template <class T>
double nonfinite_probe(const void* numbers, std::int64_t count) noexcept {
  return sum_of<T>(numbers, count, [](double x) { return x * 0; });
}

}  // namespace
}  // namespace mxadamax::cpu
