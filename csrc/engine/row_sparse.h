// SPDX-License-Identifier: Apache-2.0
// What lies in a row_sparse array of MXNet's, without the copies and the waits of its C API.
#pragma once

#include <cstdint>
#include <vector>

#include "mxnet.h"

namespace mxadamax::engine {

// The rows that a row_sparse array holds: `count` of them, one after another in `data`, and the
// number of each.
struct Rows {
  std::int64_t count;
  const std::int64_t* indices;
  const void* data;
};

// Only where the engine has granted access to the array: inside an operation that reads it, or
// after a wait.
Rows rows_of(Handle array);

// A row_sparse array that nothing writes, and the numbers of its rows.
struct KnownRows {
  Handle array;
  std::vector<std::int64_t> indices;
};

// Finds out where this MXNet keeps row indices: in the place where those of all these arrays are,
// which must differ. False where there is none; rows_of() then throws.
bool find_row_indices(const std::vector<KnownRows>& known);
bool row_indices_found();

}  // namespace mxadamax::engine
