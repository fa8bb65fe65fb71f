// SPDX-License-Identifier: Apache-2.0
#include "c_abi.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "launch_plan.h"

namespace mxadamax::cuda {
namespace {

// Calls body(), stores the message of an exception in `error`, and returns whether there was none.
template <class Body>
bool succeeds(DeviceError* error, Body&& body) noexcept {
  const auto tell = [&](const char* message) {
    const std::size_t length = std::min(std::strlen(message), sizeof error->message - 1);
    std::memcpy(error->message, message, length);
    error->message[length] = 0;
  };
  try {
    body();
    return true;
  } catch (const std::exception& found) {
    tell(found.what());
  } catch (...) {
    tell("unknown failure");
  }
  return false;
}

void* make(const char* rule, const DeviceTensor* tensors, std::int64_t count, int device,
           DeviceError* error) {
  std::unique_ptr<LaunchPlan> batch;
  succeeds(error, [&] {
    batch = std::make_unique<LaunchPlan>(
        rule_named(rule), std::vector<DeviceTensor>(tensors, tensors + count), device);
  });
  return batch.release();
}

bool update(void* batch, const DeviceStep* step, DeviceReport* report, DeviceError* error) {
  const auto stream = static_cast<cudaStream_t>(step->stream);
  const bool done = succeeds(error, [&] {
    LaunchPlan& found = *static_cast<LaunchPlan*>(batch);
    const std::vector<double> scalars(step->scalars, step->scalars + step->scalar_count);
    found.update(scalars, step->options, stream);
    const StepControl control = found.report();
    *report = {control.norm, control.skip != 0};
  });
  // The caller relies on unchanged arrays: wait until nothing writes to them.
  if (!done) cudaStreamSynchronize(stream);
  return done;
}

void free(void* batch) { delete static_cast<LaunchPlan*>(batch); }

}  // namespace

const DeviceBackend& device_backend() {
  static constexpr DeviceBackend functions{make, update, free};
  return functions;
}

}  // namespace mxadamax::cuda
