// SPDX-License-Identifier: Apache-2.0
// An array as DLPack shows it: the one view of an NDArray that MXNet gives without waiting.
#pragma once

#include <cstdint>
#include <memory>

#include "mxnet.h"

namespace mxadamax::engine {

// The beginning of DLPack's DLManagedTensor.
struct DLTensor {
  void* data;
  std::int32_t device_type, device_id, ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  const std::int64_t* shape;
};

// Fails for an array in a layout of oneDNN's. Of a row_sparse array, the shape and the data are
// those of the rows that it holds.
class DlpackView {
 public:
  explicit DlpackView(Handle array) : managed_(view(array), api().MXNDArrayCallDLPackDeleter) {}
  const DLTensor* operator->() const { return static_cast<const DLTensor*>(managed_.get()); }

 private:
  static void* view(Handle array) {
    void* managed = nullptr;
    check(api().MXNDArrayToDLPack(array, &managed));
    return managed;
  }
  std::unique_ptr<void, int (*)(void*)> managed_;
};

}  // namespace mxadamax::engine
