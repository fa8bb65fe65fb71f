// SPDX-License-Identifier: Apache-2.0
#include "trainer_arrays.h"

#include <pybind11/stl.h>

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "arrays.h"
#include "engine/mxnet.h"

namespace mxadamax {
namespace {

using engine::Handle;

// An attribute; a null object where there is none.
py::object attribute(py::handle object, PyObject* name) {
  auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), name));
  if (!found) PyErr_Clear();
  return found;
}

// The list in which a parameter keeps an array for each device; null where there is none so long.
PyObject* list_of(const py::object& found, std::size_t devices) {
  PyObject* const list = found.ptr();
  const bool fits = list != nullptr && PyList_CheckExact(list) &&
                    PyList_GET_SIZE(list) == static_cast<Py_ssize_t>(devices);
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

// Of each device.
using States = std::vector<std::pair<py::dict, py::dict>>;

// The entries of a dict, held.
class KnownDict {
 public:
  explicit KnownDict(const py::dict& dict) {
    for (const auto& [key, value] : dict) {
      entries_.emplace_back(py::reinterpret_borrow<py::object>(key),
                            py::reinterpret_borrow<py::object>(value));
    }
  }

  // Whether a dict has the same objects, in the same order.
  bool is(PyObject* dict) const {
    Py_ssize_t place = 0;
    PyObject *key, *value;
    for (const auto& [known_key, known_value] : entries_) {
      if (PyDict_Next(dict, &place, &key, &value) == 0 || known_key.ptr() != key ||
          known_value.ptr() != value) {
        return false;
      }
    }
    return PyDict_Next(dict, &place, &key, &value) == 0;
  }

 private:
  std::vector<std::pair<py::object, py::object>> entries_;
};

// What Gluon's Trainer and the updater of each device read of the parameters in a step.
class TrainerArrays {
 public:
  // `states` has an updater's `states` and `states_synced` for each device; `trained` the positions
  // of the parameters that are updated.
  TrainerArrays(const py::list& parameters, const States& states,
                const std::vector<std::size_t>& trained)
      : parameters_(parameters.size()) {
    for (const auto& [of_device, synced] : states) {
      states_.emplace_back(KnownDict(of_device), KnownDict(synced));
    }
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      parameters_[i].address = py::object(parameters[i]).ptr();
      parameters_[i].grad_req = attribute(parameters[i], names().grad_req);
    }
    for (const std::size_t i : trained) {
      parameters_.at(i).trained = true;
      const auto data = attribute(parameters[i], names().data).cast<py::list>();
      const auto grad = attribute(parameters[i], names().grad).cast<py::list>();
      for (std::size_t k = 0; k < states.size(); ++k) {
        arrays_.push_back({KnownArray(data[k]), KnownArray(grad[k])});
      }
    }
  }

  // Takes the gradients of a step with the same arrays and states: they are stale from then on.
  // False, with nothing done, where one of them is stale already; nothing where anything is not the
  // same.
  std::optional<bool> take(const py::list& parameters, const States& states) const {
    bool fresh = true;
    if (!are_same(states) || !are_same(parameters, fresh)) return std::nullopt;
    if (!fresh) return false;
    for (const OnDevice& arrays : arrays_) {
      engine::check(engine::api().MXNDArraySetGradState(arrays.data.handle(), 0));
    }
    return true;
  }

 private:
  // A parameter's array on a device. With its memory it keeps its shape.
  class KnownArray {
   public:
    explicit KnownArray(const py::object& array)
        : held_(array), memory_(engine::memory_of(held_.handle())) {}
    bool is(PyObject* object) const {
      return held_.is(object) && engine::memory_of(handle()) == memory_;
    }
    Handle handle() const { return held_.handle(); }
    void prefetch() const {
      __builtin_prefetch(held_.array());
      __builtin_prefetch(handle());
      // The rest of what MXNet keeps there: its variable of autograd.
      __builtin_prefetch(static_cast<const char*>(handle()) + 64);
    }

   private:
    HeldArray held_;
    const void* memory_;
  };
  struct OnDevice {
    KnownArray data, grad;
  };
  struct Parameter {
    // Not held: it can refer to the Trainer, and be looked at only where that has it.
    const void* address;
    py::object grad_req;
    bool trained = false;
  };

  bool are_same(const States& states) const {
    if (states.size() != states_.size()) return false;
    for (std::size_t k = 0; k < states.size(); ++k) {
      if (!states_[k].first.is(states[k].first.ptr()) ||
          !states_[k].second.is(states[k].second.ptr())) {
        return false;
      }
    }
    return true;
  }

  // Clears `fresh` where a gradient is stale.
  bool are_same(const py::list& parameters, bool& fresh) const {
    if (parameters.size() != parameters_.size()) return false;
    const std::size_t devices = states_.size();
    std::size_t next = 0;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const Parameter& known = parameters_[i];
      prefetch(i + ahead, next + ahead);
      PyObject* const parameter = PyList_GET_ITEM(parameters.ptr(), static_cast<Py_ssize_t>(i));
      if (!attribute(parameter, names().grad_req).is(known.grad_req)) return false;
      if (!known.trained) continue;
      const py::object data_owner = attribute(parameter, names().data);
      const py::object grad_owner = attribute(parameter, names().grad);
      PyObject* const data = list_of(data_owner, devices);
      PyObject* const grad = list_of(grad_owner, devices);
      if (data == nullptr || grad == nullptr) return false;
      for (std::size_t k = 0; k < devices; ++k, ++next) {
        const OnDevice& arrays = arrays_[next];
        const auto item = static_cast<Py_ssize_t>(k);
        if (!arrays.data.is(PyList_GET_ITEM(data, item)) ||
            !arrays.grad.is(PyList_GET_ITEM(grad, item))) {
          return false;
        }
        int is_fresh = 0;
        engine::check(engine::api().MXNDArrayGetGradState(arrays.data.handle(), &is_fresh));
        fresh = fresh && is_fresh != 0;
      }
    }
    return true;
  }

  // How many parameters later to fetch from memory meanwhile: most of the time goes there.
  static constexpr std::size_t ahead = 8;
  void prefetch(std::size_t parameter, std::size_t array) const {
    if (parameter < parameters_.size()) __builtin_prefetch(parameters_[parameter].address);
    if (array < arrays_.size()) {
      arrays_[array].data.prefetch();
      arrays_[array].grad.prefetch();
    }
  }

  std::vector<std::pair<KnownDict, KnownDict>> states_;
  std::vector<Parameter> parameters_;
  // Of each trained parameter on each device.
  std::vector<OnDevice> arrays_;
};

}  // namespace

void add_trainer_arrays(py::module_& m) {
  py::class_<TrainerArrays>(m, "TrainerArrays",
                            "The arrays, gradients and states of a Trainer's step.")
      .def(py::init<const py::list&, const States&, const std::vector<std::size_t>&>(),
           py::arg("parameters"), py::arg("states"), py::arg("trained"),
           "Remember what a step used. `states` has a pair for each device, of an updater's "
           "`states` "
           "and `states_synced`; `trained` the positions of the parameters that were updated.")
      .def(
          "take", &TrainerArrays::take, py::arg("parameters"), py::arg("states"),
          "Mark all gradients as used, and return True, if a step uses the same arrays and states; "
          "False, and nothing marked, if a gradient is stale; None if anything is not the same.");
}

}  // namespace mxadamax
