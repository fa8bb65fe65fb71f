// SPDX-License-Identifier: Apache-2.0
// One update of many tensors by one rule.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernel.h"

namespace mxadamax::cpu {

// The memory of one parameter, or of a part of one.
struct Tensor {
  OpMath compute;
  DType grad_type, weight_type, state_type;
  std::int64_t size;
  // One for each of the rule's scalar_names.
  const double* scalars;
  // Pointers of a tensor without elements are never read.
  const void* grad;
  void* weight;
  void* states[max_states];
  // Where the new weight is written once more, rounded; null for nowhere.
  void* copy = nullptr;
  DType copy_type = DType::float32;
  // Where the average of the weight is, of the type that is computed in; null for nowhere.
  void* average = nullptr;
  // Whether states are kept in low precision: rounded at random, second moments as their roots.
  bool low_precision_state = false;
  // Of 8-bit states: for each block one for each state. Such a tensor is a whole parameter.
  float* scales = nullptr;
  // Of a part of a parameter, where it begins, and whether the tensor before is another part of it.
  std::int64_t offset = 0;
  bool continues_parameter = false;
};

// An address so many elements further on; null stays null.
template <class Pointer>
Pointer advanced(Pointer pointer, DType type, std::int64_t elements) {
  using Byte = std::conditional_t<std::is_same_v<Pointer, const void*>, const char, char>;
  if (pointer == nullptr) return pointer;
  return static_cast<Byte*>(pointer) + elements * dtype_size(type);
}

// A part of a tensor, with a gradient of its own.
Tensor part_of(const Tensor& whole, std::int64_t first, std::int64_t size, const void* grad);

// Updates every tensor once. Types that are converted go with computation in float32.
//
// `threads` is the size of the OpenMP team; 0 takes what OpenMP gives the calling thread, which on
// MXNet's engine threads is what MXNet decided. The result does not depend on it.
void update(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads = 0);

// The root of the sum of the squares of all gradients. The result does not depend on `threads`.
double gradient_norm(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads = 0);

// Whether no gradient holds NaN or an infinite number.
bool gradients_finite(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads = 0);

}  // namespace mxadamax::cpu
