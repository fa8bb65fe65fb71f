// SPDX-License-Identifier: Apache-2.0
// Many tensors that are updated together, step after step: their tables in the device's memory.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/device_backend.h"
#include "kernels.h"

namespace mxadamax::cuda {

// The place of a rule in rules/all.h.
int rule_named(const std::string& name);

// What is wrong with one tensor of a batch.
struct TensorError : std::runtime_error {
  TensorError(std::size_t position, const std::string& message)
      : std::runtime_error("tensor " + std::to_string(position) + ": " + message) {}
};

class LaunchPlan {
 public:
  // Refuses types that do not go together, and memory that is not the device's, is not aligned to
  // its elements, or is shared by two arrays of which one is written.
  LaunchPlan(int rule, std::vector<DeviceTensor> tensors, int device);
  // Waits until the device has done what is under way.
  ~LaunchPlan();

  int device() const { return device_; }
  std::size_t size() const { return tensors_.size(); }

  // Updates every tensor once, on a stream; returns at once, but for what the first call prepares.
  // `scalars` holds a row for each tensor, a double for each of the rule's scalars. One launch for
  // each variant among the tensors, and another where gradients hold some rows. Whatever the
  // stream, a step begins when the step before is done.
  //
  // With such gradients it waits, and refuses rows that are wrong, with nothing written.
  void update(const std::vector<double>& scalars, const StepOptions& options, cudaStream_t stream);

  // Waits for the last step. What the last one with options has found, and how many were skipped.
  StepControl report() const;

 private:
  struct Tables;
  void check_memory() const;
  void check_rows() const;

  const int rule_;
  const int device_;
  const std::vector<DeviceTensor> tensors_;
  mutable std::mutex mutex_;
  // All that has to be made and freed with the device as the current one.
  std::unique_ptr<Tables> tables_;
};

}  // namespace mxadamax::cuda
