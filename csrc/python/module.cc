// SPDX-License-Identifier: Apache-2.0
// The Python surface of the native code.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <optional>

#include "arrays.h"
#include "bandwidth_baseline.h"
#include "convert.h"
#include "cpu/instruction_set.h"
#include "cpu/update.h"
#include "engine/device_batch_cache.h"
#include "engine/engine_op.h"
#include "engine/fused_update.h"
#include "engine/mxnet.h"
#include "engine/row_sparse.h"
#include "engine/scalar.h"
#include "engine/update_op.h"
#include "parameter_groups.h"
#include "testing_hooks.h"
#include "trainer_arrays.h"

namespace mxadamax {
namespace {

using engine::Handle;
using engine::ParameterError;

// Adds the arrays of one state: None, one array, or a tuple or list of them, or of None and them.
void states_of(py::handle state, std::size_t position, int count, bool none_first,
               std::vector<Handle>& handles) {
  const std::size_t before = handles.size();
  const auto refuse = [&](const std::string& found) {
    const std::string expected = none_first   ? "a tuple of None and one NDArray"
                                 : count == 0 ? "None"
                                 : count == 1 ? "one NDArray"
                                              : "a tuple of " + std::to_string(count) + " NDArrays";
    throw ParameterError(
        position, "state is " + found + ", expected " + expected + ", as create_state makes it");
  };
  if (py::isinstance<py::tuple>(state) || py::isinstance<py::list>(state)) {
    const SequenceView items(py::reinterpret_borrow<py::object>(state));
    const std::size_t first = none_first && items.size() > 0 && items[0].is_none() ? 1 : 0;
    for (std::size_t k = first; k < items.size(); ++k) {
      const Handle handle = handle_of(items[k]);
      if (handle == nullptr) refuse("a sequence that holds " + type_name(items[k]));
      handles.push_back(handle);
    }
    if (static_cast<int>(items.size() - first) != count || items.size() < 2) {
      refuse("a sequence of " + std::to_string(items.size()));
    }
    return;
  }
  if (none_first) refuse(state.is_none() ? "None" : "one NDArray");
  if (!state.is_none()) {
    const Handle handle = handle_of(state);
    if (handle == nullptr) refuse(type_name(state));
    handles.push_back(handle);
  }
  if (static_cast<int>(handles.size() - before) != count) {
    refuse(state.is_none() ? "None" : "one NDArray");
  }
}

// Adds the arrays of what a parameter keeps: the rule's state; with an average a tuple of that and
// the average; with a master weight a tuple of the master weight and all of that.
void collect_state(py::handle state, std::size_t position, const engine::FusedUpdate& batch,
                   std::vector<Handle>& handles) {
  const auto pair_of = [&](py::handle found, const char* what) {
    if (py::isinstance<py::tuple>(found) || py::isinstance<py::list>(found)) {
      const SequenceView items(py::reinterpret_borrow<py::object>(found));
      if (items.size() == 2) return std::make_pair(items[0], items[1]);
    }
    throw ParameterError(position, std::string("state is not a tuple of ") + what);
  };
  const auto add = [&](py::handle array, const char* what) {
    const Handle handle = handle_of(array);
    if (handle == nullptr) {
      throw ParameterError(position, std::string("state is not a tuple of ") + what);
    }
    handles.push_back(handle);
  };
  if (batch.has_master()) {
    const char* const what =
        "a master weight and a state, as create_state_multi_precision makes it with "
        "multi_precision=True";
    const auto [master, rest] = pair_of(state, what);
    add(master, what);
    state = rest;
  }
  if (!batch.format().average) {
    states_of(state, position, batch.arrays_of_rule(), batch.rule().none_first, handles);
    return;
  }
  const char* const what = "a state and an average, as create_state makes it with ema_decay";
  const auto [own, average] = pair_of(state, what);
  states_of(own, position, batch.arrays_of_rule(), batch.rule().none_first, handles);
  add(average, what);
}

// Whether nothing that was found in a state can change unnoticed: a list could hold other arrays
// the next time.
bool is_fixed(py::handle state) {
  if (!PyTuple_Check(state.ptr())) return !PyList_Check(state.ptr());
  if (!PyTuple_CheckExact(state.ptr())) return false;
  const auto items = py::reinterpret_borrow<py::tuple>(state);
  return std::all_of(items.begin(), items.end(), is_fixed);
}

// What steps leave behind for those that follow: what was found out about states, by position, what
// was prepared on devices, and the whole update, if the arrays of two steps in a row were the same.
//
// Arrays and states count as the same if they are the same objects of Python's, which are held, so
// that no other object takes their place in memory.
class StateCache {
 public:
  // Where position i is kept, for the batch at hand to look up and to fill.
  void fit(std::size_t size) { entries_.resize(size); }
  const std::shared_ptr<const engine::State>* find(std::size_t i, py::handle state) const {
    return entries_[i].state != nullptr && entries_[i].object.is(state) ? &entries_[i].state
                                                                        : nullptr;
  }
  void keep(std::size_t i, py::handle state, std::shared_ptr<const engine::State> found) {
    if (!is_fixed(state)) return;
    entries_[i] = {py::reinterpret_borrow<py::object>(state), std::move(found)};
  }
  const std::shared_ptr<engine::DeviceBatchCache>& device_batch_cache() const {
    return device_batch_cache_;
  }

