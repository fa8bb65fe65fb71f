// SPDX-License-Identifier: Apache-2.0
// Own memory of device and host, and copy between them.
#pragma once

#include <cstddef>
#include <cstring>
#include <utility>

#include "runtime.h"

namespace mxadamax::cuda {

// Makes a device current within a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "current device");
    check(cudaSetDevice(device), "choice of the device");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// Memory of the current device. Free it with the same device current, when nothing uses it.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(std::size_t bytes) {
    if (bytes > 0) check(cudaMalloc(&memory_, bytes), "memory of the device");
  }
  DeviceMemory(DeviceMemory&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~DeviceMemory() { cudaFree(memory_); }

  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
};

class Event {
 public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "event"); }
  // Makes the stream wait, not the caller. An event that was never recorded counts as done.
  void stream_wait(cudaStream_t stream) const {
    check(cudaStreamWaitEvent(stream, event_, 0), "order of streams");
  }
  void wait() const { check(cudaEventSynchronize(event_), "wait for an event"); }

 private:
  cudaEvent_t event_{};
};

// Pinned staging buffers, from which copies are asynchronous. Buffers are used in turn: the caller
// waits only if all copies are still pending.
class PinnedStaging {
 public:
  PinnedStaging() = default;
  PinnedStaging(const PinnedStaging&) = delete;
  PinnedStaging& operator=(const PinnedStaging&) = delete;
  ~PinnedStaging() {
    for (Buffer& buffer : buffers_) cudaFreeHost(buffer.memory);
  }

  void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    if (bytes == 0) return;
    if (bytes > bytes_) grow(bytes);
    Buffer& buffer = buffers_[next_++ % buffers];
    buffer.copied.wait();
    std::memcpy(buffer.memory, from, bytes);
    check(cudaMemcpyAsync(to, buffer.memory, bytes, cudaMemcpyHostToDevice, stream),
          "copy to the device");
    buffer.copied.record(stream);
  }

 private:
  // Grows all at once: allocation would stall a busy device later.
  void grow(std::size_t bytes) {
    bytes_ = 0;
    for (Buffer& buffer : buffers_) {
      buffer.copied.wait();
      check(cudaFreeHost(std::exchange(buffer.memory, nullptr)), "page-locked memory");
      check(cudaMallocHost(&buffer.memory, bytes), "page-locked memory");
    }
    bytes_ = bytes;
  }

  static constexpr std::size_t buffers = 8;
  struct Buffer {
    void* memory = nullptr;
    Event copied;
  };
  Buffer buffers_[buffers];
  std::size_t bytes_ = 0;
  std::size_t next_ = 0;
};

}  // namespace mxadamax::cuda
