// The arrays of one update: checked, held, and pushed to MXNet's engine as one operation.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/update.h"
#include "mxnet.h"

namespace mxadamax::engine {

// What is wrong with one parameter of a batch. Where the message holds "{other}", it stands for the
// name of the parameter at position `other`.
struct ParameterError : std::runtime_error {
  ParameterError(std::size_t position, const std::string& message, std::size_t other = 0)
      : std::runtime_error(message), position(position), other(other) {}
  std::size_t position;
  std::size_t other;
};

class Batch {
 public:
  explicit Batch(const cpu::RuleKernels& rule) : rule_(rule) {}

  const cpu::RuleKernels& rule() const { return rule_; }
  std::size_t size() const { return tensors_.size(); }

  // Checks one parameter and takes hold of its arrays; `states` has as many as the rule.
  void add(Handle weight, Handle grad, const std::vector<Handle>& states);

  // Refuses arrays that share memory, of which one would be written: the engine would wait for itself.
  void check_memory() const;

  // Hands the update to the engine and returns at once. Scalars as for cpu::update. What the engine
  // cannot do surfaces as MXNetError at the next wait, with no array written.
  void push(std::vector<double> scalars) &&;

 private:
  friend struct Operation;

  const cpu::RuleKernels& rule_;
  // Addresses are filled in when the operation runs.
  std::vector<cpu::Tensor> tensors_;
  // For each tensor: weight, gradient, states.
  std::vector<Array> arrays_;
  // For each tensor, whether a layer may have left weight or gradient in a layout of oneDNN's.
  std::vector<bool> is_matrix_;
  int device_id_ = 0;

  void restore_layouts() const;
  std::size_t arrays_per_tensor() const { return 2 + static_cast<std::size_t>(rule_.states); }
};

// Makes the next wait on any of these arrays raise MXNetError with this message.
void push_failure(const std::vector<Handle>& arrays, const std::string& message);

}  // namespace mxadamax::engine
