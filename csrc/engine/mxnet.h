// SPDX-License-Identifier: Apache-2.0
// The part of MXNet's C API that is used here, an owner for its arrays, and what it tells of them.
//
// Nothing is linked against libmxnet: the addresses come from the library that Python has loaded,
// so that one build serves every MXNet.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/dtype.h"

namespace mxadamax::engine {

using Handle = void*;

struct Api {
  const char* (*MXGetLastError)() = nullptr;
  int (*MXShallowCopyNDArray)(Handle, Handle*) = nullptr;
  int (*MXNDArrayFree)(Handle) = nullptr;
  int (*MXNDArrayGetShape64)(Handle, int*, const std::int64_t**) = nullptr;
  int (*MXNDArrayGetDType)(Handle, int*) = nullptr;
  int (*MXNDArrayGetContext)(Handle, int*, int*) = nullptr;
  int (*MXNDArrayGetStorageType)(Handle, int*) = nullptr;
  int (*MXNDArrayGetAuxType)(Handle, std::uint32_t, int*) = nullptr;
  int (*MXNDArraySlice)(Handle, std::uint32_t, std::uint32_t, Handle*) = nullptr;
  int (*MXNDArrayGetData)(Handle, void**) = nullptr;
  int (*MXNDArrayToDLPack)(Handle, void**) = nullptr;
  int (*MXNDArrayCallDLPackDeleter)(void*) = nullptr;
  int (*MXNDArrayGetGradState)(Handle, int*) = nullptr;
  int (*MXNDArraySetGradState)(Handle, int) = nullptr;
  int (*MXAutogradSetIsRecording)(int, int*) = nullptr;
  int (*NNGetOpHandle)(const char*, void**) = nullptr;
  // The last argument exists from MXNet 2 on; C's calling convention lets 1 ignore it.
  int (*MXImperativeInvoke)(void*, int, Handle*, int*, Handle**, int, const char**, const char**,
                            const int**) = nullptr;
  int (*MXEngineSetBulkSize)(int, int*) = nullptr;
  int (*MXEnginePushSyncND)(void (*)(void*, void*), void*, void (*)(void*), const void*, Handle*,
                            int, Handle*, int, const void*, int, const char*) = nullptr;
};

// Valid after bind().
const Api& api();

// The names of the functions above, and how to hand their addresses over.
std::vector<std::string> api_names();
void bind(const std::function<std::uintptr_t(const std::string&)>& address_of);

// Throws std::runtime_error with MXNet's own message where `status` says that a call failed.
void check(int status);

// Owns one NDArray handle.
class Array {
 public:
  Array() = default;
  explicit Array(Handle owned) : handle_(owned) {}
  Array(Array&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Array& operator=(Array&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Array() {
    if (handle_ != nullptr) api().MXNDArrayFree(handle_);
  }

  // A handle of our own for the same array: it stays valid however soon Python lets go of the
  // other.
  static Array share(Handle borrowed) {
    Handle copy = nullptr;
    check(api().MXShallowCopyNDArray(borrowed, &copy));
    return Array(copy);
  }

  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

// MXNet's numbers.
constexpr int cpu_device = 1;
constexpr int gpu_device = 2;
constexpr int default_storage = 0;
constexpr int row_sparse_storage = 1;
constexpr int csr_storage = 2;

// The number of an array's type, a type's number, and what a number is called.
int dtype_of(Handle array);
int dtype_number(DType type);
std::string dtype_name(int number);
// The type of this number; nothing where it is none of ours.
std::optional<DType> dtype_numbered(int number);

// Where an array is: the number of a kind of device and of the device. All kinds of host memory are
// one.
struct Context {
  int device_type;
  int device_id;
};
Context context_of(Handle array);
bool is_gpu(const Context& context);

struct Shape {
  static constexpr int most_dims = 32;
  int ndim = 0;
  std::int64_t dims[most_dims];

  explicit Shape(Handle array);
  Shape(std::int64_t rows, std::int64_t columns);
  bool operator==(const Shape& other) const;
  bool is_of(Handle array) const;
  std::int64_t size() const;
  std::string text() const;
};

// Whatever identifies the memory behind an array, and with it the variable that the engine orders
// its operations by: equal for an array and its views. Null for an array without memory.
//
// MXNet's C API does not tell. An NDArray begins with the pointer to that shared memory, in every
// release that has this C API; bind()'s caller verifies it with real arrays before anything relies
// on it.
inline const void* memory_of(Handle array) { return *static_cast<void* const*>(array); }

}  // namespace mxadamax::engine
