// SPDX-License-Identifier: Apache-2.0
// The kernels that update weights. This file is compiled once for each variant: MXADAMAX_VARIANT
// names it, and MXADAMAX_KERNELS the function that hands out its kernels.
#include <cstring>

#include "kernels.h"
#include "numbers.h"
#include "rules/all.h"

namespace mxadamax::cuda {
namespace {

// What the arrays of a variant hold.
template <Stored type>
struct NumberOf;
template <>
struct NumberOf<Stored::float32> : std::common_type<Plain<float>> {};
template <>
struct NumberOf<Stored::float64> : std::common_type<Plain<double>> {};
template <>
struct NumberOf<Stored::float16> : std::common_type<Float16> {};
template <>
struct NumberOf<Stored::bfloat16> : std::common_type<Bfloat16> {};

constexpr Variant variant = Variant::MXADAMAX_VARIANT;
using Grad = NumberOf<grad_type(variant)>::type;
using Weight = NumberOf<weight_type(variant)>::type;
using Computed = NumberOf<computed_type(variant)>::type;
using T = Computed::Bits;
constexpr bool rounds_a_copy = has_master(variant);
constexpr int at_once = elements_at_once(stored_size(grad_type(variant)));

// The scalars of one tensor, rounded once to what is computed with. The gradient's factor comes as
// it is, since what bounds the norm of all gradients has still to be multiplied with it.
template <class R>
struct Row {
  double rescale_grad;
  Preparation<T> preparation;
  typename R::template Scalars<T> scalars;
  T share_of_old, share_of_new;
};

template <class R>
void write_row(const double* scalars, void* row) {
  constexpr int common = sizeof(Preparation<T>) / sizeof(T);
  constexpr int own = sizeof(typename R::template Scalars<T>) / sizeof(T);
  T rounded[common + own];
  for (int k = 0; k < common + own; ++k) rounded[k] = static_cast<T>(scalars[k]);
  const double average_share = scalars[common + own];
  Row<R> made;
  made.rescale_grad = scalars[rescale_grad_scalar];
  std::memcpy(&made.preparation, rounded, sizeof made.preparation);
  std::memcpy(&made.scalars, rounded + common, sizeof made.scalars);
  made.share_of_old = static_cast<T>(1 - average_share);
  made.share_of_new = static_cast<T>(average_share);
  std::memcpy(row, &made, sizeof made);
}

// Updates `count` elements from `first` on.
template <class R, int count>
MXADAMAX_RULE void update_elements(const TensorEntry& tensor, const Row<R>& row, const T* grad,
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
    const T prepared = prepared_gradient<R>(row.preparation, grad[i], weight[i]);
    T x = decayed_weight(row.preparation, weight[i]);
    R::update(row.scalars, prepared, x, state);
#pragma unroll
    for (int k = 0; k < R::states; ++k) states[k][i] = state[k];
    weight[i] = x;
  }

#pragma unroll
  for (int k = 0; k < R::states; ++k) store<Weight, count>(tensor.states[k], first, states[k]);
  store<Weight, count>(tensor.weight, first, weight);
  if constexpr (rounds_a_copy) store<Grad, count>(tensor.copy, first, weight);
  if (tensor.average != nullptr) {
    T average[count];
    load<Computed, count>(tensor.average, first, average);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      average[i] = row.share_of_old * average[i] + row.share_of_new * weight[i];
    }
    store<Computed, count>(tensor.average, first, average);
  }
}

template <class R, int count>
MXADAMAX_RULE void update_dense(const TensorEntry& tensor, const Row<R>& row, std::int64_t first) {
  T grad[count];
  load<Grad, count>(tensor.grad, first, grad);
  update_elements<R, count>(tensor, row, grad, first);
}

// Whether anything is to be updated, and what all gradients are multiplied by then.
MXADAMAX_RULE bool goes_on(const UpdateTable& table, double* factor) {
  *factor = 1;
  if (table.refused != nullptr && *table.refused != 0) return false;
  if (table.control == nullptr) return true;
  *factor = table.control->factor;
  return table.control->skip == 0;
}

