// SPDX-License-Identifier: Apache-2.0
#include "cpu/bandwidth_baseline.h"

#include <algorithm>
#include <cmath>

namespace mxadamax {
namespace {

// Elements that are divided at a time: they stay in the nearest cache.
constexpr std::int64_t block = 256;

// Everything that runs in a loop is inlined into a function of one instruction set.
template <int states, class Gradient, class Copy>
[[gnu::always_inline]] inline void loop(float* const* written, const Gradient* g, Copy* copy,
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
    if (copy != nullptr) copy[i] = static_cast<Copy>(x);
  }
}

// Divides, and takes roots; results converge, to 0.618 and 1.618.
template <class T>
[[gnu::always_inline]] inline void divide(float* numbers, std::int64_t count, int divisions,
                                          int roots) {
  for (int k = 0; k < divisions; ++k) {
    for (std::int64_t i = 0; i < count; ++i) {
      numbers[i] = static_cast<float>(1 / (1 + static_cast<T>(std::fabs(numbers[i]))));
    }
  }
  for (int k = 0; k < roots; ++k) {
    for (std::int64_t i = 0; i < count; ++i) {
      numbers[i] = static_cast<float>(std::sqrt(1 + static_cast<T>(std::fabs(numbers[i]))));
    }
  }
}

template <class Number>
[[gnu::always_inline]] inline void add_squares(float* sums, const Number* numbers,
                                               std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float x = numbers[i];
    sums[i] += x * x;
  }
}

// Has a result computed that nobody uses.
[[gnu::always_inline]] inline void keep(const float* numbers) {
  asm volatile("" : : "r"(numbers) : "memory");
}

// Adds squares one after another, those of all arrays side by side.
template <int states, class Gradient>
[[gnu::always_inline]] inline void add_in_order(float* const* written, const Gradient* grad,
                                                int reads, std::int64_t count) {
  float sums[states + 2] = {};
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = grad[i];
    sums[0] += g * g;
    for (int k = 0; k <= states && k + 1 < reads; ++k) sums[k + 1] += written[k][i] * written[k][i];
  }
  keep(sums);
}

template <int states, class Gradient>
[[gnu::always_inline]] inline void pass_over(const BaselineTensor& tensor, const BaselinePass& pass,
                                             std::int64_t first, std::int64_t count) {
  const Gradient* const grad = static_cast<const Gradient*>(tensor.grad) + first;
  Gradient* const copy =
      tensor.copy == nullptr ? nullptr : static_cast<Gradient*>(tensor.copy) + first;
  float* written[states + 1];
  for (int k = 0; k <= states; ++k) written[k] = tensor.written[k] + first;
  const bool divides = pass.divisions + pass.roots + pass.double_divisions + pass.double_roots > 0;
  if (pass.reads == 0 && !divides) return loop<states>(written, grad, copy, count);
  if (pass.in_order) return add_in_order<states>(written, grad, pass.reads, count);

  for (std::int64_t begin = 0, length; begin < count; begin += length) {
    length = std::min(block, count - begin);
    alignas(64) float numbers[block] = {};
    if (pass.reads == 0) {
      for (std::int64_t i = 0; i < length; ++i) numbers[i] = grad[begin + i];
    } else {
      add_squares(numbers, grad + begin, length);
      for (int k = 0; k < pass.reads - 1; ++k) add_squares(numbers, written[k] + begin, length);
    }
    divide<float>(numbers, length, pass.divisions, pass.roots);
    divide<double>(numbers, length, pass.double_divisions, pass.double_roots);
    if (pass.reads == 0) {
      float* parts[states + 1];
      for (int k = 0; k <= states; ++k) parts[k] = written[k] + begin;
      loop<states>(parts, numbers, copy == nullptr ? nullptr : copy + begin, length);
    } else {
      keep(numbers);
    }
  }
}

template <int states>
[[gnu::always_inline]] inline void pass_over(const BaselineTensor& tensor, const BaselinePass& pass,
                                             std::int64_t first, std::int64_t count) {
  if (tensor.copy == nullptr) {
    pass_over<states, float>(tensor, pass, first, count);
  } else {
    pass_over<states, std::uint16_t>(tensor, pass, first, count);
  }
}

[[gnu::always_inline]] inline void pass_over(const BaselineTensor& tensor, int states,
                                             const BaselinePass& pass, std::int64_t first,
                                             std::int64_t count) {
  static_assert(max_states == 4, "a case for each number of states");
  switch (states) {
    case 0:
      return pass_over<0>(tensor, pass, first, count);
    case 1:
      return pass_over<1>(tensor, pass, first, count);
    case 2:
      return pass_over<2>(tensor, pass, first, count);
    case 3:
      return pass_over<3>(tensor, pass, first, count);
    default:
      return pass_over<4>(tensor, pass, first, count);
  }
}

void baseline(const BaselineTensor& tensor, int states, const BaselinePass& pass,
              std::int64_t first, std::int64_t count) {
  pass_over(tensor, states, pass, first, count);
}

#if defined(MXADAMAX_X86_64)
[[gnu::target("avx2")]] void avx2(const BaselineTensor& tensor, int states,
                                  const BaselinePass& pass, std::int64_t first,
                                  std::int64_t count) {
  pass_over(tensor, states, pass, first, count);
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

void bandwidth_baseline(const std::vector<BaselineTensor>& tensors, int states,
                        const std::vector<BaselinePass>& passes, int threads,
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
      for (const BaselinePass& pass : passes) {
        if (first < last) run(tensor, states, pass, first, last - first);
      }
      start += tensor.size;
      if (start >= end) break;
    }
  }
}

}  // namespace mxadamax