  // The last step's update, if it is like this one, which has no arrays yet, and of these arrays.
  // Where the cache is of weights that are `known` to be the same, they are not looked at.
  const engine::FusedUpdate* find_update(const engine::FusedUpdate& wanted,
                                         const SequenceView& weights, const SequenceView& grads,
                                         const SequenceView& states, bool known) const {
    if (!update_ || held_.size() != weights.size() || !update_->is_like(wanted)) return nullptr;
    if (known && grads_.is(grads.sequence()) && states_.is(states.sequence())) return &*update_;
    for (std::size_t i = 0; i < held_.size(); ++i) {
      const Held& held = held_[i];
      if (!held.weight.is(weights[i]) || !held.grad.is(grads[i]) ||
          !entries_[i].object.is(states[i]) ||
          !update_->still_holds(i, held.weight.handle(), held.grad.handle())) {
        return nullptr;
      }
    }
    return &*update_;
  }
  // Keeps an update: if its arrays are not known, from the second step with the same on, so that
  // others can let go of arrays after a step.
  void keep_update(const engine::FusedUpdate& update, const SequenceView& weights,
                   const SequenceView& grads, const SequenceView& states, bool known) {
    held_.clear();
    update_.reset();
    std::vector<std::pair<PyObject*, PyObject*>> given;
    given.reserve(weights.size());
    bool fixed = true;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      given.emplace_back(weights[i].ptr(), grads[i].ptr());
      fixed = fixed && entries_[i].state != nullptr;
    }
    if (fixed && (known || given == given_before_)) {
      for (std::size_t i = 0; i < weights.size(); ++i) {
        held_.push_back({HeldArray(weights[i]), HeldArray(grads[i])});
      }
      update_ = update;
      grads_ = grads.sequence();
      states_ = states.sequence();
    }
    given_before_ = std::move(given);
  }

 private:
  struct Entry {
    py::object object;
    std::shared_ptr<const engine::State> state;
  };
  struct Held {
    HeldArray weight, grad;
  };
  std::vector<Entry> entries_;
  std::shared_ptr<engine::DeviceBatchCache> device_batch_cache_ =
      std::make_shared<engine::DeviceBatchCache>();
  std::optional<engine::FusedUpdate> update_;
  py::object grads_, states_;
  std::vector<Held> held_;
  // Not held, only compared.
  std::vector<std::pair<PyObject*, PyObject*>> given_before_;
};

// What updates arrays in host memory, which only tests change; null for the processor's own.
const DeviceBackend* backend_for_host_memory = nullptr;

// What is called for the module with the kernels for devices. Never freed: at the end of the
// process Python is gone before this.
py::object& device_backend_loader() {
  static auto* const loader = new py::object(py::none());
  return *loader;
}

// The kernels that update what lies where this weight does; null for the processor's own.
const DeviceBackend* device_backend_for(Handle weight) {
  const engine::Context context = engine::context_of(weight);
  if (!engine::is_gpu(context)) return backend_for_host_memory;
  try {
    return &functions_of(device_backend_loader()());
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_ImportError)) throw;
    throw ParameterError(0, "weight is on gpu(" + std::to_string(context.device_id) + "), and " +
                                py::str(error.value()).cast<std::string>());
  }
}

