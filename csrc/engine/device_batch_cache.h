// SPDX-License-Identifier: Apache-2.0
// Updates on a device, by kernels that are in another module.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "common/device_backend.h"

namespace mxadamax::engine {

// The batches that an optimizer's steps have prepared on devices, to be used again while no array
// has moved. Operations of several threads may use it at a time.
class DeviceBatchCache {
 public:
  // Updates tensors once and waits for it.
  DeviceReport update(const DeviceBackend& kernels, const char* rule,
                      const std::vector<DeviceTensor>& tensors, int device, const DeviceStep& step);

 private:
  struct Entry {
    const DeviceBackend* kernels;
    const char* rule;
    int device;
    std::vector<DeviceTensor> tensors;
    std::shared_ptr<void> batch;
  };
  std::shared_ptr<void> batch_of(const DeviceBackend& kernels, const char* rule,
                                 const std::vector<DeviceTensor>& tensors, int device);

  std::mutex mutex_;
  // By the first weight that has elements.
  std::unordered_map<const void*, Entry> entries_;
};

}  // namespace mxadamax::engine
