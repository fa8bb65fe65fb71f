// SPDX-License-Identifier: Apache-2.0
// The least that an update can cost: its reads and its writes, and next to nothing else. What the
// benchmark measures the kernels by.
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

// Reads the gradient of each tensor, and reads and writes its weight and `states` states. Each of
// `threads` threads takes an equal part of the whole. `instruction_set` is one of
// cpu::instruction_sets().
void bandwidth_baseline(const std::vector<BaselineTensor>& tensors, int states, int threads,
                        const std::string& instruction_set);

}  // namespace mxadamax
