// What the compiled kernels of one instruction set look like from outside.
#pragma once

#include <cstdint>

namespace mxadamax::cpu {

// What a kernel computes in, and what numbers of an array are stored as: the same two types, and
// others that are converted to and from float32.
enum class Compute { float32 = 0, float64 = 1 };
constexpr int compute_types = 2;
enum class Stored { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };
constexpr std::int64_t stored_size(Stored type) {
  return type == Stored::float64 ? 8 : type == Stored::float32 ? 4 : 2;
}
constexpr int max_states = 4;

// Updates `count` consecutive elements of one tensor.
//
// `scalars` holds one double for each of RuleKernels::scalar_names; the kernel rounds each once to
// the type it computes in. Arrays need the alignment of their element type only, and must not
// overlap. `count` may be 0.
using Kernel = void (*)(const double* scalars, const void* grad, void* weight, void* const* states,
                        std::int64_t count) noexcept;

// Converts `count` consecutive numbers.
struct Codec {
  void (*decode)(const void* from, float* to, std::int64_t count) noexcept;
  void (*encode)(const float* from, void* to, std::int64_t count) noexcept;
};

// What all rules of one instruction set share.
struct SharedKernels {
  // By Stored, from float16 on.
  Codec codecs[2];
  // By Compute.
  double (*sum_of_squares[compute_types])(const void* numbers, std::int64_t count) noexcept;
};

struct RuleKernels {
  const char* rule;
  int states;
  // Those of every rule first, then the rule's own.
  const char* const* scalar_names;
  int scalars;
  Kernel kernels[compute_types];
  const SharedKernels* shared;
};

// Which of the scalars of every rule multiplies the gradient.
constexpr int rescale_grad_scalar = 0;

// All rules as compiled for one instruction set, in the order of rules/all.h.
struct KernelTable {
  const RuleKernels* rules;
  int count;
};

}  // namespace mxadamax::cpu