engine::FusedUpdate make_update(const std::string& rule_name, const py::object& weight_list,
                                const py::object& grad_list, const py::object& state_list,
                                StateCache& cache, bool lazy, bool multi_precision, bool average,
                                const py::object& state_dtype, bool known) {
  const SequenceView weights(weight_list), grads(grad_list), states(state_list);
  const cpu::RuleKernels& rule = rule_named(rule_name, cpu::chosen_instruction_set());
  if (weights.size() != grads.size() || weights.size() != states.size()) {
    throw std::invalid_argument("got " + std::to_string(weights.size()) + " weights, " +
                                std::to_string(grads.size()) + " gradients and " +
                                std::to_string(states.size()) +
                                " states, expected the same number of each");
  }
  engine::StateFormat format{multi_precision, average};
  if (!state_dtype.is_none())
    format.state_dtype = state_dtype_named(state_dtype.cast<std::string>());
  engine::FusedUpdate batch(rule, lazy, format);
  if (weights.size() > 0) {
    const DeviceBackend* const kernels = device_backend_for(array_of(weights[0], 0, "weight"));
    if (kernels != nullptr) batch.use(*kernels, cache.device_batch_cache());
  }
  const engine::FusedUpdate* const same = cache.find_update(batch, weights, grads, states, known);
  if (same != nullptr) return *same;
  std::vector<Handle> handles;
  cache.fit(weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Handle weight = array_of(weights[i], i, "weight");
    batch.add(weight, array_of(grads[i], i, "gradient"));
    const std::shared_ptr<const engine::State>* found = cache.find(i, states[i]);
    if (found != nullptr && batch.reuse_state(*found)) continue;
    handles.clear();
    collect_state(states[i], i, batch, handles);
    cache.keep(i, states[i], batch.add_state(handles));
  }
  batch.complete();
  cache.keep_update(batch, weights, grads, states, known);
  return batch;
}

template <std::size_t count>
bool is_among(const char* const (&names)[count], const std::string& name) {
  return std::find(names, names + count, name) != names + count;
}

void push(engine::FusedUpdate& batch, const std::vector<py::dict>& tables,
          const py::object& clip_global_norm, bool skip_nonfinite,
          const std::shared_ptr<engine::StepStatus>& report, std::int64_t skipped_before,
          bool in_single_precision, const std::vector<std::string>& rounded,
          const std::vector<std::string>& exact, const ParameterGroups* groups) {
  if (tables.empty() || (!skip_nonfinite && tables.size() > 1)) {
    throw std::invalid_argument("got " + std::to_string(tables.size()) +
                                " tables of scalars, expected one, or with skip_nonfinite as many "
                                "as there may be");
  }
  if (!report && (skip_nonfinite || !clip_global_norm.is_none())) {
    throw std::invalid_argument("clip_global_norm and skip_nonfinite need a report, got None");
  }
  if (skipped_before < 0 || (report && skipped_before > report->skipped)) {
    throw std::invalid_argument("skipped_before must be what a report has counted, got " +
                                std::to_string(skipped_before));
  }
  const auto convert = [&](const std::string& name, std::size_t row, double value) -> double {
    // Never seen by an operator of MXNet's.
    if (is_among(epilogue_scalars, name)) return value;
    // MXNet takes bounds, which may be infinite, in single precision, whatever they bound.
    if (is_among(bound_scalars, name)) return engine::as_mxnet_reads<float>(value);
    if (!std::isfinite(value)) {
      throw ParameterError(groups == nullptr ? row : groups->first_of(row),
                           (name == "decay_factor" ? "1 - lr * wd" : name) + " is " +
                               py::repr(py::float_(value)).cast<std::string>() +
                               ", expected a finite number");
    }
    if (!in_single_precision) return engine::as_mxnet_reads<double>(value);
    if (std::find(exact.begin(), exact.end(), name) != exact.end()) return value;
    // What an operator takes in a list is read by the C++ library.
    const bool is_rounded = std::find(rounded.begin(), rounded.end(), name) != rounded.end();
    const float read =
        is_rounded ? static_cast<float>(value) : engine::as_mxnet_reads<float>(value);
    constexpr float largest = std::numeric_limits<float>::max();
    return std::clamp(read, -largest, largest);
  };
  engine::StepScalars step;
  step.tables.reserve(tables.size());
  const std::size_t count = groups == nullptr ? batch.size() : groups->size();
  for (const py::dict& scalars : tables) {
    step.tables.push_back(table_of(batch.rule(), count, scalars, convert));
  }
  if (groups != nullptr) step.row_of = groups->group_of_each(batch.size());
  StepOptions options;
  if (!clip_global_norm.is_none()) options.clip_global_norm = clip_global_norm.cast<double>();
  options.skip_nonfinite = skip_nonfinite;
  const py::gil_scoped_release release;
  batch.push(std::move(step), options, {report, skipped_before});
}

}  // namespace
}  // namespace mxadamax

