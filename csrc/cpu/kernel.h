// What the compiled kernels of one instruction set look like from outside.
#pragma once

#include <cstdint>

namespace mxadamax::cpu {

enum class Compute { float32 = 0, float64 = 1 };
constexpr int compute_types = 2;
constexpr int max_states = 4;

// Updates `count` consecutive elements of one tensor.
//
// `scalars` holds one double for each of RuleKernels::scalar_names; the kernel rounds each once to
// the type it computes in. Arrays need the alignment of their element type only, and must not
// overlap. `count` may be 0.
using Kernel = void (*)(const double* scalars, const void* grad, void* weight, void* const* states,
                        std::int64_t count) noexcept;

struct RuleKernels {
  const char* rule;
  int states;
  // Those of every rule first, then the rule's own.
  const char* const* scalar_names;
  int scalars;
  Kernel kernels[compute_types];
};

// All rules as compiled for one instruction set, in the order of rules/all.h.
struct KernelTable {
  const RuleKernels* rules;
  int count;
};

}  // namespace mxadamax::cpu
