// SPDX-License-Identifier: Apache-2.0
// Update weights with low-precision states. Threads process single elements; accesses of
// neighbouring threads coalesce. Dtypes are checked for each element, at negligible cost, so each
// rule has one kernel for all of them.
#include "low_precision_states.h"
#include "rule_kernels.h"
#include "warp.h"

namespace mxadamax::cuda {
namespace {

template <class R>
MXADAMAX_RULE void write_weight(const TensorEntry& tensor, const Row<R, float>& row, std::int64_t i,
                                float weight) {
  store_number(tensor.weight_type, tensor.weight, i, weight);
  if (tensor.copy != nullptr) store_number(tensor.grad_type, tensor.copy, i, weight);
  if (tensor.average != nullptr) {
    const float average = load_number(DType::float32, tensor.average, i);
    store_number(DType::float32, tensor.average, i, new_average(row, average, weight));
  }
}

// Updates one element with 16-bit states.
template <class R>
MXADAMAX_RULE void update_in_16_bits(const TensorEntry& tensor, const Row<R, float>& row,
                                     float grad, std::int64_t i) {
  constexpr int slots = R::states > 0 ? R::states : 1;
  float weight = load_number(tensor.weight_type, tensor.weight, i);
  float state[slots];
  load_states_in_16_bits<R>(tensor, i, state);
  weight = updated_weight_by_roots<R>(row.transform, row.scalars, row.scales, grad, weight, state);
  const auto place = static_cast<std::uint32_t>(i % rng_block);
  for_each_state<R>([&](auto k) {
    constexpr bool is_denominator = (states_of_kind<R, StateKind::with_sign> >> k & 1u) == 0;
    const std::int32_t random = random_at(rng_line(row.seed, k, i), place);
    std::int32_t rounded = tensor.state_type == DType::float16
                               ? encode_float16_stochastic<is_denominator>(state[k], random)
                               : encode_bfloat16_stochastic<is_denominator>(state[k], random);
    write<std::uint16_t>(static_cast<std::uint16_t*>(tensor.states[k]) + i,
                         static_cast<std::uint16_t>(rounded));
  });
  write_weight(tensor, row, i, weight);
}

constexpr int elements_of_lane = block_size / warp_size;

// What one thread knows of a block: the numbers that are kept.
template <class R>
struct Share {
  float kept[elements_of_lane][R::states];
};

// Updates the block of 8-bit states at `first` with the threads of a warp.
template <class R>
MXADAMAX_RULE void update_in_8_bits(const TensorEntry& tensor, const Row<R, float>& row,
                                    std::int64_t first, std::int32_t count, std::int32_t lane) {
  float* const scales = tensor.scales + first / block_size * R::states;

  const auto read = [&](std::int32_t own, Share<R>& share, AbsMax<R::states>& largest) {
#pragma unroll
    for (int n = 0; n < elements_of_lane; ++n) {
      const std::int32_t i = own + n * warp_size;
      float* const state = share.kept[n];
      for (int k = 0; k < R::states; ++k) state[k] = 0;
      if (i >= count) continue;
      load_states_in_8_bits<R>(tensor, first + i, state);
      const float grad = load_number(tensor.grad_type, tensor.grad, first + i);
      float weight = load_number(tensor.weight_type, tensor.weight, first + i);
      if constexpr (has_ratio_state<R>) {
        weight =
            updated_weight_by_ratio<R>(row.transform, row.scalars, row.scales, grad, weight, state);
      } else {
        weight =
            updated_weight_by_roots<R>(row.transform, row.scalars, row.scales, grad, weight, state);
      }
      for (int k = 0; k < R::states; ++k) largest.add(k, state[k]);
      write_weight(tensor, row, first + i, weight);
    }
  };

  const auto write = [&](std::int32_t own, const Share<R>& share,
                         const AbsMax<R::states>& largest) {
    for_each_state<R>([&](auto k) {
      using State = Int8StateOf<R, k>;
      const float scale = scale_of_block<State>(bit_cast_to_float(largest.bits[k]));
      const float encoding = State::encoding_of(scale);
      const RngLine line = rng_line(row.seed, k, first);
      auto* const codes = static_cast<std::uint8_t*>(tensor.states[k]) + first;
#pragma unroll
      for (int n = 0; n < elements_of_lane; ++n) {
        const std::int32_t i = own + n * warp_size;
        if (i >= count) continue;
        const auto place = static_cast<std::uint32_t>((first + i) % rng_block);
        const std::int32_t code =
            scale == scale ? State::code(share.kept[n][k], encoding, random_at(line, place)) : 0;
        codes[i] = static_cast<std::uint8_t>(code);
      }
      if (own == 0) scales[k] = scale;
    });
  };
  warp_reduce<Share<R>, R::states>(lane, read, write);
}

template <class R>
__global__ void __launch_bounds__(threads_per_block, 2) update_low_precision(UpdateTable table) {
  using RowOfRule = Row<R, float>;
  for_each_part<RowOfRule>(
      table, [](const Tile& part, const TensorEntry& tensor, const RowOfRule& row, std::int64_t) {
        const auto thread = static_cast<std::int32_t>(threadIdx.x);
        const auto threads = static_cast<std::int32_t>(blockDim.x);
        if constexpr (supports_int8_state<R>) {
          if (tensor.state_type == DType::int8) {
            constexpr auto block = static_cast<std::int32_t>(block_size);
            const std::int32_t at_once = threads / warp_size * block;
            for (std::int32_t i = thread / warp_size * block; i < part.count; i += at_once) {
              const std::int32_t rest = part.count - i;
              update_in_8_bits(tensor, row, part.first + i, rest < block ? rest : block,
                               thread % warp_size);
            }
            return;
          }
        }
        for_each_element(part, split(part.count, no_vectors, 1), tensor.rows, thread,
                         [&](std::int64_t place, std::int64_t element) {
                           const float grad =
                               place < 0 ? 0 : load_number(tensor.grad_type, tensor.grad, place);
                           update_in_16_bits(tensor, row, grad, element);
                         });
      });
}

// Empty for a rule that does not support low-precision states.
template <class R, bool = R::supports_low_precision_state>
struct KernelOf {
  static constexpr UpdateKernel update{};
};
template <class R>
struct KernelOf<R, true> {
  static constexpr UpdateKernel update = started<update_low_precision<R>>;
};
template <class R>
using KernelOfRule = KernelOf<R>;

static_assert(tile_length % rng_block == 0, "a tile begins with a block");

}  // namespace

DeviceKernelTable kernels_low_precision() { return table<KernelOfRule, float>(AllRules{}); }

}  // namespace mxadamax::cuda
