// SPDX-License-Identifier: Apache-2.0
// The arrays of one update: checked, held, and pushed to MXNet's engine as one operation.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "update_op.h"

namespace mxadamax::engine {

// What is wrong with one parameter of a batch. Where the message holds "{other}", it stands for the
// name of the parameter at position `other`.
struct ParameterError : std::runtime_error {
  ParameterError(std::size_t position, const std::string& message, std::size_t other = 0)
      : std::runtime_error(message), position(position), other(other) {}
  std::size_t position;
  std::size_t other;
};

// A copy shares the arrays, to push them once more in the next step.
class FusedUpdate {
 public:
  FusedUpdate(const cpu::RuleKernels& rule, bool lazy, const StateFormat& format)
      : arrays_(std::make_shared<UpdateArguments>(UpdateArguments{rule, lazy, format})) {}

  const cpu::RuleKernels& rule() const { return arrays_->rule; }
  std::size_t size() const { return arrays_->parameters.size(); }

  const StateFormat& format() const { return arrays_->format; }

  // Makes the arrays be updated by the kernels of a device, before the first of them is added.
  void use(const DeviceBackend& kernels, std::shared_ptr<DeviceBatchCache> batches) {
    arrays_->device_backend = &kernels;
    arrays_->device_batch_cache = std::move(batches);
  }

  // Whether the parameter added last has a master weight.
  bool has_master() const { return arrays_->parameters.back().has_master; }
  // How many arrays keep the rule's states: in 8 bits, their scales are one more.
  int arrays_of_rule() const {
    return arrays_->rule.states + (arrays_->format.state_dtype == DType::int8 ? 1 : 0);
  }

  // Whether arrays would be checked and updated as those of another update.
  bool is_like(const FusedUpdate& other) const;

  // Whether a parameter's weight and gradient, which are these NDArrays, are still what they were:
  // operators of MXNet's can give an NDArray other memory, or another shape.
  bool still_holds(std::size_t position, Handle weight, Handle grad) const;

  // Checks a weight with its gradient, dense or row_sparse, and takes hold of both. A state must
  // follow.
  void add(Handle weight, Handle grad);

  // Checks the state of the parameter added last and takes hold of it: a master weight first, an
  // average last.
  // States live from step to step: what is returned can be handed to reuse_state() in the next,
  // which saves checking again, and is false where the state does not fit.
  std::shared_ptr<const State> add_state(const std::vector<Handle>& arrays);
  bool reuse_state(const std::shared_ptr<const State>& state);

  // Ends the list of parameters. Refuses arrays that share memory, of which one would be written:
  // the engine would wait for itself.
  void complete();

  // Hands the update to the engine and returns at once. What the engine cannot do surfaces as
  // MXNetError at the next wait, with no array written.
  void push(StepScalars scalars, const StepOptions& options, StepHistory history);

  // Whether the engine has it. False after a push that has thrown.
  bool pushed() const { return pushed_; }

 private:
  struct Expected;

  // Changed by none but the first of those that share it, before that is complete.
  std::shared_ptr<UpdateArguments> arrays_;
  bool pushed_ = false;

  void check_context(std::size_t position, const char* what, Handle array) const;
  void check_like(std::size_t position, const char* what, Handle array, const Shape& shape,
                  DType dtype, const char* like, const char* shape_like = "weight has ") const;
  std::vector<Expected> expected_state() const;
  void check_memory() const;
  void restore_layouts() const;
};

}  // namespace mxadamax::engine
