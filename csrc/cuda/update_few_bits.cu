// SPDX-License-Identifier: Apache-2.0
// The kernels that update weights with states in few bits. Elements go one by one: neighbours are
// read and written together all the same, by threads side by side. What types the arrays have is
// asked for each element, which takes no time beside the rest; so each rule has one kernel for all.
#include "numbers.h"
#include "rule_kernels.h"
#include "warp.h"

namespace mxadamax::cuda {
namespace {

// Calls use(number) with how numbers of a type are read and written.
template <class Use>
MXADAMAX_RULE void with_number(Stored type, Use&& use) {
  if (type == Stored::float16) {
    use(Float16{});
  } else if (type == Stored::bfloat16) {
    use(Bfloat16{});
  } else {
    use(Plain<float>{});
  }
}

MXADAMAX_RULE float load_number(Stored type, const void* array, std::int64_t i) {
  float found;
  with_number(type, [&](auto number) { load<decltype(number), 1>(array, i, &found); });
  return found;
}

MXADAMAX_RULE void store_number(Stored type, void* array, std::int64_t i, float given) {
  with_number(type, [&](auto number) { store<decltype(number), 1>(array, i, &given); });
}

template <class R>
MXADAMAX_RULE void write_weight(const TensorEntry& tensor, const Row<R, float>& row, std::int64_t i,
                                float weight) {
  store_number(tensor.weight_type, tensor.weight, i, weight);
  if (tensor.copy != nullptr) store_number(tensor.grad_type, tensor.copy, i, weight);
  if (tensor.average != nullptr) {
    const float average = load_number(Stored::float32, tensor.average, i);
    store_number(Stored::float32, tensor.average, i, new_average(row, average, weight));
  }
}

// Updates one element, whose states have 16 bits.
template <class R>
MXADAMAX_RULE void update_in_16_bits(const TensorEntry& tensor, const Row<R, float>& row,
                                     float grad, std::int64_t i) {
  constexpr int slots = R::states > 0 ? R::states : 1;
  constexpr unsigned squares = states_of_kind<R, StateKind::square>;
  constexpr unsigned plain = states_of_kind<R, StateKind::plain>;
  float weight = load_number(tensor.weight_type, tensor.weight, i);
  float state[slots];
#pragma unroll
  for (int k = 0; k < R::states; ++k) {
    state[k] = load_number(tensor.state_type, tensor.states[k], i);
    if (squares >> k & 1u) state[k] = square(state[k]);
  }
  run_rule(row, grad, &weight, state);
  std::uint32_t random = 0;
#pragma unroll
  for (int k = 0; k < R::states; ++k) {
    if (squares >> k & 1u) state[k] = square_root(state[k]);
    if (k % 2 == 0) {
      random = random_bits_at(random_key(row.seed, k / 2, i), static_cast<std::uint32_t>(i));
    }
    const auto bits = static_cast<std::int32_t>(random >> k % 2 * 16 & 0xffffu);
    std::int32_t rounded = tensor.state_type == Stored::float16
                               ? encode_float16_at_random(state[k], bits)
                               : encode_bfloat16_at_random(state[k], bits);
    if (!(plain >> k & 1u)) rounded = encoded_divisor(state[k], rounded);
    write<std::uint16_t>(static_cast<std::uint16_t*>(tensor.states[k]) + i,
                         static_cast<std::uint16_t>(rounded));
  }
  write_weight(tensor, row, i, weight);
}

constexpr int elements_of_lane = scaled_block / warp_size;

// What one thread knows of a block.
struct Share {
  float ratio[elements_of_lane], divisor[elements_of_lane];
};

// Updates the block that begins at `first`, whose states have 8 bits, by the threads of a warp.
template <class R>
MXADAMAX_RULE void update_in_8_bits(const TensorEntry& tensor, const Row<R, float>& row,
                                    std::int64_t first, std::int32_t count, std::int32_t lane) {
  constexpr bool is_root = states_of_kind<R, StateKind::square> >> 1 & 1u;
  float* const scales = tensor.scales + first / scaled_block * scales_of_block;
  auto* const ratios = static_cast<std::int8_t*>(tensor.states[0]) + first;
  auto* const divisors = static_cast<std::uint8_t*>(tensor.states[1]) + first;

  const auto read = [&](std::int32_t own, Share& share, Largest& largest) {
    const float ratio_size = ratio_level_size(scales[0]);
    const float divisor_size = divisor_unit_size(scales[1]);
#pragma unroll
    for (int k = 0; k < elements_of_lane; ++k) {
      const std::int32_t i = own + k * warp_size;
      share.ratio[k] = share.divisor[k] = 0;
      if (i >= count) continue;
      const float divisor = divisor_at(divisors[i], divisor_size);
      float state[] = {plain_at(ratios[i], ratio_size, divisor),
                       is_root ? square(divisor) : divisor};
      float weight = load_number(tensor.weight_type, tensor.weight, first + i);
      run_rule(row, load_number(tensor.grad_type, tensor.grad, first + i), &weight, state);
      share.divisor[k] = is_root ? square_root(state[1]) : state[1];
      share.ratio[k] = ratio_of(state[0], share.divisor[k]);
      largest.add(share.ratio[k], share.divisor[k]);
      write_weight(tensor, row, first + i, weight);
    }
  };

  const std::int64_t group = first / random_group;
  const std::uint32_t random =
      random_bits_at(random_key(row.seed, 0, group), static_cast<std::uint32_t>(group));
  const auto write = [&](std::int32_t own, const Share& share, const Largest& largest) {
    float ratio_range = from_bits(largest.first);
    float divisor_range = from_bits(largest.second);
    // Otherwise nothing in the block means anything any more, as its next step will show.
    const bool is_finite = ratio_range + divisor_range < __builtin_inff();
    const float per_ratio = ratio_units(ratio_range);
    const float per_divisor = divisor_units(divisor_range);
#pragma unroll
    for (int k = 0; k < elements_of_lane; ++k) {
      const std::int32_t i = own + k * warp_size;
      if (i >= count) continue;
      const auto place = static_cast<std::uint32_t>(i);
      const float chance = divisor_chance(random, place);
      const float spread = chance - chance * chance;
      const std::int32_t ratio =
          ratio_level(share.ratio[k], per_ratio, ratio_chance(random, place));
      const std::int32_t divisor = divisor_level(share.divisor[k], per_divisor, chance, spread);
      ratios[i] = static_cast<std::int8_t>(is_finite ? ratio : 0);
      divisors[i] = static_cast<std::uint8_t>(is_finite ? divisor : 0);
    }
    if (own != 0) return;
    if (!is_finite) ratio_range = divisor_range = __builtin_nanf("");
    scales[0] = ratio_range > 0 ? bounded_below(ratio_range) : ratio_range;
    scales[1] = divisor_range > 0 ? bounded_below(divisor_range) : divisor_range;
  };
  in_step<Share>(lane, read, write);
}

template <class R>
__global__ void __launch_bounds__(threads_per_block, 2) update_few_bits(UpdateTable table) {
  using RowOfRule = Row<R, float>;
  for_each_part<RowOfRule>(table, [](const Part& part, const TensorEntry& tensor,
                                     const RowOfRule& row) {
    const auto thread = static_cast<std::int32_t>(threadIdx.x);
    const auto threads = static_cast<std::int32_t>(blockDim.x);
    if constexpr (keeps_in_int8<R>) {
      if (tensor.state_type == Stored::int8) {
        constexpr auto block = static_cast<std::int32_t>(scaled_block);
        const std::int32_t at_once = threads / warp_size * block;
        for (std::int32_t i = thread / warp_size * block; i < part.count; i += at_once) {
          const std::int32_t rest = part.count - i;
          update_in_8_bits(tensor, row, part.first + i, rest < block ? rest : block,
                           thread % warp_size);
        }
        return;
      }
    }
    for (std::int32_t i = thread; i < part.count; i += threads) {
      const std::int64_t element = part.first + i;
      update_in_16_bits(tensor, row, load_number(tensor.grad_type, tensor.grad, element), element);
    }
  });
}

template <class R>
__global__ void __launch_bounds__(threads_per_block, 2) update_few_bits_rows(UpdateTable table) {
  using RowOfRule = Row<R, float>;
  for_each_part<RowOfRule>(
      table, [](const Part& part, const TensorEntry& tensor, const RowOfRule& row) {
        for_each_cell(part, tensor.rows, [&](std::int64_t place, std::int64_t element) {
          const float grad = place < 0 ? 0 : load_number(tensor.grad_type, tensor.grad, place);
          update_in_16_bits(tensor, row, grad, element);
        });
      });
}

// None for a rule that does not keep its states so.
template <class R, bool = R::keeps_in_few_bits>
struct KernelsOf {
  static constexpr UpdateKernel dense{}, some_rows{};
};
template <class R>
struct KernelsOf<R, true> {
  static constexpr UpdateKernel dense = started<update_few_bits<R>>;
  static constexpr UpdateKernel some_rows = started<update_few_bits_rows<R>>;
};
template <class R>
using KernelsOfRule = KernelsOf<R>;

static_assert(part_length % random_group == 0, "a part begins with a block");

}  // namespace

KernelTable kernels_few_bits() { return table<KernelsOfRule, float>(AllRules{}); }

}  // namespace mxadamax::cuda
