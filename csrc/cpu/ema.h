// SPDX-License-Identifier: Apache-2.0
// The average of a weight over the steps.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

#include <cstdint>

namespace mxadamax::cpu {
namespace {

// With a share of 1 the average becomes the weight itself.
template <class T>
void average(const void* weight, double share, void* average, std::int64_t count) noexcept {
  const T* const w = static_cast<const T*>(weight);
  T* const a = static_cast<T*>(average);
  const T of_new = static_cast<T>(share);
  const T of_old = static_cast<T>(1 - share);
  for (std::int64_t i = 0; i < count; ++i) a[i] = of_old * a[i] + of_new * w[i];
}

}  // namespace
}  // namespace mxadamax::cpu