PYBIND11_MODULE(_native, m) {
  using namespace mxadamax;
  m.doc() = "Native part of mxadamax: optimizer kernels, and their way into MXNet's engine.";

  translate_parameter_errors(py::exception<ParameterError>(m, "ParameterError", PyExc_ValueError));

  py::class_<cpu::RuleKernels>(m, "Rule", "What is known about a rule.")
      .def_readonly("states", &cpu::RuleKernels::states, "How many arrays of state it has.")
      .def_readonly("supports_low_precision_state", &cpu::RuleKernels::supports_low_precision_state,
                    "Whether its states can be kept in 16 bits, rounded at random.")
      .def_readonly("supports_int8_state", &cpu::RuleKernels::supports_int8_state,
                    "Whether they can be kept in 8 bits.")
      .def_readonly("none_first", &cpu::RuleKernels::none_first,
                    "Whether a parameter keeps a tuple of None and them.")
      .def_property_readonly(
          "begin_as_weight",
          [](const cpu::RuleKernels& rule) {
            std::vector<bool> found;
            found.reserve(static_cast<std::size_t>(rule.states));
            for (int k = 0; k < rule.states; ++k) {
              found.push_back(rule.kinds[k] == StateKind::earlier_weight);
            }
            return py::tuple(py::cast(found));
          },
          "Of each state, whether it begins as the weight, not as zero.")
      .def_property_readonly(
          "scalars",
          [](const cpu::RuleKernels& rule) {
            return std::vector<std::string>(rule.scalar_names, rule.scalar_names + rule.scalars);
          },
          "The names of its scalars.")
      .def_readonly("sums", &cpu::RuleKernels::sums,
                    "How many sums over a tensor it needs before it updates the tensor.");
  m.attr("bound_scalars") = py::tuple(
      py::cast(std::vector<std::string>(std::begin(bound_scalars), std::end(bound_scalars))));
  m.attr("block_size") = block_size;

  // Refuses a bad MXADAMAX_INSTRUCTION_SET at import.
  m.attr("instruction_set") = cpu::chosen_instruction_set().name;
  py::list names;
  for (const auto& set : cpu::instruction_sets()) names.append(set.name);
  m.attr("instruction_sets") = py::tuple(names);
  py::dict rules;
  for (int k = 0; k < cpu::chosen_instruction_set().table.count; ++k) {
    const cpu::RuleKernels& rule = cpu::chosen_instruction_set().table.rules[k];
    rules[rule.rule] = rule;
  }
  m.attr("rules") = rules;
  m.attr("mxnet_functions") = py::tuple(py::cast(engine::api_names()));

  m.def(
      "bind",
      [](const py::function& address_of) {
        engine::bind(
            [&](const std::string& name) { return address_of(name).cast<std::uintptr_t>(); });
      },
      py::arg("address_of"),
      "Take the addresses of MXNet's functions from address_of(name); once, before any "
      "FusedUpdate.");
  m.def(
      "share_memory",
      [](py::handle a, py::handle b) {
        return engine::memory_of(array_of(a, 0, "a")) == engine::memory_of(array_of(b, 0, "b"));
      },
      py::arg("a"), py::arg("b"), "Whether two NDArrays are views of the same memory.");
  m.def(
      "find_row_indices",
      [](const std::vector<std::pair<py::object, std::vector<std::int64_t>>>& arrays) {
        std::vector<engine::KnownRows> known;
        known.reserve(arrays.size());
        for (const auto& [array, indices] : arrays) {
          known.push_back({array_of(array, known.size(), "array"), indices});
        }
        return engine::find_row_indices(known);
      },
      py::arg("arrays"),
      "Find out where MXNet keeps row indices, from row_sparse arrays of different ones.");
  m.def(
      "push_failure",
      [](const std::vector<py::object>& arrays, const std::string& message) {
        std::vector<Handle> handles;
        for (const py::object& array : arrays) {
          if (const Handle handle = handle_of(array)) handles.push_back(handle);
        }
        const py::gil_scoped_release release;
        engine::push_failure(handles, message);
      },
      py::arg("arrays"), py::arg("message"),
      "Make the next wait on any of these NDArrays raise MXNetError with this message.");
  m.def(
      "register_device_backend", [](const py::object& loader) { device_backend_loader() = loader; },
      py::arg("loader"),
      "Register, once, what returns the module with the kernels for devices; it is called for the "
      "first array on one.");
  m.def("as_mxnet_reads", &engine::as_mxnet_reads<double>, py::arg("value"),
        "The double that an MXNet operator computes with when given this number.");
  m.def(
      "as_mxnet_reads_float32",
      [](double value) -> double { return engine::as_mxnet_reads<float>(value); }, py::arg("value"),
      "The same for operators that take a single-precision number.");
  m.def(
      "power_float32",
      [](float base, float exponent) -> double { return std::pow(base, exponent); },
      py::arg("base"), py::arg("exponent"),
      "A power in single precision, of the C library that MXNet takes it from.");

  add_parameter_groups(m);
  add_trainer_arrays(m);
  py::class_<StateCache>(m, "StateCache",
                         "What a batch leaves behind to make the next one cheaper.")
      .def(py::init<>());
  py::class_<engine::StepStatus, std::shared_ptr<engine::StepStatus>>(
      m, "StepStatus", "What a step leaves behind, to be read after a wait.")
      .def(py::init<>())
      .def_property_readonly(
          "gradient_norm",
          [](const engine::StepStatus& report) { return report.gradient_norm.load(); })
      .def_property_readonly(
          "finished", [](const engine::StepStatus& report) { return report.finished.load(); })
      .def_property_readonly(
          "skipped", [](const engine::StepStatus& report) { return report.skipped.load(); });
  py::class_<engine::FusedUpdate>(m, "FusedUpdate", "The arrays of one update, checked and held.")
      .def(
          py::init(&make_update), py::arg("rule"), py::arg("weights"), py::arg("grads"),
          py::arg("states"), py::arg("cache"), py::arg("lazy"), py::arg("multi_precision"),
          py::arg("average"), py::arg("state_dtype"), py::arg("known") = false,
          "Check all arrays and hold them; ParameterError names what is wrong. With lazy, rows "
          "that a row_sparse gradient does not hold are left alone. The next three say what states "
          "are made of. With known, the cache is of these weights, and no array has changed since "
          "it "
          "was given with the same grads and states.")
      .def("push", &push, py::arg("tables"), py::arg("clip_global_norm"), py::arg("skip_nonfinite"),
           py::arg("report"), py::arg("skipped_before"), py::arg("in_single_precision") = false,
           py::arg("rounded") = py::tuple(), py::arg("exact") = py::tuple(),
           py::arg("groups") = nullptr,
           "Hand the update to MXNet's engine, once. Each table is a dict, in which each scalar of "
           "the rule is one number, or a list with one for each parameter. The first table counts "
           "if skipped_before steps of the report have been skipped, the next if one more, and so "
           "on. With in_single_precision, scalars are read as by an operator of MXNet's that takes "
           "single precision, those in `rounded` to the nearest, and those in `exact` not at all. "
           "With groups, a list has one number for each group of parameters.")
      .def_property_readonly("pushed", &engine::FusedUpdate::pushed,
                             "Whether the engine has it: it will be done, whatever comes.");
  add_bandwidth_baseline(m);

  static const TestingHooks testing_hooks{&cpu::chosen_instruction_set, &cpu::instruction_set,
                                          &cpu::update, &backend_for_host_memory};
  m.attr("testing_hooks") = py::capsule(&testing_hooks, testing_hooks_name);
}
