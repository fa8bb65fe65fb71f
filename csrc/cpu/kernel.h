// SPDX-License-Identifier: Apache-2.0
// What the compiled kernels of one instruction set look like from outside.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/low_precision.h"

namespace mxadamax::cpu {

// Updates `count` consecutive elements of one tensor.
//
// `scalars` holds one double for each of RuleKernels::scalar_names; the kernel rounds each once to
// the type it computes in. Arrays need the alignment of their element type only, and must not
// overlap. `count` may be 0. `scales` are what SumKernels found for the whole tensor.
using Kernel = void (*)(const double* scalars, const double* scales, const void* grad, void* weight,
                        void* const* states, std::int64_t count) noexcept;

// States in low precision, from an element on.
struct LowPrecisionStates {
  void* const* stored;
  // Of 8 bits: those of the element's block, with which it begins.
  float* scales;
  // Random bits follow from the seed and from where the element is in its parameter.
  std::uint64_t seed;
  std::int64_t position;
};

// As Kernel, in float32.
using LowPrecisionKernel = void (*)(const double* scalars, const double* scales, const float* grad,
                                    float* weight, const LowPrecisionStates& states,
                                    std::int64_t count) noexcept;
// float16, bfloat16, int8, as in DType.
constexpr int low_precision_types = 3;
static_assert(static_cast<int>(DType::int8) - static_cast<int>(DType::float16) == 2);

// Elements of one tensor whose terms are found at a time.
constexpr std::int64_t sum_block = 512;
// Tensors that are summed up side by side: where an addition waits for the one before it in its
// sum, the processor fills that time with those of other sums.
constexpr int summed_together = 4;
// The numbers that a sum over a part of a tensor consists of. A scaled norm has two.
constexpr int sum_numbers = 2 * max_sums;
// No std::array, whose functions are not always inlined: see MXADAMAX_RULE.
struct Sums {
  double numbers[sum_numbers];

  MXADAMAX_RULE double& operator[](int k) { return numbers[k]; }
  MXADAMAX_RULE double operator[](int k) const { return numbers[k]; }
};
// Room for the terms of a block of one tensor.
struct alignas(64) Terms {
  unsigned char room[max_sums][sum_block * sizeof(double)];
};

// What an operator of MXNet's reads of a number, in single precision.
double as_scalar_is_read(double x) noexcept;

// The elements whose terms are found. `copy` is null but where a rule with `sums_copy` updates the
// master of a float16 weight: then it has this weight, as float32 numbers.
struct SumBlock {
  const void* grad;
  const void* weight;
  const void* copy;
  const void* const* states;
  std::int64_t count;
};

// What a rule sums up over a tensor in one stage, before it updates it. Numbers are of the type
// that is computed in, and are added in the order of the elements, which is MXNet's.
struct SumKernels {
  // Finds the terms of a block, and zeros up to its full length; no array is written. Scaled norms
  // need their sums so far, and may change their scale.
  void (*find_terms)(const double* scalars, const double* scales, const SumBlock& elements,
                     Sums& sums, Terms& terms) noexcept;
  // Adds the terms of this many tensors to their sums, for each the first `length` at least.
  void (*add)(const Terms* terms, Sums* sums, int tensors, std::int64_t length) noexcept;
  // Finds the scales that follow from the sums over the parts of a tensor.
  void (*find_scales)(const double* scalars, const Sums* sums, int parts, double* scales) noexcept;
};

// Converts `count` consecutive numbers, no more than of one block of random numbers where these are
// used.
struct Codec {
  void (*decode)(const void* from, float* to, std::int64_t count) noexcept;
  void (*encode)(const float* from, void* to, std::int64_t count) noexcept;
  // Rounding at random, the second for denominators.
  using StochasticEncode = void (*)(const float* from, RngLine line, void* to,
                                    std::int64_t count) noexcept;
  StochasticEncode encode_stochastic[2];
};

// What a state in 8 bits is.
enum class Int8State { ratio, signed_alone, denominator };
constexpr int int8_states = 3;

// Each block of elements has a scale for each of `states` states, one after another; those of one
// state are converted.
struct Int8Codec {
  void (*decode)(const void* from, const float* scales, int states, float* to,
                 std::int64_t count) noexcept;
  void (*encode)(const float* from, RngLine line, void* to, float* scales, int states,
                 std::int64_t count) noexcept;
};

// What all rules of one instruction set share.
struct SharedKernels {
  // By DType, from float16 on.
  Codec codecs[2];
  // By Int8State.
  Int8Codec int8_codecs[int8_states];
  void (*square)(float* numbers, std::int64_t count) noexcept;
  // ratio * (denominator + epsilon), in the place of the ratios.
  void (*multiply_ratios)(float* ratios, const float* denominators, float epsilon,
                          std::int64_t count) noexcept;
  // By OpMath.
  double (*sum_of_squares[op_math_types])(const void* numbers, std::int64_t count) noexcept;
  double (*nonfinite_probe[op_math_types])(const void* numbers, std::int64_t count) noexcept;
  // average = (1 - share) * average + share * weight
  void (*average[op_math_types])(const void* weight, double share, void* average,
                                 std::int64_t count) noexcept;
};

// The codec of a type whose numbers are converted.
inline const Codec& codec_of(const SharedKernels& shared, DType type) {
  return shared.codecs[static_cast<int>(type) - static_cast<int>(DType::float16)];
}

struct RuleKernels {
  const char* rule;
  int states;
  const StateKind* kinds;
  bool supports_low_precision_state, supports_int8_state, none_first;
  // As ScalarNames says.
  const char* const* scalar_names;
  int scalars;
  // Which of them is `epsilon`, where a ratio needs it.
  int epsilon_scalar;
  Kernel kernels[op_math_types];
  // Null where a type is not supported.
  LowPrecisionKernel low_precision_kernels[low_precision_types];
  // How many sums over a tensor the rule needs, in how many stages; kernels where there are any.
  int sums, stages;
  // As those of Rule.
  bool sums_copy, scaled_norms;
  SumKernels sum_kernels[max_stages][op_math_types];
  const SharedKernels* shared;
};

// What the pass itself takes of a row.
inline EpilogueScalars epilogue_scalars_of(const RuleKernels& rule, const double* row) {
  return epilogue_scalars_at(row + rule.scalars - epilogue_scalar_count);
}

inline LowPrecisionKernel low_precision_kernel_of(const RuleKernels& rule, DType type) {
  return rule.low_precision_kernels[static_cast<int>(type) - static_cast<int>(DType::float16)];
}

// Of one of a rule's states.
inline Int8State int8_state_of(const RuleKernels& rule, int k) {
  if (rule.kinds[k] != StateKind::with_sign) return Int8State::denominator;
  return rule.states > 1 ? Int8State::ratio : Int8State::signed_alone;
}

// All rules as compiled for one instruction set, in the order of rules/all.h.
struct KernelTable {
  const RuleKernels* rules;
  int count;
};

}  // namespace mxadamax::cpu
