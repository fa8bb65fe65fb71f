// What is found out about a gradient before a step: sums of squares, and whether all is finite.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

#include <cstdint>

namespace mxadamax::cpu {
namespace {

// In double precision: squares of float32 numbers neither overflow nor vanish there. Number i goes
// to sum i % lanes, and these are added in pairs, which fixes the result whatever the width of the
// processor's vectors.
template <class T>
double sum_of_squares(const void* numbers, std::int64_t count) noexcept {
  constexpr int lanes = 16;
  const T* const x = static_cast<const T*>(numbers);
  double sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (int k = 0; k < lanes; ++k) {
      const double value = x[i + k];
      sums[k] += value * value;
    }
  }
  for (int k = 0; i + k < count; ++k) {
    const double value = x[i + k];
    sums[k] += value * value;
  }
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
  }
  return sums[0];
}

// 0 where all numbers are finite, else NaN.
template <class T>
double sum_of_zeros(const void* numbers, std::int64_t count) noexcept {
  constexpr int lanes = 16;
  const T* const x = static_cast<const T*>(numbers);
  T sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (int k = 0; k < lanes; ++k) sums[k] += x[i + k] * T{0};
  }
  for (int k = 0; i + k < count; ++k) sums[k] += x[i + k] * T{0};
  double sum = 0;
  for (int k = 0; k < lanes; ++k) sum += static_cast<double>(sums[k]);
  return sum;
}

}  // namespace
}  // namespace mxadamax::cpu
