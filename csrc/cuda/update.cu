// SPDX-License-Identifier: Apache-2.0
// Update weights. This file is compiled once for each variant: MXADAMAX_VARIANT names the variant,
// and MXADAMAX_KERNELS the function that returns its kernels.
#include "load_store.h"
#include "rule_kernels.h"

namespace mxadamax::cuda {
namespace {

constexpr DType grad_type(Variant variant) {
  switch (variant) {
    case Variant::float64:
      return DType::float64;
    case Variant::float16:
    case Variant::float16_master:
      return DType::float16;
    case Variant::bfloat16:
    case Variant::bfloat16_master:
      return DType::bfloat16;
    default:
      return DType::float32;
  }
}
constexpr bool has_master(Variant variant) {
  return variant == Variant::float16_master || variant == Variant::bfloat16_master;
}

// The number type of a dtype.
template <DType type>
struct NumberOf;
template <>
struct NumberOf<DType::float32> : std::common_type<Plain<float>> {};
template <>
struct NumberOf<DType::float64> : std::common_type<Plain<double>> {};
template <>
struct NumberOf<DType::float16> : std::common_type<Float16> {};
template <>
struct NumberOf<DType::bfloat16> : std::common_type<Bfloat16> {};

constexpr Variant variant = Variant::MXADAMAX_VARIANT;
using Grad = NumberOf<grad_type(variant)>::type;
using Weight = NumberOf<updated_type(grad_type(variant), has_master(variant))>::type;
using Computed = NumberOf<op_math_type(grad_type(variant))>::type;
using T = Computed::Bits;
constexpr bool rounds_a_copy = has_master(variant);
constexpr int at_once = elements_at_once(dtype_size(grad_type(variant)));

template <class R>
using RowOf = Row<R, T>;

// Updates `count` elements from `first` on.
template <class R, int count>
MXADAMAX_RULE void update_elements(const TensorEntry& tensor, const RowOf<R>& row, const T* grad,
                                   std::int64_t first) {
  static_assert(R::states <= max_states, "raise max_states");
  constexpr int slots = R::states > 0 ? R::states : 1;
  T weight[count], states[slots][count];
  load<Weight, count>(tensor.weight, first, weight);
#pragma unroll
  for (int k = 0; k < R::states; ++k) load<Weight, count>(tensor.states[k], first, states[k]);

#pragma unroll
  for (int i = 0; i < count; ++i) {
    T state[slots];
#pragma unroll
    for (int k = 0; k < R::states; ++k) state[k] = states[k][i];
    run_rule(row, grad[i], &weight[i], state);
#pragma unroll
    for (int k = 0; k < R::states; ++k) states[k][i] = state[k];
  }

#pragma unroll
  for (int k = 0; k < R::states; ++k) store<Weight, count>(tensor.states[k], first, states[k]);
  store<Weight, count>(tensor.weight, first, weight);
  if constexpr (rounds_a_copy) store<Grad, count>(tensor.copy, first, weight);
  if (tensor.average != nullptr) {
    T average[count];
    load<Computed, count>(tensor.average, first, average);
#pragma unroll
    for (int i = 0; i < count; ++i) average[i] = new_average(row, average[i], weight[i]);
    store<Computed, count>(tensor.average, first, average);
  }
}

template <class R, int count>
MXADAMAX_RULE void update_dense(const TensorEntry& tensor, const RowOf<R>& row,
                                std::int64_t first) {
  T grad[count];
  load<Grad, count>(tensor.grad, first, grad);
  update_elements<R, count>(tensor, row, grad, first);
}

// The variant is a parameter so that the kernel's name contains it. With launch bounds of two
// blocks, the compiler uses the registers it needs, instead of spilling for a third block.
template <class R, Variant>
__global__ void __launch_bounds__(threads_per_block, 2) update(UpdateTable table) {
  for_each_part<RowOf<R>>(table, [](const Tile& part, const TensorEntry& tensor,
                                    const RowOf<R>& row, std::int64_t) {
    const Split cut = split(part.count, tensor.head, at_once);
    const auto thread = static_cast<std::int32_t>(threadIdx.x);
    const auto threads = static_cast<std::int32_t>(blockDim.x);
    for (std::int32_t i = thread; i < cut.vectors; i += threads) {
      update_dense<R, at_once>(tensor, row, part.first + cut.head + i * at_once);
    }
    // The elements before and after the vectors.
    const std::int32_t others = part.count - cut.vectors * at_once;
    for (std::int32_t i = thread; i < others; i += threads) {
      update_dense<R, 1>(tensor, row, part.first + (i < cut.head ? i : cut.tail + i - cut.head));
    }
  });
}

// Updates weights with row-sparse gradients. Threads process single elements; accesses of
// neighbouring threads coalesce.
template <class R, Variant>
__global__ void __launch_bounds__(threads_per_block, 2) update_rows(UpdateTable table) {
  for_each_part<RowOf<R>>(
      table, [](const Tile& part, const TensorEntry& tensor, const RowOf<R>& row, std::int64_t) {
        const auto thread = static_cast<std::int32_t>(threadIdx.x);
        for_each_cell(part, tensor.rows, thread, [&](std::int64_t place, std::int64_t element) {
          T grad = 0;
          if (place >= 0) load<Grad, 1>(tensor.grad, place, &grad);
          update_elements<R, 1>(tensor, row, &grad, element);
        });
      });
}

template <class R>
struct KernelsOf {
  static constexpr UpdateKernel dense = started<update<R, variant>>;
  static constexpr UpdateKernel some_rows = started<update_rows<R, variant>>;
};

}  // namespace

DeviceKernelTable MXADAMAX_KERNELS() { return table<KernelsOf, T>(AllRules{}); }

}  // namespace mxadamax::cuda