template <class R>
MXADAMAX_RULE Row<R> row_of(const UpdateTable& table, std::int32_t tensor, double factor) {
  Row<R> row = *reinterpret_cast<const Row<R>*>(table.rows + tensor * table.row_size);
  row.preparation.rescale_grad = static_cast<T>(row.rescale_grad * factor);
  return row;
}

// Calls visit(part, tensor, row) for each part of a block of threads, unless nothing is updated.
template <class R, class Visit>
MXADAMAX_RULE void for_each_part(const UpdateTable& table, Visit&& visit) {
  double factor;
  if (!goes_on(table, &factor)) return;
  for (std::int64_t k = blockIdx.x; k < table.part_count; k += gridDim.x) {
    const Part part = table.parts[k];
    visit(part, table.tensors[part.tensor], row_of<R>(table, part.tensor, factor));
  }
}

// The variant is a parameter for the kernel's name to tell it. With two blocks asked for, the
// compiler is content with the registers it needs, instead of spilling for a third.
template <class R, Variant>
__global__ void __launch_bounds__(threads_per_block, 2) update(UpdateTable table) {
  for_each_part<R>(table, [](const Part& part, const TensorEntry& tensor, const Row<R>& row) {
    const Split cut = split(part.count, tensor.head, at_once);
    const auto thread = static_cast<std::int32_t>(threadIdx.x);
    const auto threads = static_cast<std::int32_t>(blockDim.x);
    for (std::int32_t i = thread; i < cut.vectors; i += threads) {
      update_dense<R, at_once>(tensor, row, part.first + cut.head + i * at_once);
    }
    // What comes before the vectors, and what comes after.
    const std::int32_t others = part.count - cut.vectors * at_once;
    for (std::int32_t i = thread; i < others; i += threads) {
      update_dense<R, 1>(tensor, row, part.first + (i < cut.head ? i : cut.tail + i - cut.head));
    }
  });
}

// Updates weights of whose rows the gradients hold some. Elements go one by one: neighbours are
// read and written together all the same, by threads side by side.
template <class R, Variant>
__global__ void __launch_bounds__(threads_per_block, 2) update_rows(UpdateTable table) {
  for_each_part<R>(table, [](const Part& part, const TensorEntry& tensor, const Row<R>& row) {
    const HeldRows& rows = tensor.rows;
    const Cell first{part.first / rows.length, part.first % rows.length};
    const auto threads = static_cast<std::int32_t>(blockDim.x);
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < part.count; i += threads) {
      const Cell cell = cell_after(first, i, rows.length);
      T grad = 0;
      if (rows.lazy) {
        load<Grad, 1>(tensor.grad, part.first + i, &grad);
        update_elements<R, 1>(tensor, row, &grad,
                              rows.numbers[cell.row] * rows.length + cell.column);
        continue;
      }
      const std::int64_t place = place_of_row(rows, cell.row);
      if (place >= 0) load<Grad, 1>(tensor.grad, place * rows.length + cell.column, &grad);
      update_elements<R, 1>(tensor, row, &grad, part.first + i);
    }
  });
}

template <void (*kernel)(UpdateTable)>
int blocks_per_processor() {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads_per_block, 0),
        "occupancy");
  return blocks;
}

template <void (*kernel)(UpdateTable)>
void start(const UpdateTable& table, unsigned blocks, cudaStream_t stream) {
  launch(kernel, blocks, threads_per_block, stream, table);
}

template <void (*kernel)(UpdateTable)>
constexpr UpdateKernel started{blocks_per_processor<kernel>, start<kernel>};

template <class R>
constexpr RuleKernels describe() {
  return {R::name,
          R::states,
          ScalarNames<R>::names.data(),
          static_cast<int>(ScalarNames<R>::names.size()),
          sizeof(Row<R>),
          write_row<R>,
          started<update<R, variant>>,
          started<update_rows<R, variant>>};
}

template <class... Rules>
KernelTable table(RuleList<Rules...>) {
  static constexpr RuleKernels rules[] = {describe<Rules>()...};
  return {rules, static_cast<int>(sizeof...(Rules))};
}

}  // namespace

KernelTable MXADAMAX_KERNELS() { return table(AllRules{}); }

}  // namespace mxadamax::cuda
