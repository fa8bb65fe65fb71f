// SPDX-License-Identifier: Apache-2.0
// What the kernels look like to those who start them, and the tables in the device's memory.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/sparse_rows.h"
#include "launch_config.h"
#include "runtime.h"

namespace mxadamax::cuda {

// What the arrays of a tensor are stored as. With a master, that is what the rule updates, with
// states like it, and the weight is a rounded copy. With low-precision states, each tensor tells
// what the others are.
enum class Variant {
  float32,
  float64,
  float16,
  bfloat16,
  float16_master,
  bfloat16_master,
  low_precision
};
constexpr int variants = 7;

// One tensor, as the kernels find it.
struct TensorEntry {
  const void* grad;
  void* weight;
  void* states[max_states];
  // Where the new weight is written once more, rounded.
  void* copy;
  // Null for none.
  void* average;
  // Of states in 8 bits.
  float* scales;
  SparseRows rows;
  std::int64_t size;
  std::int32_t head;
  DType grad_type, weight_type, state_type;
};

// What is decided about a step on the device, from all gradients together.
struct StepControl {
  double norm;
  // What the gradients are multiplied by to have the norm that is allowed.
  double factor;
  std::int64_t skipped;
  std::int32_t skip;
  // Set by whoever finds a gradient that is not finite; cleared once it has been heeded.
  std::int32_t nonfinite;
};

struct UpdateTable {
  const Tile* parts;
  std::int64_t part_count;
  const TensorEntry* tensors;
  // As UpdateKernel::write_row has written them, a row for each tensor.
  const unsigned char* rows;
  std::int64_t row_size;
  // Null where all gradients count as they are.
  const StepControl* control;
  // Not 0 where rows are wrong, and nothing may be written. Null where no gradient is of rows.
  const std::int32_t* refused;
  // A number for each tensor, for rules that sum.
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
  // From a double for each of the rule's scalars.
  void (*write_row)(const double* scalars, void* row);
  // For gradients that hold all rows of their weight, and for those that hold some: parts of the
  // latter are of the gradient where rows that it does not hold are left alone.
  UpdateKernel dense, some_rows;
};

struct DeviceKernelTable {
  const DeviceRuleKernels* rules;
  int count;
};

// All rules, in the order of rules/all.h.
DeviceKernelTable kernels_float32();
DeviceKernelTable kernels_float64();
DeviceKernelTable kernels_float16();
DeviceKernelTable kernels_bfloat16();
DeviceKernelTable kernels_float16_master();
DeviceKernelTable kernels_bfloat16_master();
DeviceKernelTable kernels_low_precision();

struct SumTable {
  const SumTile* parts;
  std::int64_t part_count;
  int threads;
  const std::int64_t* chunks;
  std::int64_t chunk_count;
  const TensorEntry* tensors;
  // A number for each lane of each segment, and for each chunk.
  double* lane_sums;
  double* chunk_sums;
  StepControl* control;
  // As in UpdateTable.
  const std::int32_t* refused;
  // The first tensor's.
  double rescale_grad;
  // NaN for none.
  double clip_global_norm;
  bool skip_nonfinite;
};

// Of the parts of a kernel, those of one tensor.
struct PartRange {
  std::int64_t first;
  std::int32_t count;
  std::int32_t tensor;
};

// How many numbers each of a rule's sums is, for one part.
constexpr int sums_per_part = 8;

struct TensorSumTable {
  // Of the kernel that updates afterwards; its scales are what is written.
  UpdateTable update;
  const PartRange* ranges;
  std::int64_t tensor_count;
  double* part_sums;
};

// What a rule does before it updates tensors: nothing, where it has no sums.
struct TensorSumKernels {
  using Start = void (*)(const TensorSumTable& table, bool some_rows, int processors,
                         cudaStream_t stream);
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

// Sets `refused` where a gradient holds rows that are wrong. There must be parts.
void start_row_check(const RowTable& table, int processors, cudaStream_t stream);

// Fills the control block: three kernels, each of which needs what the one before has written.
void start_sums(const SumTable& table, int processors, cudaStream_t stream);

}  // namespace mxadamax::cuda
