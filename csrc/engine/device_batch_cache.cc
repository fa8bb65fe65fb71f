// SPDX-License-Identifier: Apache-2.0
#include "device_batch_cache.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

namespace mxadamax::engine {
namespace {

// Of weights that were updated one by one and have moved since, batches are left over. Beyond so
// many all are prepared anew.
constexpr std::size_t most_batches = 4096;

// Everything that a batch is made from.
auto parts_of(const DeviceTensor& t) {
  return std::tie(t.type, t.low_precision_state, t.state_type, t.size, t.grad, t.weight, t.states,
                  t.copy, t.average, t.scales, t.rows);
}
bool same(const DeviceTensor& a, const DeviceTensor& b) { return parts_of(a) == parts_of(b); }

}  // namespace

std::shared_ptr<void> DeviceBatchCache::batch_of(const DeviceBackend& kernels, const char* rule,
                                                 const std::vector<DeviceTensor>& tensors,
                                                 int device) {
  const auto first = std::find_if(tensors.begin(), tensors.end(),
                                  [](const DeviceTensor& tensor) { return tensor.size > 0; });
  const void* const key = first == tensors.end() ? nullptr : first->weight;
  const std::scoped_lock lock(mutex_);
  const auto known = entries_.find(key);
  if (known != entries_.end()) {
    const Entry& entry = known->second;
    const bool is_for_these = std::tie(entry.kernels, entry.rule, entry.device) ==
                              std::make_tuple(&kernels, rule, device);
    if (is_for_these && std::equal(tensors.begin(), tensors.end(), entry.tensors.begin(),
                                   entry.tensors.end(), same)) {
      return entry.batch;
    }
    entries_.erase(known);
  }
  if (entries_.size() >= most_batches) entries_.clear();
  DeviceError error;
  void* const made =
      kernels.make(rule, tensors.data(), static_cast<std::int64_t>(tensors.size()), device, &error);
  if (made == nullptr) throw std::runtime_error(error.message);
  std::shared_ptr<void> batch(made, kernels.free);
  entries_[key] = {&kernels, rule, device, tensors, batch};
  return batch;
}

DeviceReport DeviceBatchCache::update(const DeviceBackend& kernels, const char* rule,
                                      const std::vector<DeviceTensor>& tensors, int device,
                                      const DeviceStep& step) {
  const std::shared_ptr<void> batch = batch_of(kernels, rule, tensors, device);
  DeviceReport report{};
  DeviceError error;
  if (!kernels.update(batch.get(), &step, &report, &error)) throw std::runtime_error(error.message);
  return report;
}

}  // namespace mxadamax::engine
