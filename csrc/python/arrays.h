// SPDX-License-Identifier: Apache-2.0
// MXNet's arrays as Python hands them over.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>

#include "engine/fused_update.h"
#include "engine/mxnet.h"

namespace mxadamax {

namespace py = pybind11;

inline std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

// The handle of an MXNet NDArray, or null where `object` is none. Called for every array of every
// step, hence no lookup by text and no exception.
inline engine::Handle handle_of(py::handle object) {
  static PyObject* const handle_name = PyUnicode_InternFromString("handle");
  static PyObject* const value_name = PyUnicode_InternFromString("value");
  const auto handle =
      py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), handle_name));
  if (handle) {
    const auto value =
        py::reinterpret_steal<py::object>(PyObject_GetAttr(handle.ptr(), value_name));
    if (value && PyLong_Check(value.ptr())) return PyLong_AsVoidPtr(value.ptr());
  }
  PyErr_Clear();
  return nullptr;
}

inline engine::Handle array_of(py::handle object, std::size_t position, const char* what) {
  const engine::Handle handle = handle_of(object);
  if (handle == nullptr) {
    throw engine::ParameterError(
        position, std::string(what) + " is " + type_name(object) + ", expected an NDArray");
  }
  return handle;
}

// The items of a list or tuple, borrowed.
class SequenceView {
 public:
  explicit SequenceView(const py::object& sequence)
      : fast_(py::reinterpret_steal<py::object>(
            PySequence_Fast(sequence.ptr(), "expected a sequence"))) {
    if (!fast_) throw py::error_already_set();
  }
  std::size_t size() const {
    return static_cast<std::size_t>(PySequence_Fast_GET_SIZE(fast_.ptr()));
  }
  py::handle operator[](std::size_t i) const {
    return PySequence_Fast_GET_ITEM(fast_.ptr(), static_cast<Py_ssize_t>(i));
  }

 private:
  py::object fast_;
};

}  // namespace mxadamax
