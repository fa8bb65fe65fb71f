// SPDX-License-Identifier: Apache-2.0
// The value that an MXNet operator computes with when Python gives it a number. To equal MXNet's
// operators to the last bit, our scalars are written and read in the same way.
#pragma once

#include <Python.h>

#include <cmath>
#include <memory>
#include <new>

#include "common/scalar_text.h"

namespace mxadamax::engine {

// Needs the GIL.
template <class T>
T as_mxnet_reads(double value) {
  if (!std::isfinite(value)) return static_cast<T>(value);
  const std::unique_ptr<char, void (*)(void*)> text(
      PyOS_double_to_string(value, 'r', 0, Py_DTSF_ADD_DOT_0, nullptr), PyMem_Free);
  if (text == nullptr) throw std::bad_alloc();
  return read_as_mxnet_does<T>(text.get());
}

}  // namespace mxadamax::engine
