// SPDX-License-Identifier: Apache-2.0
// A row of scalars as a rule takes it.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

#include <cstring>

#include "common/dtype.h"
#include "rules/rule.h"

namespace mxadamax::cpu {
namespace {

// Rounds the next scalars of a row to the type that the kernel computes in, or to the numbers in a
// vector.
template <class Scalars, class T>
Scalars read_scalars(const double*& row) {
  constexpr int n = sizeof(Scalars) / sizeof(T);
  T rounded[n];
  for (int k = 0; k < n; ++k) rounded[k] = constant<T>(row[k]);
  row += n;
  Scalars scalars;
  std::memcpy(&scalars, rounded, sizeof scalars);
  return scalars;
}

template <class R, class T>
Scales<R, T> read_scales(const double* scales) {
  static_assert(R::scales <= max_scales, "raise max_scales");
  Scales<R, T> rounded{};
  if constexpr (R::sums > 0) {
    for (int k = 0; k < R::scales; ++k) rounded.found[k] = constant<T>(scales[k]);
  }
  return rounded;
}

}  // namespace
}  // namespace mxadamax::cpu
