// SPDX-License-Identifier: Apache-2.0
// Update many tensors together, step after step, from tables in device memory.
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

// Returns the index of a rule in rules/all.h.
int rule_named(const std::string& name);

// An error about one tensor of a batch.
struct TensorError : std::runtime_error {
  TensorError(std::size_t position, const std::string& message)
      : std::runtime_error("tensor " + std::to_string(position) + ": " + message) {}
};

class LaunchPlan {
 public:
  // Refuses unsupported combinations of dtypes, and memory that is not on the device, not aligned
  // to its elements, or shared with an array that is written.
  LaunchPlan(int rule, std::vector<DeviceTensor> tensors, int device);
  // Waits for pending work on the device.
  ~LaunchPlan();

  int device() const { return device_; }
  std::size_t size() const { return tensors_.size(); }

  // Updates every tensor once, on a stream, without waiting; the first call allocates. `scalars`
  // has a row for each tensor, with a double for each of the rule's scalars. There is one launch
  // for each variant among the tensors, and another for row-sparse gradients. A step begins when
  // the previous one is done, on any stream.
  //
  // With row-sparse gradients it waits, and throws if row indices are invalid; nothing is written.
  void update(const std::vector<double>& scalars, const StepOptions& options, cudaStream_t stream);

  // Waits for the last step. Returns the norm of the last one with options, and the skip count.
  StepControl report() const;

 private:
  struct Tables;
  void check_memory() const;
  void check_rows() const;

  const int rule_;
  const int device_;
  const std::vector<DeviceTensor> tensors_;
  mutable std::mutex mutex_;
  // Created and freed with the device as the current one.
  std::unique_ptr<Tables> tables_;
};

}  // namespace mxadamax::cuda
