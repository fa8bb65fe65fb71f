// SPDX-License-Identifier: Apache-2.0
// Sums in the order of a plain loop, with the bits of that loop, many terms at a time.
//
// While a sum s stays below the next power of two, its unit in the last place u stays what it is.
// To add a term then adds the multiple of u that is nearest to the term, whatever s is; only where
// the term lies half-way between two multiples does it depend on s. And sums of multiples of u are
// exact in any order while they stay below that power of two. So the rounded terms may be added in
// lanes; what crosses the power of two, or lies half-way, has to go the plain way.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "rules/rule.h"

namespace mxadamax::cpu {
namespace {

// Returns the largest power of two that is not larger than x; zero for numbers that are too small
// to be normal, and infinity for infinity and NaN.
template <class T>
T power_of_two_below(T x) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  constexpr int mantissa_bits = std::numeric_limits<T>::digits - 1;
  Bits bits;
  std::memcpy(&bits, &x, sizeof x);
  bits = bits >> mantissa_bits << mantissa_bits;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// What terms add up to once rounded to multiples of a unit, and the furthest that one was from it.
template <class T, int lanes>
struct RoundedSum {
  T sums[lanes] = {};
  T distances[lanes] = {};

  // `power` is the power of two with that unit.
  void add(const T* terms, T power) {
    for (int k = 0; k < lanes; ++k) {
      const T rounded = power + terms[k] - power;
      const T distance = absolute(terms[k] - rounded);
      distances[k] = distance > distances[k] ? distance : distances[k];
      sums[k] += rounded;
    }
  }

  RoundedSum<T, 1> joined() const {
    if constexpr (lanes == 1) {
      return *this;
    } else {
      RoundedSum<T, lanes / 2> half;
      for (int k = 0; k < lanes / 2; ++k) {
        const T a = distances[k];
        const T b = distances[k + lanes / 2];
        half.distances[k] = a > b ? a : b;
        half.sums[k] = sums[k] + sums[k + lanes / 2];
      }
      return half.joined();
    }
  }
};

// The number of terms that are added at a time.
template <class T>
constexpr int ordered_lanes = 128 / sizeof(T);

// Adds `count` terms, none of them negative, to `total`, with the result of adding one after
// another; `count` is a multiple of ordered_lanes. Returns false, and leaves `total` as it is,
// where that cannot be done in lanes. NaN and infinity are among that.
template <class T>
bool add_in_lanes(T& total, const T* terms, std::int64_t count) {
  const T power = power_of_two_below(total);

  RoundedSum<T, ordered_lanes<T>> lanes;
  for (std::int64_t i = 0; i < count; i += ordered_lanes<T>) lanes.add(terms + i, power);
  const RoundedSum<T, 1> added = lanes.joined();
  const T sum = total + added.sums[0];
  constexpr T half_epsilon = std::numeric_limits<T>::epsilon() / 2;
  const T half_unit = power * half_epsilon;
  // The second comparison is false as well where the power is zero or infinite, or a term is NaN.
  if (added.distances[0] == half_unit || !(sum < 2 * power)) return false;
  total = sum;
  return true;
}

}  // namespace
}  // namespace mxadamax::cpu
