// SPDX-License-Identifier: Apache-2.0
// Shared by all update kernels: the scalars of a tensor, the iteration over its parts, and the
// kernel tables.
#pragma once

#include <cstring>
#include <type_traits>

#include "common/low_precision.h"
#include "kernels.h"
#include "rules/all.h"

namespace mxadamax::cuda {
namespace {

// The scalars of one tensor, rounded once to the op-math type. `rescale_grad` stays a double,
// because the clip coefficient of the global norm still multiplies it.
template <class R, class T>
struct Row {
  using Number = T;
  static constexpr bool has_sums = R::sums > 0;
  static constexpr int scale_count = R::scales;
  double rescale_grad;
  // The seed of stochastic rounding.
  std::uint64_t seed;
  GradientTransform<T> transform;
  typename R::template Scalars<T> scalars;
  T share_of_old, share_of_new;
  // What follows from the sums, for rules with sums; set by the kernels.
  Scales<R, T> scales;
};

template <class R, class T>
void write_row(const double* scalars, void* row) {
  constexpr int common = sizeof(GradientTransform<T>) / sizeof(T);
  constexpr int own = sizeof(typename R::template Scalars<T>) / sizeof(T);
  T rounded[common + own];
  for (int k = 0; k < common + own; ++k) rounded[k] = static_cast<T>(scalars[k]);
  const EpilogueScalars pass = epilogue_scalars_at(scalars + common + own);
  Row<R, T> made;
  made.rescale_grad = scalars[rescale_grad_scalar];
  made.seed = rng_seed(pass.rng_stream, pass.step);
  std::memcpy(&made.transform, rounded, sizeof made.transform);
  std::memcpy(&made.scalars, rounded + common, sizeof made.scalars);
  made.share_of_old = static_cast<T>(1 - pass.ema_weight);
  made.share_of_new = static_cast<T>(pass.ema_weight);
  made.scales = {};
  std::memcpy(row, &made, sizeof made);
}

// Updates one element.
template <class R, class T>
MXADAMAX_RULE void run_rule(const Row<R, T>& row, T grad, T* weight, T* state) {
  *weight = updated_weight<R>(row.transform, row.scalars, row.scales, grad, *weight, state);
}

template <class R, class T>
MXADAMAX_RULE T new_average(const Row<R, T>& row, T average, T weight) {
  return row.share_of_old * average + row.share_of_new * weight;
}

// Returns whether to update, and the factor of all gradients.
MXADAMAX_RULE bool goes_on(const UpdateTable& table, double* factor) {
  *factor = 1;
  if (table.refused != nullptr && *table.refused != 0) return false;
  if (table.control == nullptr) return true;
  *factor = table.control->factor;
  return table.control->skip == 0;
}

template <class Row>
MXADAMAX_RULE Row row_of(const UpdateTable& table, std::int32_t tensor, double factor) {
  Row row = *reinterpret_cast<const Row*>(table.rows + tensor * table.row_size);
  row.transform.rescale_grad = static_cast<typename Row::Number>(row.rescale_grad * factor);
  if constexpr (Row::has_sums) {
    for (int k = 0; k < Row::scale_count; ++k) {
      row.scales.found[k] =
          static_cast<typename Row::Number>(table.scales[tensor * Row::scale_count + k]);
    }
  }
  return row;
}

// Calls visit(part, tensor, row, number) for each part of a block of threads, unless the step is
// skipped.
template <class Row, class Visit>
MXADAMAX_RULE void for_each_part(const UpdateTable& table, Visit&& visit) {
  double factor;
  if (!goes_on(table, &factor)) return;
  for (std::int64_t k = blockIdx.x; k < table.part_count; k += gridDim.x) {
    const Tile part = table.parts[k];
    visit(part, table.tensors[part.tensor], row_of<Row>(table, part.tensor, factor), k);
  }
}

// Calls visit(place, element) for each of a thread's elements before and after the vectors of a
// part. `place` is the index of its gradient, -1 if a row-sparse gradient is zero there.
template <class Visit>
MXADAMAX_RULE void for_each_element(const Tile& part, const Split& cut, const SparseRows& rows,
                                    std::int32_t thread, Visit&& visit) {
  const bool has_rows = rows.length > 0;
  const Cell first =
      has_rows ? Cell{part.first / rows.length, part.first % rows.length} : Cell{0, 0};
  const std::int32_t after = part.count - cut.tail;
  const auto threads = static_cast<std::int32_t>(blockDim.x);
  for (std::int32_t i = thread; i < cut.head + after; i += threads) {
    const std::int32_t k = i < cut.head ? i : cut.tail + i - cut.head;
    std::int64_t place = part.first + k;
    std::int64_t element = place;
    if (has_rows) {
      const Cell cell = cell_after(first, k, rows.length);
      if (rows.lazy) {
        element = rows.numbers[cell.row] * rows.length + cell.column;
      } else {
        place = index_of_row(rows, cell.row);
        if (place >= 0) place = place * rows.length + cell.column;
      }
    }
    visit(place, element);
  }
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

// Builds the table of all rules, with KernelOf<Rule>::update, which computes in T.
template <template <class> class KernelOf, class T, class... Rules>
DeviceKernelTable table(RuleList<Rules...>) {
  static constexpr DeviceRuleKernels rules[] = {
      {Rules::name, Rules::states, Rules::supports_low_precision_state, supports_int8_state<Rules>,
       ScalarNames<Rules>::names.data(), static_cast<int>(ScalarNames<Rules>::names.size()),
       sizeof(Row<Rules, T>), write_row<Rules, T>, KernelOf<Rules>::update}...};
  return {rules, static_cast<int>(sizeof...(Rules))};
}

}  // namespace
}  // namespace mxadamax::cuda
