// One update of many tensors by one rule.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel.h"

namespace mxadamax::cpu {

// The memory of one parameter, or of a part of one.
struct Tensor {
  Compute compute;
  std::int64_t size;
  // One for each of the rule's scalar_names.
  const double* scalars;
  // Pointers of a tensor without elements are never read.
  const void* grad;
  void* weight;
  void* states[max_states];
};

// Updates every tensor once.
//
// `threads` is the size of the OpenMP team; 0 takes what OpenMP gives the calling thread, which on
// MXNet's engine threads is what MXNet decided. The result does not depend on it.
void update(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads = 0);

}  // namespace mxadamax::cpu
