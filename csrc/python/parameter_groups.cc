// SPDX-License-Identifier: Apache-2.0
#include "parameter_groups.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include "arrays.h"

namespace mxadamax {

std::vector<double> ParameterGroups::lr_mults() const {
  std::vector<double> found;
  found.reserve(groups_.size());
  for (const Group& group : groups_) found.push_back(group.lr_mult);
  return found;
}

std::vector<double> ParameterGroups::wd_mults() const {
  std::vector<double> found;
  found.reserve(groups_.size());
  for (const Group& group : groups_) found.push_back(group.wd_mult);
  return found;
}

bool ParameterGroups::add(double lr_mult, double wd_mult) {
  constexpr std::size_t most = 32;
  std::size_t k = 0;
  while (k < groups_.size() && !(groups_[k].lr_mult == lr_mult && groups_[k].wd_mult == wd_mult)) {
    ++k;
  }
  if (k == most) return false;
  if (k == groups_.size()) groups_.push_back({group_of_.size(), lr_mult, wd_mult});
  group_of_.push_back(static_cast<std::uint8_t>(k));
  return true;
}

const std::vector<std::uint8_t>& ParameterGroups::group_of_each(std::size_t parameters) const {
  if (parameters != group_of_.size()) {
    throw std::invalid_argument("got groups of " + std::to_string(group_of_.size()) +
                                " parameters for " + std::to_string(parameters));
  }
  return group_of_;
}

namespace {

// The attribute of a parameter, if it is a finite float.
std::optional<double> multiplier_of(PyObject* parameter, PyObject* name) {
  const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(parameter, name));
  if (!value) throw py::error_already_set();
  if (!PyFloat_CheckExact(value.ptr())) return std::nullopt;
  const double found = PyFloat_AS_DOUBLE(value.ptr());
  // 0 and -0 compare equal, and give other bits.
  if (!std::isfinite(found) || (found == 0 && std::signbit(found))) return std::nullopt;
  return found;
}

// The groups of the parameters with these keys; none where one of them has no entry, or multipliers
// that are not plain numbers.
std::unique_ptr<ParameterGroups> groups_of(const py::object& keys, const py::dict& parameters) {
  static PyObject* const lr_name = PyUnicode_InternFromString("lr_mult");
  static PyObject* const wd_name = PyUnicode_InternFromString("wd_mult");
  const SequenceView view(keys);
  auto groups = std::make_unique<ParameterGroups>();
  for (std::size_t i = 0; i < view.size(); ++i) {
    PyObject* const parameter = PyDict_GetItemWithError(parameters.ptr(), view[i].ptr());
    if (parameter == nullptr) {
      if (PyErr_Occurred() != nullptr) throw py::error_already_set();
      return nullptr;
    }
    const std::optional<double> lr = multiplier_of(parameter, lr_name);
    const std::optional<double> wd = multiplier_of(parameter, wd_name);
    if (!lr || !wd || !groups->add(*lr, *wd)) return nullptr;
  }
  return groups;
}

// The count of a parameter, or a default; -1 where it is no integer of 0 or more.
long count_of(const py::dict& counts, py::handle key, long otherwise) {
  PyObject* const found = PyDict_GetItemWithError(counts.ptr(), key.ptr());
  if (found == nullptr) {
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    return otherwise;
  }
  if (!PyLong_CheckExact(found)) return -1;
  const long count = PyLong_AsLong(found);
  if (count == -1) PyErr_Clear();
  return count;
}

// Counts one more update of each parameter, if all have had as many; else none is counted.
std::optional<long> count_together(const py::dict& counts, const py::object& keys, long begin) {
  const SequenceView view(keys);
  long before = begin;
  for (std::size_t i = 0; i < view.size(); ++i) {
    const long count = count_of(counts, view[i], begin);
    if (i == 0) before = count;
    if (count != before || count < 0) return std::nullopt;
  }
  const py::int_ after(before + 1);
  for (std::size_t i = 0; i < view.size(); ++i) {
    if (PyDict_SetItem(counts.ptr(), view[i].ptr(), after.ptr()) != 0)
      throw py::error_already_set();
  }
  return before + 1;
}

}  // namespace

void add_parameter_groups(py::module_& m) {
  py::class_<ParameterGroups>(m, "ParameterGroups",
                              "Parameters that are grouped by their multipliers.")
      .def_property_readonly("lr_mults", &ParameterGroups::lr_mults, "The lr_mult of each group.")
      .def_property_readonly("wd_mults", &ParameterGroups::wd_mults, "The wd_mult of each group.");
  m.def("parameter_groups", &groups_of, py::arg("keys"), py::arg("parameters"),
        "Group the parameters with these keys by lr_mult and wd_mult; None if one has no entry, or "
        "multipliers that are not finite floats, or if there are many groups.");
  m.def("count_together", &count_together, py::arg("counts"), py::arg("keys"), py::arg("begin"),
        "Count one more update for each key, and return how many that are now; None, and nothing "
        "counted, if they differ. Keys without an entry begin at `begin`.");
}

}  // namespace mxadamax
