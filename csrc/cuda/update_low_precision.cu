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
  constexpr unsigned squares = states_of_kind<R, StateKind::second_moment>;
  constexpr unsigned plain = states_of_kind<R, StateKind::with_sign>;
  float weight = load_number(tensor.weight_type, tensor.weight, i);
  float state[slots];
  load_states_in_16_bits<R>(tensor, i, state);
  run_rule(row, grad, &weight, state);
  std::uint32_t random = 0;
#pragma unroll
  for (int k = 0; k < R::states; ++k) {
    if (squares >> k & 1u) state[k] = square_root(state[k]);
    if (k % 2 == 0) {
      random = random_bits_at(rng_key(row.seed, k / 2, i), static_cast<std::uint32_t>(i));
    }
    const auto bits = static_cast<std::int32_t>(random >> k % 2 * 16 & 0xffffu);
    std::int32_t rounded = tensor.state_type == DType::float16
                               ? encode_float16_stochastic(state[k], bits)
                               : encode_bfloat16_stochastic(state[k], bits);
    if (!(plain >> k & 1u)) rounded = zero_preserving_encode(state[k], rounded);
    write<std::uint16_t>(static_cast<std::uint16_t*>(tensor.states[k]) + i,
                         static_cast<std::uint16_t>(rounded));
  }
  write_weight(tensor, row, i, weight);
}

constexpr int elements_of_lane = block_size / warp_size;

// What one thread knows of a block: signed states, or their ratios to denominators, and these.
struct Share {
  float plain[elements_of_lane], denominator[elements_of_lane];
};

// Updates the block of 8-bit states at `first` with the threads of a warp.
template <class R>
MXADAMAX_RULE void update_in_8_bits(const TensorEntry& tensor, const Row<R, float>& row,
                                    std::int64_t first, std::int32_t count, std::int32_t lane) {
  constexpr bool is_ratio = R::states == 2;
  float* const scales = tensor.scales + first / block_size * R::states;
  auto* const plain_levels = static_cast<std::int8_t*>(tensor.states[0]) + first;
  auto* const denominator_levels = static_cast<std::uint8_t*>(tensor.states[R::states - 1]) + first;

  const auto read = [&](std::int32_t own, Share& share, AbsMax& largest) {
#pragma unroll
    for (int k = 0; k < elements_of_lane; ++k) {
      const std::int32_t i = own + k * warp_size;
      share.plain[k] = share.denominator[k] = 0;
      if (i >= count) continue;
      float state[R::states];
      load_states_in_8_bits<R>(tensor, first + i, state);
      float weight = load_number(tensor.weight_type, tensor.weight, first + i);
      run_rule(row, load_number(tensor.grad_type, tensor.grad, first + i), &weight, state);
      share.plain[k] = state[0];
      if constexpr (is_ratio) {
        constexpr bool is_root = states_of_kind<R, StateKind::second_moment> >> 1 & 1u;
        share.denominator[k] = is_root ? square_root(state[1]) : state[1];
        share.plain[k] = ratio_of(state[0], share.denominator[k]);
      }
      largest.add(share.plain[k], share.denominator[k]);
      write_weight(tensor, row, first + i, weight);
    }
  };

  const std::int64_t group = first / rng_block;
  const std::uint32_t random =
      random_bits_at(rng_key(row.seed, 0, group), static_cast<std::uint32_t>(group));
  const auto write = [&](std::int32_t own, const Share& share, const AbsMax& largest) {
    float plain_range = bit_cast_to_float(largest.first);
    float denominator_range = bit_cast_to_float(largest.second);
    // Otherwise nothing in the block means anything any more, as its next step will show.
    const bool is_finite = plain_range + denominator_range < __builtin_inff();
    const float per_plain = is_ratio ? ratio_units(plain_range) : signed_units(plain_range);
    const float per_denominator = denominator_units(denominator_range);
#pragma unroll
    for (int k = 0; k < elements_of_lane; ++k) {
      const std::int32_t i = own + k * warp_size;
      if (i >= count) continue;
      const auto place = static_cast<std::uint32_t>(i);
      const float threshold = square_threshold(random, place);
      const float variance = threshold - threshold * threshold;
      const std::int32_t plain =
          is_ratio ? ratio_level(share.plain[k], per_plain, ratio_threshold(random, place))
                   : signed_level(share.plain[k], per_plain, threshold, variance);
      plain_levels[i] = static_cast<std::int8_t>(is_finite ? plain : 0);
      if constexpr (is_ratio) {
        const std::int32_t denominator =
            denominator_level(share.denominator[k], per_denominator, threshold, variance);
        denominator_levels[i] = static_cast<std::uint8_t>(is_finite ? denominator : 0);
      }
    }
    if (own != 0) return;
    if (!is_finite) plain_range = denominator_range = __builtin_nanf("");
    scales[0] = plain_range > 0 ? bounded_below(plain_range) : plain_range;
    if constexpr (is_ratio) {
      scales[1] = denominator_range > 0 ? bounded_below(denominator_range) : denominator_range;
    }
  };
  warp_reduce<Share>(lane, read, write);
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
