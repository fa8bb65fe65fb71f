// SPDX-License-Identifier: Apache-2.0
// The arrays of one update: checked, held, and pushed to MXNet's engine as one operation.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "chunks.h"
#include "cpu/instruction_set.h"
#include "cpu/update.h"
#include "mxnet.h"
#include "on_device.h"

namespace mxadamax::engine {

// What is wrong with one parameter of a batch. Where the message holds "{other}", it stands for the
// name of the parameter at position `other`.
struct ParameterError : std::runtime_error {
  ParameterError(std::size_t position, const std::string& message, std::size_t other = 0)
      : std::runtime_error(message), position(position), other(other) {}
  std::size_t position;
  std::size_t other;
};

// Where the arrays of a step are: the number of a kind of device, as MXNet counts them, and of the
// device. All kinds of host memory are one.
struct Place {
  int device_type;
  int device_id;
};
Place place_of(Handle array);
bool is_gpu(const Place& place);

struct Shape {
  static constexpr int most_dims = 32;
  int ndim = 0;
  std::int64_t dims[most_dims];

  explicit Shape(Handle array);
  Shape(std::int64_t rows, std::int64_t columns);
  bool operator==(const Shape& other) const;
  std::int64_t size() const;
  std::string text() const;
};

// What the states of parameters are made of.
struct StateFormat {
  // The state of a 16-bit weight begins with a float32 copy of it, which is updated and from which
  // the weight is rounded.
  bool multi_precision = false;
  // It ends with the average of the weight over the steps.
  bool average = false;
  // What the rule's states are stored as; nothing for what is computed in, or like a 16-bit weight
  // without a copy.
  std::optional<Stored> low_bit = std::nullopt;

  bool operator==(const StateFormat& other) const {
    return multi_precision == other.multi_precision && average == other.average &&
           low_bit == other.low_bit;
  }
};

// The arrays of one parameter's state, found to fit a weight of this shape and type.
struct State {
  Shape shape;
  int weight_dtype;
  StateFormat format;
  std::vector<Array> arrays;
};

// What the steps of an optimizer on one device leave behind. To be read after a wait, but for the
// two counters: `skipped` grows before `finished` does.
struct StepReport {
  std::atomic<double> gradient_norm{std::numeric_limits<double>::quiet_NaN()};
  std::atomic<std::int64_t> skipped{0};
  std::atomic<std::int64_t> finished{0};
};

// What a whole step asks of all gradients together.
struct StepOptions {
  // The largest norm that they may have after rescaling; infinite for any.
  std::optional<double> clip_global_norm;
  // Whether a step with NaN or infinite gradients is left out.
  bool skip_nonfinite = false;
  std::shared_ptr<StepReport> report;
  // How many steps had been left out at least when the first table of scalars was made; the next
  // table is for one more, and so on.
  std::int64_t skipped_before = 0;
};

class Batch {
 public:
  // With `lazy`, rows that a row_sparse gradient does not hold are left alone; else they are
  // updated with a gradient of zero.
  Batch(const cpu::RuleKernels& rule, bool lazy, const StateFormat& format)
      : rule_(rule), lazy_(lazy), format_(format) {}

  const cpu::RuleKernels& rule() const { return rule_; }
  std::size_t size() const { return parameters_.size(); }

  const StateFormat& format() const { return format_; }

  // Makes the arrays be updated by the kernels of a device, before the first of them is added.
  void use(const DeviceKernels& kernels, std::shared_ptr<DeviceBatches> batches) {
    device_kernels_ = &kernels;
    device_batches_ = std::move(batches);
  }

  // Whether the parameter added last has a master weight.
  bool has_master() const { return parameters_.back().has_master; }
  // How many arrays keep the rule's states: in 8 bits, their scales are one more.
  int arrays_of_rule() const { return rule_.states + (format_.low_bit == Stored::int8 ? 1 : 0); }

  // Checks a weight with its gradient, dense or row_sparse, and takes hold of both. A state must
  // follow.
  void add(Handle weight, Handle grad);

  // Checks the state of the parameter added last and takes hold of it: a master weight first, an
  // average last.
  // States live from step to step: what is returned can be handed to reuse_state() in the next,
  // which saves checking again, and is false where the state does not fit.
  std::shared_ptr<const State> add_state(const std::vector<Handle>& arrays);
  bool reuse_state(const std::shared_ptr<const State>& state);

  // Refuses arrays that share memory, of which one would be written: the engine would wait for
  // itself.
  void check_memory() const;

  // Hands the update to the engine and returns at once. Each table of scalars has a row for each
  // parameter, as wide as the rule has scalars; there is more than one where it is not known yet
  // how many earlier steps are left out. What the engine cannot do surfaces as MXNetError at the
  // next wait, with no array written.
  void push(std::vector<std::vector<double>> tables, StepOptions options) &&;

  // Whether the engine has it. False after a push that has thrown.
  bool pushed() const { return pushed_; }

 private:
  friend struct Operation;
  struct Expected;

  struct Parameter {
    Shape shape;
    std::int64_t size;
    int dtype;
    bool has_master;
    // Whether a layer may have left weight or gradient in a layout of oneDNN's.
    bool is_matrix;
    bool weight_in_rows;
    bool grad_in_rows;
    Array weight;
    Array grad;
    std::shared_ptr<const State> state;
  };

  const cpu::RuleKernels& rule_;
  bool lazy_;
  StateFormat format_;
  std::vector<Parameter> parameters_;
  bool pushed_ = false;
  // The first weight's.
  Place place_{};
  // Null where the processor updates.
  const DeviceKernels* device_kernels_ = nullptr;
  std::shared_ptr<DeviceBatches> device_batches_;

  void check_place(std::size_t position, const char* what, Handle array) const;
  void check_like(std::size_t position, const char* what, Handle array, const Shape& shape,
                  int dtype, const char* like, const char* shape_like = "weight has ") const;
  std::vector<Expected> expected_state() const;
  void restore_layouts() const;
};

// Makes the next wait on any of these arrays raise MXNetError with this message.
void push_failure(const std::vector<Handle>& arrays, const std::string& message);

}  // namespace mxadamax::engine
