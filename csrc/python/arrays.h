// SPDX-License-Identifier: Apache-2.0
// MXNet's arrays as Python hands them over.
#pragma once

#include <pybind11/pybind11.h>
#include <structmember.h>

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

// An NDArray that is held, so that no other object takes its place in memory.
class HeldArray {
 public:
  explicit HeldArray(py::handle array)
      : array_(py::reinterpret_borrow<py::object>(array)),
        owner_(array.attr("handle")),
        owner_slot_(slot_of_handle(array)),
        handle_(handle_of(array)) {}

  const PyObject* array() const { return array_.ptr(); }
  // Whether an object is this NDArray, with the handle that it had.
  bool is(py::handle object) const {
    if (!array_.is(object)) return false;
    if (owner_slot_ != nullptr) return *owner_slot_ == owner_.ptr();
    return owner_.is(object.attr("handle"));
  }
  engine::Handle handle() const { return handle_; }

 private:
  // Where the object keeps its attribute `handle`; null unless that is a slot.
  static PyObject* const* slot_of_handle(py::handle array) {
    const auto found = py::reinterpret_steal<py::object>(
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(Py_TYPE(array.ptr())), "handle"));
    if (!found) throw py::error_already_set();
    if (Py_TYPE(found.ptr()) != &PyMemberDescr_Type) return nullptr;
    const auto* const member = reinterpret_cast<const PyMemberDescrObject*>(found.ptr());
    const char* const slot = reinterpret_cast<const char*>(array.ptr()) + member->d_member->offset;
    return reinterpret_cast<PyObject* const*>(slot);
  }

  py::object array_, owner_;
  PyObject* const* owner_slot_;
  engine::Handle handle_;
};

// The items of a list or tuple, borrowed.
class SequenceView {
 public:
  explicit SequenceView(const py::object& sequence)
      : fast_(PyTuple_Check(sequence.ptr()) ? sequence
                                            : py::reinterpret_steal<py::object>(PySequence_Fast(
                                                  sequence.ptr(), "expected a sequence"))) {
    if (!fast_) throw py::error_already_set();
  }
  // The list or tuple; of another sequence, a list of its items.
  const py::object& sequence() const { return fast_; }
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
