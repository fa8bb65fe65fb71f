// SPDX-License-Identifier: Apache-2.0
#include "instruction_set.h"

#if defined(MXADAMAX_X86_64)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace mxadamax::cpu {

KernelTable kernels_baseline();
#if defined(MXADAMAX_X86_64)
KernelTable kernels_avx2();
KernelTable kernels_avx512();
#endif

#if defined(MXADAMAX_X86_64)
namespace {

// Older compilers do not know it by name.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// All that the compiler may use by the options in CMakeLists.txt; -mavx2 allows popcnt too. The
// builtin also asks whether the system keeps the registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") && has_f16c();
}

}  // namespace
#endif

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> usable{{"baseline", kernels_baseline()}};
#if defined(MXADAMAX_X86_64)
    if (!has_avx2()) return usable;
    usable.push_back({"avx2", kernels_avx2()});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
      usable.push_back({"avx512", kernels_avx512()});
    }
#endif
    return usable;
  }();
  return sets;
}

const InstructionSet& instruction_set(const std::string& name) {
  std::string names;
  for (const InstructionSet& set : instruction_sets()) {
    if (set.name == name) return set;
    names += (names.empty() ? "" : ", ") + std::string(set.name);
  }
  throw std::invalid_argument("instruction set '" + name +
                              "' is not available here; available: " + names);
}

const InstructionSet& chosen_instruction_set() {
  static const InstructionSet& chosen = []() -> const InstructionSet& {
    const char* forced = std::getenv("MXADAMAX_INSTRUCTION_SET");
    if (forced == nullptr || *forced == '\0') return instruction_sets().back();
    try {
      return instruction_set(forced);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string("MXADAMAX_INSTRUCTION_SET: ") + error.what());
    }
  }();
  return chosen;
}

}  // namespace mxadamax::cpu
