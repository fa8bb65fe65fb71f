// SPDX-License-Identifier: Apache-2.0
// The least that an update can cost: its reads and its writes and, where these take longer, its
// divisions and roots; next to nothing else. What the benchmark measures the kernels by.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/kernel.h"

namespace mxadamax {

// What an update of one tensor reads and writes. Arrays must not overlap.
struct BaselineTensor {
  std::int64_t size;
  // float32, or 16 bits where there is a copy.
  const void* grad;
  // The weight and the states.
  float* written[1 + max_states];
  // Of 16 bits: the weight once more. Or null.
  void* copy;
};

// What one pass over a tensor does with each element.
struct BaselinePass {
  // How many arrays it reads, of gradient, weight and states in this order, without writing; 0 in
  // the pass that updates.
  int reads;
  int divisions, roots;
  // In double precision.
  int double_divisions, double_roots;
  // Whether squares of what it reads are added one after another, as the bits of MXNet's norms
  // need.
  bool in_order;
};

// Makes the passes over each tensor, one after another. One that updates reads the gradient, and
// reads and writes the weight and `states` states. Each of `threads` threads takes an equal part of
// the whole. `instruction_set` is one of cpu::instruction_sets().
void bandwidth_baseline(const std::vector<BaselineTensor>& tensors, int states,
                        const std::vector<BaselinePass>& passes, int threads,
                        const std::string& instruction_set);

}  // namespace mxadamax
