// SPDX-License-Identifier: Apache-2.0
#include "trainer_arrays.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "arrays.h"
#include "engine/mxnet.h"

namespace mxadamax {
namespace {

using engine::Handle;

py::object attribute(py::handle object, PyObject* name) {
  auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), name));
  if (!found) throw py::error_already_set();
  return found;
}

// The list in which a parameter keeps an array for each device; null where there is none so long.
PyObject* list_of(const py::object& found, std::size_t devices) {
  PyObject* const list = found.ptr();
  const bool fits =
      PyList_CheckExact(list) && PyList_GET_SIZE(list) == static_cast<Py_ssize_t>(devices);
  return fits ? list : nullptr;
}

struct Names {
  PyObject* grad_req = PyUnicode_InternFromString("_grad_req");
  PyObject* data = PyUnicode_InternFromString("_data");
  PyObject* grad = PyUnicode_InternFromString("_grad");
};

const Names& names() {
  static const Names found;
  return found;
}

// What Gluon's Trainer and the updater of each device read of the parameters in a step.
class TrainerArrays {
 public:
  // `states` has an updater's `states` and `states_synced` for each device; `trained` the positions
  // of the parameters that are updated.
  TrainerArrays(const py::list& parameters, const py::list& states,
                const std::vector<std::size_t>& trained)
      : devices_(states.size()), parameters_(parameters.size()) {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      parameters_[i].address = py::object(parameters[i]).ptr();
      parameters_[i].grad_req = attribute(parameters[i], names().grad_req);
    }
    for (const std::size_t i : trained) {
      parameters_.at(i).trained = true;
      const auto data = attribute(parameters[i], names().data).cast<py::list>();
      const auto grad = attribute(parameters[i], names().grad).cast<py::list>();
      const py::int_ index(i);
      for (std::size_t k = 0; k < devices_; ++k) {
        const py::dict table = states[k].cast<py::tuple>()[0];
        arrays_.push_back({array_of(data[k]), array_of(grad[k]), index, table[index]});
      }
    }
  }

  // Takes the gradients of a step with the same arrays and states: they are stale from then on.
  // False, with nothing done, where one of them is stale already; nothing where anything is not the
  // same.
  std::optional<bool> take(const py::list& parameters, const py::list& states) const {
    bool fresh = true;
    if (!are_same(parameters, states, fresh)) return std::nullopt;
    if (!fresh) return false;
    for (const OnDevice& arrays : arrays_) {
      engine::check(engine::api().MXNDArraySetGradState(arrays.data.held.handle(), 0));
    }
    return true;
  }

 private:
  // A parameter's array, which can get other memory or another shape.
  struct KnownArray {
    HeldArray held;
    const void* memory;
    // In `dims_`.
    std::uint32_t first_dim;
    std::int32_t ndim;
  };
  struct OnDevice {
    KnownArray data, grad;
    py::object index, state;
  };
  struct Parameter {
    // Not held: it can refer to the Trainer, and be looked at only where that has it.
    const void* address;
    py::object grad_req;
    bool trained = false;
  };

  KnownArray array_of(py::handle array) {
    const HeldArray held(array);
    const engine::Shape shape(held.handle());
    const auto first = static_cast<std::uint32_t>(dims_.size());
    dims_.insert(dims_.end(), shape.dims, shape.dims + shape.ndim);
    return {held, engine::memory_of(held.handle()), first, shape.ndim};
  }

  bool is_same(const KnownArray& known, PyObject* object) const {
    if (!known.held.is(object) || engine::memory_of(known.held.handle()) != known.memory) {
      return false;
    }
    int ndim = 0;
    const std::int64_t* dims = nullptr;
    engine::check(engine::api().MXNDArrayGetShape64(known.held.handle(), &ndim, &dims));
    return ndim == known.ndim && std::equal(dims, dims + ndim, dims_.data() + known.first_dim);
  }

  // Clears `fresh` where a gradient is stale.
  bool are_same(const py::list& parameters, const py::list& states, bool& fresh) const {
    if (parameters.size() != parameters_.size() || states.size() != devices_) return false;
    auto arrays = arrays_.begin();
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const Parameter& known = parameters_[i];
      prefetch(i + 8, arrays);
      PyObject* const parameter = PyList_GET_ITEM(parameters.ptr(), static_cast<Py_ssize_t>(i));
      if (!attribute(parameter, names().grad_req).is(known.grad_req)) return false;
      if (!known.trained) continue;
      const py::object data_owner = attribute(parameter, names().data);
      const py::object grad_owner = attribute(parameter, names().grad);
      PyObject* const data = list_of(data_owner, devices_);
      PyObject* const grad = list_of(grad_owner, devices_);
      if (data == nullptr || grad == nullptr) return false;
      for (std::size_t k = 0; k < devices_; ++k, ++arrays) {
        const auto item = static_cast<Py_ssize_t>(k);
        if (!is_same(arrays->data, PyList_GET_ITEM(data, item)) ||
            !is_same(arrays->grad, PyList_GET_ITEM(grad, item)) ||
            !has_state(PyList_GET_ITEM(states.ptr(), item), arrays->index, arrays->state)) {
          return false;
        }
        int is_fresh = 0;
        engine::check(engine::api().MXNDArrayGetGradState(arrays->data.held.handle(), &is_fresh));
        fresh = fresh && is_fresh != 0;
      }
    }
    return true;
  }

  // Whether an updater has this state for a parameter, and would take it as it is.
  static bool has_state(PyObject* tables, const py::object& index, const py::object& state) {
    PyObject* const found = PyDict_GetItem(PyTuple_GET_ITEM(tables, 0), index.ptr());
    PyObject* const synced = PyDict_GetItem(PyTuple_GET_ITEM(tables, 1), index.ptr());
    return found == state.ptr() && synced == Py_True;
  }

  void prefetch(std::size_t i, std::vector<OnDevice>::const_iterator arrays) const {
    if (i < parameters_.size()) __builtin_prefetch(parameters_[i].address);
    if (arrays_.end() - arrays > 8) {
      for (const KnownArray* array : {&arrays[8].data, &arrays[8].grad}) {
        __builtin_prefetch(array->held.array());
        __builtin_prefetch(array->held.handle());
        __builtin_prefetch(static_cast<const char*>(array->held.handle()) + 64);
      }
    }
  }

  std::size_t devices_;
  std::vector<Parameter> parameters_;
  // Of each trained parameter on each device.
  std::vector<OnDevice> arrays_;
  std::vector<std::int64_t> dims_;
};

}  // namespace

void add_trainer_arrays(py::module_& m) {
  py::class_<TrainerArrays>(m, "TrainerArrays",
                            "The arrays, gradients and states of a Trainer's step.")
      .def(py::init<const py::list&, const py::list&, const std::vector<std::size_t>&>(),
           py::arg("parameters"), py::arg("states"), py::arg("trained"),
           "Remember what a step used. `states` has a pair for each device, of an updater's `states` "
           "and `states_synced`; `trained` the positions of the parameters that were updated.")
      .def("take", &TrainerArrays::take, py::arg("parameters"), py::arg("states"),
           "Mark all gradients as used, and return True, if a step uses the same arrays and states; "
           "False, and nothing marked, if a gradient is stale; None if anything is not the same.");
}

}  // namespace mxadamax
