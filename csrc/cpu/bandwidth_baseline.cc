// SPDX-License-Identifier: Apache-2.0
#include "cpu/bandwidth_baseline.h"

#include <algorithm>

namespace mxadamax {
namespace {

// Everything that runs in a loop is inlined into a function of one instruction set.
template <int states, class Gradient>
[[gnu::always_inline]] inline void loop(float* const* written, const Gradient* g, Gradient* copy,
                                        std::int64_t count) {
  float* const w = written[0];
  float* s[states + 1];
  for (int k = 0; k < states; ++k) s[k] = written[1 + k];
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
  for (std::int64_t i = 0; i < count; ++i) {
    // All sums converge: numbers that are too small to be normal, or infinite, would be slow to
    // compute with.
    // Of 16-bit numbers the bits are taken for an integer: conversion is not what is measured.
    const float grad = g[i];
    float x = 0.5f * w[i] + grad;
    for (int k = 0; k < states; ++k) {
      s[k][i] = 0.5f * s[k][i] + grad * grad;
      x += s[k][i];
    }
    w[i] = x;
    if (copy != nullptr) copy[i] = static_cast<Gradient>(x);
  }
}

template <int states>
[[gnu::always_inline]] inline void part_of(const BaselineTensor& tensor, std::int64_t first,
                                           std::int64_t count) {
  float* written[states + 1];
  for (int k = 0; k <= states; ++k) written[k] = tensor.written[k] + first;
  if (tensor.copy == nullptr) {
    float* const none = nullptr;
    loop<states>(written, static_cast<const float*>(tensor.grad) + first, none, count);
  } else {
    loop<states>(written, static_cast<const std::uint16_t*>(tensor.grad) + first,
                 static_cast<std::uint16_t*>(tensor.copy) + first, count);
  }
}

[[gnu::always_inline]] inline void part_of(const BaselineTensor& tensor, int states,
                                           std::int64_t first, std::int64_t count) {
  static_assert(max_states == 4, "a case for each number of states");
  switch (states) {
    case 0:
      return part_of<0>(tensor, first, count);
    case 1:
      return part_of<1>(tensor, first, count);
    case 2:
      return part_of<2>(tensor, first, count);
    case 3:
      return part_of<3>(tensor, first, count);
    default:
      return part_of<4>(tensor, first, count);
  }
}

void baseline(const BaselineTensor& tensor, int states, std::int64_t first, std::int64_t count) {
  part_of(tensor, states, first, count);
}

#if defined(MXADAMAX_X86_64)
[[gnu::target("avx2")]] void avx2(const BaselineTensor& tensor, int states, std::int64_t first,
                                  std::int64_t count) {
  part_of(tensor, states, first, count);
}
#endif

decltype(&baseline) compiled_for(const std::string& instruction_set) {
#if defined(MXADAMAX_X86_64)
  // Wider vectors move no more bytes.
  if (instruction_set != "baseline") return avx2;
#endif
  static_cast<void>(instruction_set);
  return baseline;
}

}  // namespace

void bandwidth_baseline(const std::vector<BaselineTensor>& tensors, int states, int threads,
                        const std::string& instruction_set) {
  const auto run = compiled_for(instruction_set);
  std::int64_t total = 0;
  for (const BaselineTensor& tensor : tensors) total += tensor.size;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int part = 0; part < threads; ++part) {
    const std::int64_t begin = total * part / threads;
    const std::int64_t end = total * (part + 1) / threads;
    std::int64_t start = 0;
    for (const BaselineTensor& tensor : tensors) {
      const std::int64_t first = std::max(begin - start, std::int64_t{0});
      const std::int64_t last = std::min(end - start, tensor.size);
      if (first < last) run(tensor, states, first, last - first);
      start += tensor.size;
      if (start >= end) break;
    }
  }
}

}  // namespace mxadamax
