// SPDX-License-Identifier: Apache-2.0
// Which of the compiled instruction sets to use on this machine.
#pragma once

#include <string>
#include <vector>

#include "kernel.h"

namespace mxadamax::cpu {

struct InstructionSet {
  const char* name;
  KernelTable table;
};

// Those this processor can run, the plainest first.
const std::vector<InstructionSet>& instruction_sets();

// The one named; throws std::invalid_argument with the names to choose from where this processor,
// or this build, does not have it.
const InstructionSet& instruction_set(const std::string& name);

// The best one, or the one that the environment variable MXADAMAX_INSTRUCTION_SET names. Decided
// once.
const InstructionSet& chosen_instruction_set();

}  // namespace mxadamax::cpu
