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

// Converts `count` consecutive numbers.
struct Codec {
  void (*decode)(const void* from, float* to, std::int64_t count) noexcept;
  void (*encode)(const float* from, void* to, std::int64_t count) noexcept;
  // Rounding at random, by 16 bits of `random` from `shift` on.
  using StochasticEncode = void (*)(const float* from, const std::uint32_t* random, int shift,
                                    void* to, std::int64_t count) noexcept;
  StochasticEncode encode_stochastic, encode_denominator_stochastic;
};

// All states of a rule in 8 bits each: a signed one, or that relative to the denominator of steps,
// and the denominator. Each block has a scale for each of them. `random` has one number for each
// rng_block.
struct Int8Codec {
  void (*decode)(const void* const* stored, const float* scales, float* const* states,
                 std::int64_t count) noexcept;
  void (*encode)(const float* const* states, const std::uint32_t* random, void* const* stored,
                 float* scales, std::int64_t count) noexcept;
};

// What all rules of one instruction set share.
struct SharedKernels {
  // By DType, from float16 on.
  Codec codecs[2];
  // Of rules with one state, and with two.
  Int8Codec int8_codecs[2];
  void (*random_bits)(RngKey key, std::uint32_t first, std::uint32_t* bits,
                      std::int64_t count) noexcept;
  void (*square)(float* numbers, std::int64_t count) noexcept;
  void (*square_root)(float* numbers, std::int64_t count) noexcept;
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
  Kernel kernels[op_math_types];
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

inline const Int8Codec& int8_codec_of(const RuleKernels& rule) {
  return rule.shared->int8_codecs[rule.states - 1];
}

// All rules as compiled for one instruction set, in the order of rules/all.h.
struct KernelTable {
  const RuleKernels* rules;
  int count;
};

}  // namespace mxadamax::cpu
