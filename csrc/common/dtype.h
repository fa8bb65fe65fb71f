// SPDX-License-Identifier: Apache-2.0
// What arrays and scalars look like to the kernels of every kind of processor.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <string_view>

#include "rules/rule.h"

namespace mxadamax {

// What a kernel computes in.
enum class OpMath { float32 = 0, float64 = 1 };
constexpr int op_math_types = 2;

// What numbers of an array are stored as: the same two types, and others that are converted to and
// from float32.
enum class DType { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3, int8 = 4, uint8 = 5 };
constexpr DType dtypes[] = {DType::float32,  DType::float64, DType::float16,
                            DType::bfloat16, DType::int8,    DType::uint8};

struct DTypeTraits {
  const char* name;
  // Of one number, in bytes.
  int size;
  // Whether a number is one by itself, unlike those of 8 bits, which need their scales.
  bool floating;
  // Whether such numbers are converted to and from float32.
  bool converted;
};
// The table of all types. Kernels for GPUs ask too, where an array of constants cannot be reached.
MXADAMAX_RULE constexpr DTypeTraits traits_of(DType type) {
  switch (type) {
    case DType::float32:
      return {"float32", 4, true, false};
    case DType::float64:
      return {"float64", 8, true, false};
    case DType::float16:
      return {"float16", 2, true, true};
    case DType::bfloat16:
      return {"bfloat16", 2, true, true};
    case DType::int8:
      return {"int8", 1, false, false};
    case DType::uint8:
      break;
  }
  return {"uint8", 1, false, false};
}
MXADAMAX_RULE constexpr const char* dtype_name(DType type) { return traits_of(type).name; }
MXADAMAX_RULE constexpr std::int64_t dtype_size(DType type) { return traits_of(type).size; }
MXADAMAX_RULE constexpr bool is_floating(DType type) { return traits_of(type).floating; }
MXADAMAX_RULE constexpr bool is_converted(DType type) { return traits_of(type).converted; }

// The type of this name; nothing where there is none.
constexpr std::optional<DType> dtype_named(std::string_view name) {
  for (const DType type : dtypes) {
    if (name == dtype_name(type)) return type;
  }
  return std::nullopt;
}

// Of a weight of this type: what is computed in, and what the rule updates. States are of the
// latter type, unless they are kept in low precision.
constexpr DType op_math_type(DType type) {
  return type == DType::float64 ? DType::float64 : DType::float32;
}
constexpr DType updated_type(DType type, bool has_master) {
  return has_master ? DType::float32 : type;
}
constexpr int max_states = 4;
constexpr int max_sums = 2;
constexpr int max_stages = 2;
// And the numbers that follow from them.
constexpr int max_scales = 3;

// Which of the scalars of every rule multiplies the gradient.
constexpr int rescale_grad_scalar = 0;
static_assert(std::string_view(gradient_transform_scalars[rescale_grad_scalar]) == "rescale_grad");

// The last scalars of every rule: the share of the new weight in its average, and for rounding at
// random which update of the parameter this is, and a number for the parameter. The latter two are
// integers: where a row has a double for every other scalar, it has their bits.
constexpr const char* epilogue_scalars[] = {"ema_weight", "step", "rng_stream"};
constexpr int epilogue_scalar_count = 3;
struct EpilogueScalars {
  double ema_weight;
  std::uint64_t step, rng_stream;
};
static_assert(sizeof(EpilogueScalars) == epilogue_scalar_count * sizeof(double));
inline EpilogueScalars epilogue_scalars_at(const double* at) {
  EpilogueScalars found;
  std::memcpy(&found, at, sizeof found);
  return found;
}
constexpr bool is_integer_scalar(std::string_view name) {
  return name == "step" || name == "rng_stream";
}

// Scalars that are bounds, of which infinity is none.
constexpr const char* bound_scalars[] = {"clip_gradient", "clip_weights", "upper_bound",
                                         "direction_bound"};

// The names of all scalars of a rule, in the order of a row: those of every rule first, then the
// rule's own, then those that no kernel sees.
template <class R>
struct ScalarNames {
  static constexpr int own = std::size(R::scalars);
  static constexpr int common = std::size(gradient_transform_scalars);
  static_assert(sizeof(typename R::template Scalars<float>) == own * sizeof(float) &&
                    sizeof(GradientTransform<float>) == common * sizeof(float),
                "one name for each scalar");

  static constexpr std::array<const char*, common + own + epilogue_scalar_count> names = [] {
    std::array<const char*, common + own + epilogue_scalar_count> list{};
    for (int k = 0; k < common; ++k) list[k] = gradient_transform_scalars[k];
    for (int k = 0; k < own; ++k) list[common + k] = R::scalars[k];
    for (int k = 0; k < epilogue_scalar_count; ++k) list[common + own + k] = epilogue_scalars[k];
    return list;
  }();
};

// Gradients are summed in this many lanes: number i goes to sum i % lanes, and these are added in
// pairs, which fixes the result whatever runs side by side. Of numbers that are converted, so many
// are summed at a time.
constexpr int sum_lanes = 16;
constexpr std::int64_t converted_block = 512;

}  // namespace mxadamax
