// SPDX-License-Identifier: Apache-2.0
// The kernels of a device as C functions. What calls them is compiled apart from them, in another
// module, and gets this table in a capsule of Python's: so neither needs the other to be built, and
// no exception passes from one to the other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "sparse_rows.h"
#include "step_options.h"

namespace mxadamax {

// The name of the capsule. It changes with everything below.
constexpr const char* device_backend_name = "mxadamax.DeviceBackend.5";

// The memory of one parameter. With `copy`, that is the weight, rounded, and `weight` its float32
// master; states are like the latter, unless they are kept in low precision.
struct DeviceTensor {
  // Of the gradient and of the weight.
  DType type;
  // Whether states are rounded at random, and to what: float16, bfloat16 or int8.
  bool low_precision_state;
  DType state_type;
  std::int64_t size;
  // Of a tensor without elements none is read.
  const void* grad;
  void* weight;
  std::array<void*, max_states> states;
  // Null for none.
  void* copy;
  // Null for none. Of the type that is computed in.
  void* average;
  // Of states in 8 bits.
  float* scales;
  // Of the gradient.
  SparseRows rows;
};

// One update of a batch. Besides the options, where the numbers and the work of it are, which only
// a call from module to module has to say.
struct DeviceStep {
  // A row for each tensor, a double for each scalar of the rule; of an integer, its bits.
  const double* scalars;
  std::int64_t scalar_count;
  StepOptions options;
  // Of the device: a cudaStream_t.
  void* stream;
};

// What a step with an option has found.
struct DeviceReport {
  double norm;
  bool skipped;
};

// Where a function could not do what it should: why, as a text that ends.
struct DeviceError {
  char message[512];
};

struct DeviceBackend {
  // Prepares tensors that are updated together, step after step. Null with an error.
  void* (*make)(const char* rule, const DeviceTensor* tensors, std::int64_t count, int device,
                DeviceError* error);
  // Updates them once, after what is on the stream, and waits for it. False with an error.
  bool (*update)(void* batch, const DeviceStep* step, DeviceReport* report, DeviceError* error);
  void (*free)(void* batch);
};

}  // namespace mxadamax
