// SPDX-License-Identifier: Apache-2.0
// What _native lets the module for tests reach, in a capsule of Python's. So tests run the kernels
// that the engine runs, no copy of them, and what they switch acts on the engine. Both modules are
// of one build.
#pragma once

#include <string>
#include <vector>

#include "common/device_backend.h"
#include "cpu/instruction_set.h"
#include "cpu/update.h"

namespace mxadamax {

constexpr const char* testing_hooks_name = "mxadamax.TestingHooks";

struct TestingHooks {
  const cpu::InstructionSet& (*chosen_instruction_set)();
  const cpu::InstructionSet& (*instruction_set)(const std::string& name);
  void (*update)(const cpu::RuleKernels& rule, const std::vector<cpu::Tensor>& tensors,
                 int threads);
  // What updates arrays in host memory; null for the processor's own kernels.
  const DeviceBackend** backend_for_host_memory;
};

}  // namespace mxadamax
