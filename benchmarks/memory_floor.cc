// SPDX-License-Identifier: Apache-2.0
// The least that an update can cost: its reads and its writes, and next to nothing else.
// benchmark.py compiles this file on first use.
#include <algorithm>
#include <cstdint>

namespace {

// `Gradient` is what gradients are stored as, and with `copy` the weight once more.
template <int states, class Gradient>
void run(float* const* arrays, const Gradient* g, Gradient* copy, std::int64_t begin,
         std::int64_t end) {
  float* const w = arrays[0];
  float* s[states + 1];
  for (int k = 0; k < states; ++k) s[k] = arrays[1 + k];
#pragma GCC ivdep
  for (std::int64_t i = begin; i < end; ++i) {
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

template <class Gradient>
void run_all(std::int64_t tensors, std::int64_t states, const std::int64_t* sizes,
             const Gradient* const* grads, float* const* arrays, Gradient* const* copies,
             std::int64_t threads) {
  constexpr decltype(&run<0, Gradient>) runs[] = {
      run<0, Gradient>, run<1, Gradient>, run<2, Gradient>, run<3, Gradient>, run<4, Gradient>};
  std::int64_t total = 0;
  for (std::int64_t t = 0; t < tensors; ++t) total += sizes[t];
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (std::int64_t part = 0; part < threads; ++part) {
    const std::int64_t begin = total * part / threads;
    const std::int64_t end = total * (part + 1) / threads;
    std::int64_t start = 0;
    for (std::int64_t t = 0; t < tensors && start < end; start += sizes[t++]) {
      const std::int64_t first = std::max(begin - start, std::int64_t{0});
      const std::int64_t last = std::min(end - start, sizes[t]);
      if (first >= last) continue;
      runs[states](arrays + t * (1 + states), grads[t], copies == nullptr ? nullptr : copies[t],
                   first, last);
    }
  }
}

}  // namespace

// Reads the gradient `grads[t]` and reads and writes the 1 + `states` arrays that begin at
// `arrays[t * (1 + states)]` of each of `tensors` tensors, `sizes[t]` elements of each. Arrays must
// not overlap. Each of `threads` threads takes an equal part of the whole. At most 4 states.
extern "C" void memory_floor(std::int64_t tensors, std::int64_t states, const std::int64_t* sizes,
                             const float* const* grads, float* const* arrays,
                             std::int64_t threads) {
  run_all<float>(tensors, states, sizes, grads, arrays, nullptr, threads);
}

// The same for gradients of 16 bits, with a 16-bit copy of each weight to write.
extern "C" void memory_floor_16(std::int64_t tensors, std::int64_t states,
                                const std::int64_t* sizes, const std::uint16_t* const* grads,
                                float* const* arrays, std::uint16_t* const* copies,
                                std::int64_t threads) {
  run_all<std::uint16_t>(tensors, states, sizes, grads, arrays, copies, threads);
}
