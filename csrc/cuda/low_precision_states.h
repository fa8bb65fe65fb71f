// SPDX-License-Identifier: Apache-2.0
// Load and store single elements if dtypes are known only at run time and states may be in low
// precision.
#pragma once

#include <cstdint>

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

// Loads the 16-bit states of an element; second moments are kept as their roots.
template <class R>
MXADAMAX_RULE void load_states_in_16_bits(const TensorEntry& tensor, std::int64_t i, float* state) {
#pragma unroll
  for (int k = 0; k < R::states; ++k) {
    state[k] = load_number(tensor.state_type, tensor.states[k], i);
  }
}

// The same of 8 bits; with a denominator, a signed state is kept as its ratio.
template <class R>
MXADAMAX_RULE void load_states_in_8_bits(const TensorEntry& tensor, std::int64_t i, float* state) {
  const float* const scales = tensor.scales + i / block_size * R::states;
  for_each_state<R>([&](auto k) {
    using State = Int8StateOf<R, k>;
    const std::int32_t byte = static_cast<const std::uint8_t*>(tensor.states[k])[i];
    const std::int32_t code = State::has_sign && byte > 127 ? byte - 256 : byte;
    state[k] = State::at(code, State::decoding_of(scales[k]));
  });
}

// Loads the low-precision states of an element as the rule has them.
template <class R, class Scalars>
MXADAMAX_RULE void load_low_precision_states(const TensorEntry& tensor,
                                             [[maybe_unused]] const Scalars& scalars,
                                             std::int64_t i, float* state) {
  bool is_int8 = false;
  if constexpr (supports_int8_state<R>) {
    is_int8 = tensor.state_type == DType::int8;
    if (is_int8) {
      load_states_in_8_bits<R>(tensor, i, state);
      if constexpr (has_ratio_state<R>) state[0] *= state[R::states - 1] + scalars.epsilon;
    }
  }
  if (!is_int8) load_states_in_16_bits<R>(tensor, i, state);
  square_moments<R>(state);
}

}  // namespace mxadamax::cuda
