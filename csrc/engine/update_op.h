// SPDX-License-Identifier: Apache-2.0
// An update as MXNet's engine runs it: where it finds the arrays, and what it does with them.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "common/step_options.h"
#include "cpu/update.h"
#include "device_batch_cache.h"
#include "engine_op.h"
#include "mxnet.h"

namespace mxadamax::engine {

// What the states of parameters are made of.
struct StateFormat {
  // The state of a 16-bit weight begins with a float32 copy of it, which is updated and from which
  // the weight is rounded.
  bool multi_precision = false;
  // It ends with the average of the weight over the steps.
  bool average = false;
  // What the rule's states are stored as; nothing for what is computed in, or like a 16-bit weight
  // without a copy.
  std::optional<DType> state_dtype = std::nullopt;

  bool operator==(const StateFormat& other) const {
    return multi_precision == other.multi_precision && average == other.average &&
           state_dtype == other.state_dtype;
  }
};

// The arrays of one parameter's state, found to fit a weight of this shape and type.
struct State {
  Shape shape;
  DType weight_dtype;
  StateFormat format;
  std::vector<Array> arrays;
};

// A weight, its gradient and its state.
struct Parameter {
  Shape shape;
  std::int64_t size;
  DType dtype;
  bool has_master;
  // Whether a layer may have left weight or gradient in a layout of oneDNN's.
  bool is_matrix;
  bool weight_in_rows;
  bool grad_in_rows;
  Array weight;
  Array grad;
  std::shared_ptr<const State> state;
};

// The first row of a weight that is a matrix, by which its layout is restored.
struct FirstRow {
  Array array;
  DType dtype;
};

// The arrays of an update, found to fit one another. Steps share it as long as that does not
// change.
struct UpdateArguments {
  const cpu::RuleKernels& rule;
  // Whether rows that a row_sparse gradient does not hold are left alone; else they are updated
  // with a gradient of zero.
  bool lazy;
  StateFormat format;
  std::vector<Parameter> parameters = {};
  // The first weight's.
  Context context{};
  // Null where the processor updates.
  const DeviceBackend* device_backend = nullptr;
  std::shared_ptr<DeviceBatchCache> device_batch_cache = nullptr;
  std::vector<FirstRow> first_rows = {};
  // Where the kernels find a parameter whose memory stays in place; without a weight before its
  // first step. Steps write the same arrays, so they run one after another.
  mutable std::vector<cpu::Tensor> tensors = {};
  // Whether that is all parameters.
  mutable bool all_stay_in_place = false;
  // What the engine orders the operation by.
  std::vector<Handle> read = {};
  std::vector<Handle> written = {};
};

// What the steps of an optimizer on one device leave behind. To be read after a wait, but for the
// two counters: `skipped` grows before `finished` does.
struct StepStatus {
  std::atomic<double> gradient_norm{std::numeric_limits<double>::quiet_NaN()};
  std::atomic<std::int64_t> skipped{0};
  std::atomic<std::int64_t> finished{0};
};

// A step among those before it, which run later than they are pushed. The engine's alone: kernels
// get the one table of scalars that counts.
struct StepHistory {
  // Null only for a step without options.
  std::shared_ptr<StepStatus> report;
  // How many steps had been left out at least when the first table of scalars was made; the next
  // table is for one more, and so on.
  std::int64_t skipped_before = 0;
};

// The scalars of a step.
struct StepScalars {
  // Each has rows as wide as the rule has scalars. There is more than one where it is not known yet
  // how many earlier steps are left out.
  std::vector<std::vector<double>> tables;
  // The row of each parameter; empty where each has its own, in their order.
  std::vector<std::uint8_t> row_of = {};
};

// What updates these arrays.
std::unique_ptr<const EngineOp> update_of(std::shared_ptr<const UpdateArguments> arrays,
                                          StepScalars scalars, const StepOptions& options,
                                          StepHistory history);

}  // namespace mxadamax::engine
