// SPDX-License-Identifier: Apache-2.0
// Compute a rule's sums over each tensor (LAMB's norms) before the update, and what follows from
// them. Two kernels for each stage: each warp writes its share of a part, then one warp adds the
// shares of a tensor. Sums are in double precision, in an order that depends only on sizes.
//
// Threads process single elements, as in update_low_precision.cu.
#include <type_traits>

#include "low_precision_states.h"
#include "rule_kernels.h"
#include "warp.h"

namespace mxadamax::cuda {
namespace {

constexpr std::int32_t warps_per_block = threads_per_block / warp_size;
static_assert(warps_per_block == sums_per_part, "a sum for each warp");

// The storage of the states of a tensor.
enum class Kept { plain, low_precision };

template <class R, class T, Kept kept>
MXADAMAX_RULE void load_element(const TensorEntry& tensor, [[maybe_unused]] const Row<R, T>& row,
                                std::int64_t i, T* weight, T* state) {
  if constexpr (std::is_same_v<T, double>) {
    load<Plain<double>, 1>(tensor.weight, i, weight);
#pragma unroll
    for (int k = 0; k < R::states; ++k) load<Plain<double>, 1>(tensor.states[k], i, &state[k]);
  } else {
    *weight = load_number(tensor.weight_type, tensor.weight, i);
    if constexpr (kept == Kept::low_precision) {
      load_low_precision_states<R>(tensor, row.scalars, i, state);
    } else {
#pragma unroll
      for (int k = 0; k < R::states; ++k) {
        state[k] = load_number(tensor.state_type, tensor.states[k], i);
      }
    }
  }
}

template <class T>
MXADAMAX_RULE T load_gradient(const TensorEntry& tensor, std::int64_t i) {
  if constexpr (std::is_same_v<T, double>) {
    double found;
    load<Plain<double>, 1>(tensor.grad, i, &found);
    return found;
  } else {
    return load_number(tensor.grad_type, tensor.grad, i);
  }
}

template <class T>
MXADAMAX_RULE T rounded_to_half(T x) {
  return decode_float16(encode_float16(static_cast<float>(x)));
}

template <class R, class T, Kept kept, int stage>
__global__ void __launch_bounds__(threads_per_block, 2) sum_parts(TensorSumTable table) {
  for_each_part<Row<R, T>>(table.update, [&](const Tile& part, const TensorEntry& tensor,
                                             const Row<R, T>& row, std::int64_t number) {
    const auto thread = static_cast<std::int32_t>(threadIdx.x);
    const auto add_element = [&](T grad, std::int64_t i, double* sums) {
      T weight, state[R::states > 0 ? R::states : 1];
      load_element<R, T, kept>(tensor, row, i, &weight, state);
      const bool has_half =
          R::sums_copy && tensor.copy != nullptr && tensor.grad_type == DType::float16;
      const T shown = has_half ? load_number(DType::float16, tensor.copy, i) : weight;
      std::common_type_t<T, typename R::template Total<T>> terms[R::sums] = {};
      R::template add_terms<stage>(row.transform, row.scalars, row.scales.found, grad, weight,
                                   shown, state, terms);
#pragma unroll
      for (int k = 0; k < R::sums; ++k) {
        if (has_half && k < R::half_squares) terms[k] = rounded_to_half(terms[k]);
        sums[k] += R::scaled_norms ? square(double{terms[k]}) : double{terms[k]};
      }
    };
    const auto add_all = [&](std::int32_t lane, double* sums) {
      const std::int32_t own = thread / warp_size * warp_size + lane;
      for_each_element(part, split(part.count, no_vectors, 1), tensor.rows, own,
                       [&](std::int64_t place, std::int64_t i) {
                         add_element(place < 0 ? T{0} : load_gradient<T>(tensor, place), i, sums);
                       });
    };
    double* const to = table.part_sums + (number * warps_per_block + thread / warp_size) * R::sums;
    warp_sum<R::sums>(thread % warp_size, add_all, [&](const double* sums) {
#pragma unroll
      for (int k = 0; k < R::sums; ++k) to[k] = sums[k];
    });
  });
}

template <class R, class T, int stage>
__global__ void __launch_bounds__(threads_per_block) find_scales(TensorSumTable table) {
  double factor;
  if (!goes_on(table.update, &factor)) return;
  const auto lane = static_cast<std::int32_t>(threadIdx.x) % warp_size;
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * warps_per_block;
  for (std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * warps_per_block +
                        static_cast<std::int32_t>(threadIdx.x) / warp_size;
       n < table.tensor_count; n += warps) {
    const PartRange range = table.ranges[n];
    const double* const from = table.part_sums + range.first * warps_per_block * R::sums;
    const std::int64_t count = range.count * warps_per_block;
    const auto add_all = [&](std::int32_t own, double* sums) {
      for (std::int64_t i = own; i < count; i += warp_size) {
#pragma unroll
        for (int k = 0; k < R::sums; ++k) sums[k] += from[i * R::sums + k];
      }
    };
    warp_sum<R::sums>(lane, add_all, [&](const double* sums) {
      using Total = typename R::template Total<T>;
      auto row = row_of<Row<R, T>>(table.update, range.tensor, factor);
      Total rounded[R::sums];
#pragma unroll
      for (int k = 0; k < R::sums; ++k) {
        rounded[k] = static_cast<Total>(R::scaled_norms ? square_root(sums[k]) : sums[k]);
      }
      R::template find_scales<stage>(row.transform, row.scalars, rounded, row.scales.found);
#pragma unroll
      for (int k = 0; k < R::scales; ++k) {
        table.update.scales[range.tensor * R::scales + k] = row.scales.found[k];
      }
    });
  }
}

template <class R, class T, Kept kept, int stage = 0>
void start(const TensorSumTable& table, int processors, cudaStream_t stream) {
  const unsigned blocks =
      grid_size(table.update.part_count, processors, small_blocks_per_processor);
  launch(sum_parts<R, T, kept, stage>, blocks, threads_per_block, stream, table);
  const std::int64_t work = (table.tensor_count + warps_per_block - 1) / warps_per_block;
  launch(find_scales<R, T, stage>, grid_size(work, processors, small_blocks_per_processor),
         threads_per_block, stream, table);
  if constexpr (stage + 1 < R::stages) {
    start<R, T, kept, stage + 1>(table, processors, stream);
  }
}

template <class R>
constexpr TensorSumKernels kernels_of() {
  if constexpr (R::sums > 0) {
    return {R::sums, R::scales, start<R, float, Kept::plain>, start<R, double, Kept::plain>,
            start<R, float, Kept::low_precision>};
  } else {
    return {};
  }
}

template <class... Rules>
const TensorSumKernels& kernels_at(int rule, RuleList<Rules...>) {
  static constexpr TensorSumKernels kernels[] = {kernels_of<Rules>()...};
  return kernels[rule];
}

}  // namespace

const TensorSumKernels& tensor_sum_kernels(int rule) { return kernels_at(rule, AllRules{}); }

}  // namespace mxadamax::cuda
