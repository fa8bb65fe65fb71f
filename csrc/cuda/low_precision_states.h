// SPDX-License-Identifier: Apache-2.0
// Load and store single elements if dtypes are known only at run time and states may be in low
// precision.
#pragma once

#include "common/low_precision.h"
#include "kernels.h"
#include "load_store.h"

namespace mxadamax::cuda {

// Calls use(number) with the number type of a dtype that is computed in float32.
template <class Use>
MXADAMAX_RULE void with_number(DType type, Use&& use) {
  if (is_converted(type)) {
    with_half(type, use);
  } else {
    use(Plain<float>{});
  }
}

MXADAMAX_RULE float load_number(DType type, const void* array, std::int64_t i) {
  float found;
  with_number(type, [&](auto number) { load<decltype(number), 1>(array, i, &found); });
  return found;
}

MXADAMAX_RULE void store_number(DType type, void* array, std::int64_t i, float given) {
  with_number(type, [&](auto number) { store<decltype(number), 1>(array, i, &given); });
}

// Loads the 16-bit states of an element; second moments are stored as their roots.
template <class R>
MXADAMAX_RULE void load_states_in_16_bits(const TensorEntry& tensor, std::int64_t i, float* state) {
  constexpr unsigned squares = states_of_kind<R, StateKind::second_moment>;
#pragma unroll
  for (int k = 0; k < R::states; ++k) {
    state[k] = load_number(tensor.state_type, tensor.states[k], i);
    if (squares >> k & 1u) state[k] = square(state[k]);
  }
}

// The states of an element that are kept in 8 bits: a signed one, alone or with a denominator.
template <class R>
MXADAMAX_RULE void load_states_in_8_bits(const TensorEntry& tensor, std::int64_t i, float* state) {
  const float* const scales = tensor.scales + i / block_size * R::states;
  const auto plain = static_cast<const std::int8_t*>(tensor.states[0])[i];
  if constexpr (R::states == 1) {
    state[0] = signed_at(plain, signed_unit_size(scales[0]));
  } else {
    constexpr bool is_root = states_of_kind<R, StateKind::second_moment> >> 1 & 1u;
    const auto level = static_cast<const std::uint8_t*>(tensor.states[1])[i];
    const float denominator = denominator_at(level, denominator_unit_size(scales[1]));
    state[0] = plain_at(plain, ratio_level_size(scales[0]), denominator);
    state[1] = is_root ? square(denominator) : denominator;
  }
}

}  // namespace mxadamax::cuda
