// SPDX-License-Identifier: Apache-2.0
// What the modules make of Python's objects, and of C++'s exceptions.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/device_backend.h"
#include "cpu/instruction_set.h"
#include "engine/fused_update.h"

namespace mxadamax {

namespace py = pybind11;

// Raises ParameterError as this exception of Python's, with (position of the parameter, message,
// position of another parameter).
inline void translate_parameter_errors(const py::object& exception) {
  static py::handle raised;
  raised = exception.inc_ref();
  // NOLINTNEXTLINE(performance-unnecessary-value-param): pybind11 wants just this type.
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const engine::ParameterError& error) {
      const py::tuple args = py::make_tuple(error.position, error.what(), error.other);
      PyErr_SetObject(raised.ptr(), args.ptr());
    }
  });
}

inline const cpu::RuleKernels& rule_named(const std::string& name, const cpu::InstructionSet& set) {
  for (int k = 0; k < set.table.count; ++k) {
    if (set.table.rules[k].rule == name) return set.table.rules[k];
  }
  throw std::invalid_argument("there is no rule '" + name + "'");
}

inline DType state_dtype_named(const std::string& name) {
  const std::optional<DType> found = dtype_named(name);
  if (found && (is_converted(*found) || found == DType::int8)) return *found;
  throw std::invalid_argument("type '" + name + "' must be float16, bfloat16 or int8");
}

// The functions of a module with kernels for devices.
inline const DeviceBackend& functions_of(const py::object& kernels) {
  const py::object capsule = kernels.attr("functions");
  const void* const found = PyCapsule_GetPointer(capsule.ptr(), device_backend_name);
  if (found != nullptr) return *static_cast<const DeviceBackend*>(found);
  PyErr_SetString(PyExc_ImportError,
                  "the module of kernels for GPUs is of another build than the rest");
  throw py::error_already_set();
}

// The bits of an integer, as a row of scalars has them.
inline double slot_of(std::uint64_t integer) {
  double slot;
  std::memcpy(&slot, &integer, sizeof slot);
  return slot;
}

// One row of scalars for each tensor, from a number for all or a sequence with one for each.
template <class Convert>
std::vector<double> table_of(const cpu::RuleKernels& rule, std::size_t tensors,
                             const py::dict& given, Convert&& convert) {
  const auto columns = static_cast<std::size_t>(rule.scalars);
  std::vector<double> table(tensors * columns);
  const std::size_t required = columns - epilogue_scalar_count;
  std::size_t known = 0;
  for (std::size_t k = 0; k < columns; ++k) {
    const std::string name = rule.scalar_names[k];
    if (!given.contains(name.c_str())) {
      if (k >= required) continue;
      throw std::invalid_argument("rule '" + std::string(rule.rule) + "' needs the scalar '" +
                                  name + "'");
    }
    ++known;
    const auto column = given[name.c_str()].cast<py::object>();
    const bool is_list = py::isinstance<py::list>(column);
    if (is_list && py::len(column) != tensors) {
      throw std::invalid_argument("scalar '" + name + "' has " + std::to_string(py::len(column)) +
                                  " values for " + std::to_string(tensors) + " tensors");
    }
    if (is_integer_scalar(name)) {
      for (std::size_t i = 0; i < tensors; ++i) {
        const py::object value = is_list ? py::object(column[py::int_(i)]) : column;
        table[i * columns + k] = slot_of(value.cast<std::uint64_t>());
      }
    } else if (is_list) {
      const auto list = column.cast<py::list>();
      double last = 0;
      double converted = convert(name, 0, last);
      for (std::size_t i = 0; i < tensors; ++i) {
        const double value = py::cast<double>(list[i]);
        if (!(value == last)) {
          converted = convert(name, i, value);
          last = value;
        }
        table[i * columns + k] = converted;
      }
    } else {
      const double converted = convert(name, 0, column.cast<double>());
      for (std::size_t i = 0; i < tensors; ++i) table[i * columns + k] = converted;
    }
  }
  if (known != given.size()) {
    throw std::invalid_argument("rule '" + std::string(rule.rule) + "' takes " +
                                std::to_string(columns) +
                                " scalars, got one that it does not "
                                "have");
  }
  return table;
}

}  // namespace mxadamax
