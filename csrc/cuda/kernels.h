// SPDX-License-Identifier: Apache-2.0
// Declare the kernels for their launchers, and the tables in device memory.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/sparse_rows.h"
#include "common/step_options.h"
#include "launch_config.h"
#include "runtime.h"

namespace mxadamax::cuda {

// What kernels are compiled for. `half`: float16 and bfloat16, where each tensor has its own
// dtypes: with a master, the rule updates the master, states have its dtype, and the weight is a
// rounded copy. `low_precision`: states in low precision, of weights of all dtypes but float64.
enum class Variant { float32, float64, half, low_precision };
constexpr int variants = 4;

// One tensor, for the kernels.
struct TensorEntry {
  const void* grad;
  void* weight;
  void* states[max_states];
  // Receives the new weight, rounded; null without a master.
  void* copy;
  // Null for none.
  void* average;
  // Of 8-bit states.
  float* scales;
  SparseRows rows;
  std::int64_t size;
  std::int32_t head;
  DType grad_type, weight_type, state_type;
};

// The decisions about a step on the device, from all gradients.
struct StepControl {
  double norm;
  // Scales the gradients to the allowed norm.
  double factor;
  std::int64_t skipped;
  std::int32_t skip;
  // Set by any thread that finds a non-finite gradient; cleared by finalize_norm.
  std::int32_t nonfinite;
};

struct UpdateTable {
  const Tile* parts;
  std::int64_t part_count;
  const TensorEntry* tensors;
  // The scalars: for each tensor a row, written by DeviceRuleKernels::write_row.
  const unsigned char* rows;
  std::int64_t row_size;
  // Null if gradients are neither scaled nor checked.
  const StepControl* control;
  // Not 0 if row indices are invalid and nothing may be written. Null without row-sparse gradients.
  const std::int32_t* refused;
  // Numbers for each tensor, for rules with sums.
  double* scales;
};

struct UpdateKernel {
  int (*blocks_per_processor)();
  void (*start)(const UpdateTable& table, unsigned blocks, cudaStream_t stream);
};

// One rule's kernels for one variant.
struct DeviceRuleKernels {
  const char* rule;
  int states;
  bool supports_low_precision_state, supports_int8_state;
  const char* const* scalar_names;
  int scalars;
  std::int64_t row_size;
  // Converts a double for each of the rule's scalars to a row.
  void (*write_row)(const double* scalars, void* row);
  // Parts cover the weight; with lazy_update, the row-sparse gradient.
  UpdateKernel update;
};

struct DeviceKernelTable {
  const DeviceRuleKernels* rules;
  int count;
};

// All rules, in the order of rules/all.h.
DeviceKernelTable kernels_float32();
DeviceKernelTable kernels_float64();
DeviceKernelTable kernels_half();
DeviceKernelTable kernels_low_precision();

struct SumTable {
  const SumTile* parts;
  std::int64_t part_count;
  int threads;
  const std::int64_t* chunks;
  std::int64_t chunk_count;
  const TensorEntry* tensors;
  // A sum for each lane of each segment, and for each chunk.
  double* lane_sums;
  double* chunk_sums;
  StepControl* control;
  // As in UpdateTable.
  const std::int32_t* refused;
  // That of the first tensor.
  double rescale_grad;
  StepOptions options;
};

// The parts of one tensor, among those of a kernel.
struct PartRange {
  std::int64_t first;
  std::int32_t count;
  std::int32_t tensor;
};

// Partial sums per part, for each of a rule's sums.
constexpr int sums_per_part = 8;

struct TensorSumTable {
  // The table of the update kernel that runs next; scales is written.
  UpdateTable update;
  const PartRange* ranges;
  std::int64_t tensor_count;
  double* part_sums;
};

// The kernels that run before a rule's update; none if it has no sums.
struct TensorSumKernels {
  using Start = void (*)(const TensorSumTable& table, int processors, cudaStream_t stream);
  int sums, scales;
  Start float32, float64, low_precision;

  Start of(Variant variant) const {
    return variant == Variant::float64         ? float64
           : variant == Variant::low_precision ? low_precision
                                               : float32;
  }
};
const TensorSumKernels& tensor_sum_kernels(int rule);

struct RowTable {
  // Of the row indices.
  const Tile* parts;
  std::int64_t part_count;
  const TensorEntry* tensors;
  std::int32_t* refused;
};

// Sets `refused` if a gradient has invalid row indices. There must be parts.
void start_row_check(const RowTable& table, int processors, cudaStream_t stream);

// Fills the control block, with three dependent kernels.
void start_sums(const SumTable& table, int processors, cudaStream_t stream);

}  // namespace mxadamax::cuda
