// SPDX-License-Identifier: Apache-2.0
// The Python surface of the native code.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <optional>

#include "cpu/bandwidth_baseline.h"
#include "cpu/instruction_set.h"
#include "cpu/update.h"
#include "engine/device_batch_cache.h"
#include "engine/engine_op.h"
#include "engine/fused_update.h"
#include "engine/mxnet.h"
#include "engine/row_sparse.h"
#include "engine/scalar.h"
#include "engine/update_op.h"

namespace py = pybind11;

namespace mxadamax {
namespace {

using engine::Handle;
using engine::ParameterError;

const cpu::RuleKernels& rule_named(const std::string& name, const cpu::InstructionSet& set) {
  for (int k = 0; k < set.table.count; ++k) {
    if (set.table.rules[k].rule == name) return set.table.rules[k];
  }
  throw std::invalid_argument("there is no rule '" + name + "'");
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

// The handle of an MXNet NDArray, or null where `object` is none. Called for every array of every
// step, hence no lookup by text and no exception.
Handle handle_of(py::handle object) {
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

Handle array_of(py::handle object, std::size_t position, const char* what) {
  const Handle handle = handle_of(object);
  if (handle == nullptr) {
    throw ParameterError(position,
                         std::string(what) + " is " + type_name(object) + ", expected an NDArray");
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

// Adds the arrays of one state: None, one array, or a tuple or list of them.
void states_of(py::handle state, std::size_t position, int count, std::vector<Handle>& handles) {
  const std::size_t before = handles.size();
  const auto refuse = [&](const std::string& found) {
    const std::string expected = count == 0   ? "None"
                                 : count == 1 ? "one NDArray"
                                              : "a tuple of " + std::to_string(count) + " NDArrays";
    throw ParameterError(
        position, "state is " + found + ", expected " + expected + ", as create_state makes it");
  };
  if (py::isinstance<py::tuple>(state) || py::isinstance<py::list>(state)) {
    const SequenceView items(py::reinterpret_borrow<py::object>(state));
    for (std::size_t k = 0; k < items.size(); ++k) {
      const Handle handle = handle_of(items[k]);
      if (handle == nullptr) refuse("a sequence that holds " + type_name(items[k]));
      handles.push_back(handle);
    }
    if (static_cast<int>(items.size()) != count || count < 2) {
      refuse("a sequence of " + std::to_string(items.size()));
    }
    return;
  }
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
    states_of(state, position, batch.arrays_of_rule(), handles);
    return;
  }
  const char* const what = "a state and an average, as create_state makes it with ema_decay";
  const auto [own, average] = pair_of(state, what);
  states_of(own, position, batch.arrays_of_rule(), handles);
  add(average, what);
}

// Whether nothing that was found in a state can change unnoticed: a list could hold other arrays
// the next time.
bool is_fixed(py::handle state) {
  if (!PyTuple_CheckExact(state.ptr())) return false;
  for (const py::handle item : py::reinterpret_borrow<py::tuple>(state)) {
    if (PyList_Check(item.ptr()) || (PyTuple_Check(item.ptr()) && !is_fixed(item))) return false;
  }
  return true;
}

// What was found out about the states of the batch before, by position, and what was prepared on
// devices. A state counts as the same if it is the same tuple, which is held, so that no other
// object takes its place in memory.
class StateCache {
 public:
  // Where position i is kept, for the batch at hand to look up and to fill.
  void fit(std::size_t size) { entries_.resize(size); }
  const std::shared_ptr<const engine::State>* find(std::size_t i, py::handle state) const {
    return entries_[i].tuple.is(state) ? &entries_[i].state : nullptr;
  }
  void keep(std::size_t i, py::handle state, std::shared_ptr<const engine::State> found) {
    if (!is_fixed(state)) return;
    entries_[i] = {py::reinterpret_borrow<py::object>(state), std::move(found)};
  }
  const std::shared_ptr<engine::DeviceBatchCache>& device_batch_cache() const {
    return device_batch_cache_;
  }

 private:
  struct Entry {
    py::object tuple;
    std::shared_ptr<const engine::State> state;
  };
  std::vector<Entry> entries_;
  std::shared_ptr<engine::DeviceBatchCache> device_batch_cache_ =
      std::make_shared<engine::DeviceBatchCache>();
};

// What updates arrays in host memory, in tests; null for the processor's own kernels.
const DeviceBackend* backend_for_host_memory = nullptr;

// What is called for the module with the kernels for devices. Never freed: at the end of the
// process Python is gone before this.
py::object& device_backend_loader() {
  static auto* const loader = new py::object(py::none());
  return *loader;
}

const DeviceBackend& functions_of(const py::object& kernels) {
  const py::object capsule = kernels.attr("functions");
  const void* const found = PyCapsule_GetPointer(capsule.ptr(), device_backend_name);
  if (found != nullptr) return *static_cast<const DeviceBackend*>(found);
  PyErr_SetString(PyExc_ImportError,
                  "the module of kernels for GPUs is of another build than the rest");
  throw py::error_already_set();
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

DType state_dtype_named(const std::string& name) {
  if (name == "float16") return DType::float16;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "int8") return DType::int8;
  throw std::invalid_argument("type '" + name + "' must be float16, bfloat16 or int8");
}

engine::FusedUpdate make_update(const std::string& rule_name, const py::object& weight_list,
                                const py::object& grad_list, const py::object& state_list,
                                StateCache& cache, bool lazy, bool multi_precision, bool average,
                                const py::object& state_dtype) {
  const SequenceView weights(weight_list), grads(grad_list), states(state_list);
  const cpu::RuleKernels& rule = rule_named(rule_name, cpu::chosen_instruction_set());
  if (weights.size() != grads.size() || weights.size() != states.size()) {
    throw std::invalid_argument(
        "got " + std::to_string(weights.size()) + " weights, " + std::to_string(grads.size()) +
        " gradients and " + std::to_string(states.size()) + " states, expected as many of each");
  }
  engine::StateFormat format{multi_precision, average};
  if (!state_dtype.is_none())
    format.state_dtype = state_dtype_named(state_dtype.cast<std::string>());
  engine::FusedUpdate batch(rule, lazy, format);
  std::vector<Handle> handles;
  cache.fit(weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Handle weight = array_of(weights[i], i, "weight");
    if (i == 0) {
      const DeviceBackend* const kernels = device_backend_for(weight);
      if (kernels != nullptr) batch.use(*kernels, cache.device_batch_cache());
    }
    batch.add(weight, array_of(grads[i], i, "gradient"));
    const std::shared_ptr<const engine::State>* known = cache.find(i, states[i]);
    if (known != nullptr && batch.reuse_state(*known)) continue;
    handles.clear();
    collect_state(states[i], i, batch, handles);
    cache.keep(i, states[i], batch.add_state(handles));
  }
  batch.check_memory();
  return batch;
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
    if (py::isinstance<py::list>(column)) {
      const auto list = column.cast<py::list>();
      if (list.size() != tensors) {
        throw std::invalid_argument("scalar '" + name + "' has " + std::to_string(list.size()) +
                                    " values for " + std::to_string(tensors) + " tensors");
      }
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

bool is_epilogue_scalar(const std::string& name) {
  return std::find(std::begin(epilogue_scalars), std::end(epilogue_scalars), name) !=
         std::end(epilogue_scalars);
}

void push(engine::FusedUpdate& batch, const std::vector<py::dict>& tables,
          const py::object& clip_global_norm, bool skip_nonfinite,
          const std::shared_ptr<engine::StepStatus>& report, std::int64_t skipped_before) {
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
  const auto convert = [](const std::string& name, std::size_t position, double value) -> double {
    // Never seen by an operator of MXNet's.
    if (is_epilogue_scalar(name)) return value;
    // MXNet takes bounds, which may be infinite, in single precision, whatever they bound.
    if (name == "clip_gradient" || name == "clip_weights" || name == "upper_bound") {
      return engine::as_mxnet_reads<float>(value);
    }
    if (!std::isfinite(value)) {
      throw ParameterError(position, (name == "decay_factor" ? "1 - lr * wd" : name) + " is " +
                                         py::repr(py::float_(value)).cast<std::string>() +
                                         ", expected a finite number");
    }
    return engine::as_mxnet_reads<double>(value);
  };
  std::vector<std::vector<double>> rows;
  rows.reserve(tables.size());
  for (const py::dict& scalars : tables) {
    rows.push_back(table_of(batch.rule(), batch.size(), scalars, convert));
  }
  engine::StepOptions options;
  if (!clip_global_norm.is_none()) options.clip_global_norm = clip_global_norm.cast<double>();
  options.skip_nonfinite = skip_nonfinite;
  options.report = report;
  options.skipped_before = skipped_before;
  const py::gil_scoped_release release;
  std::move(batch).push(std::move(rows), std::move(options));
}

const cpu::Codec& codec_named(const std::string& type, const std::string& instruction_set) {
  const cpu::RuleKernels& any = cpu::instruction_set(instruction_set).table.rules[0];
  if (type == "float16") return any.shared->codecs[0];
  if (type == "bfloat16") return any.shared->codecs[1];
  throw std::invalid_argument("type '" + type + "' must be float16 or bfloat16");
}

using Bits = py::array_t<std::uint16_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

Floats decode(const Bits& from, const std::string& type, const std::string& instruction_set) {
  Floats to(from.size());
  codec_named(type, instruction_set).decode(from.data(), to.mutable_data(), from.size());
  return to;
}

Bits encode(const Floats& from, const std::string& type, const std::string& instruction_set) {
  Bits to(from.size());
  codec_named(type, instruction_set).encode(from.data(), to.mutable_data(), from.size());
  return to;
}

using Key = std::pair<std::uint32_t, std::uint32_t>;

std::vector<std::uint32_t> random_bits(const Key& key, py::ssize_t count,
                                       const cpu::SharedKernels& shared) {
  std::vector<std::uint32_t> bits(static_cast<std::size_t>(count));
  shared.random_bits({key.first, key.second}, 0, bits.data(), count);
  return bits;
}

Bits encode_stochastic(const Floats& from, const std::string& type, bool divisor, const Key& key,
                       const std::string& instruction_set) {
  const cpu::Codec& codec = codec_named(type, instruction_set);
  const auto encode = divisor ? codec.encode_denominator_stochastic : codec.encode_stochastic;
  Bits to(from.size());
  const auto bits =
      random_bits(key, from.size(), *cpu::instruction_set(instruction_set).table.rules[0].shared);
  encode(from.data(), bits.data(), 0, to.mutable_data(), from.size());
  return to;
}

py::tuple encode_int8(const Floats& plain, const Floats& divisor, const Key& key,
                      const std::string& instruction_set) {
  const cpu::SharedKernels& shared = *cpu::instruction_set(instruction_set).table.rules[0].shared;
  if (plain.size() != divisor.size()) throw std::invalid_argument("sizes differ");
  py::array_t<std::int8_t> ratios(plain.size());
  py::array_t<std::uint8_t> divisors(plain.size());
  Floats scales(blocks_of(plain.size()) * scales_per_block);
  const auto bits = random_bits(key, plain.size(), shared);
  shared.int8_codec.encode(plain.data(), divisor.data(), bits.data(), ratios.mutable_data(),
                           divisors.mutable_data(), scales.mutable_data(), plain.size());
  return py::make_tuple(ratios, divisors, scales);
}

py::tuple decode_int8(const py::array_t<std::int8_t>& ratios,
                      const py::array_t<std::uint8_t>& divisors, const Floats& scales,
                      const std::string& instruction_set) {
  const cpu::SharedKernels& shared = *cpu::instruction_set(instruction_set).table.rules[0].shared;
  if (divisors.size() != ratios.size() ||
      scales.size() != blocks_of(ratios.size()) * scales_per_block) {
    throw std::invalid_argument("sizes differ");
  }
  Floats plain(ratios.size()), divisor(ratios.size());
  shared.int8_codec.decode(ratios.data(), divisors.data(), scales.data(), plain.mutable_data(),
                           divisor.mutable_data(), ratios.size());
  return py::make_tuple(plain, divisor);
}

// Updates NumPy arrays, without MXNet, in the calling thread.
void update_numpy(const std::string& rule_name, const std::vector<py::array>& weights,
                  const std::vector<py::array>& grads,
                  const std::vector<std::vector<py::array>>& states, const py::dict& scalars,
                  const std::string& instruction_set, int threads, const std::string& state_dtype,
                  const std::optional<std::vector<py::array>>& scales) {
  const cpu::InstructionSet& set = instruction_set.empty() ? cpu::chosen_instruction_set()
                                                           : cpu::instruction_set(instruction_set);
  const cpu::RuleKernels& rule = rule_named(rule_name, set);
  if (weights.size() != grads.size() || weights.size() != states.size()) {
    throw std::invalid_argument("weights, grads and states differ in length");
  }
  const bool low_precision_state = !state_dtype.empty();
  const bool in_int8 = state_dtype == "int8";
  if (low_precision_state &&
      !(in_int8 ? rule.supports_int8_state : rule.supports_low_precision_state)) {
    throw std::invalid_argument("the rule keeps no states in " + state_dtype);
  }
  if (in_int8 && (!scales || scales->size() != weights.size())) {
    throw std::invalid_argument("weights and scales differ in length");
  }
  std::vector<cpu::Tensor> tensors;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto check = [&](const py::array& array, const char* what) {
      const bool like = array.dtype().equal(weights[i].dtype()) &&
                        array.ndim() == weights[i].ndim() &&
                        std::equal(array.shape(), array.shape() + array.ndim(), weights[i].shape());
      if (!like || !(array.flags() & py::array::c_style)) {
        throw ParameterError(
            i, std::string(what) + " must be C-contiguous and of the weight's dtype and shape");
      }
    };
    cpu::Tensor tensor{};
    if (py::isinstance<py::array_t<float>>(weights[i])) {
      tensor.compute = OpMath::float32;
    } else if (py::isinstance<py::array_t<double>>(weights[i])) {
      tensor.compute = OpMath::float64;
      tensor.grad_type = tensor.weight_type = tensor.state_type = DType::float64;
    } else {
      throw ParameterError(i, "weight must be float32 or float64");
    }
    if (static_cast<int>(states[i].size()) != rule.states) {
      throw ParameterError(i, "the rule has " + std::to_string(rule.states) + " states");
    }
    check(weights[i], "weight");
    check(grads[i], "gradient");
    tensor.size = weights[i].size();
    tensor.grad = grads[i].data();
    py::array weight = weights[i];
    tensor.weight = weight.mutable_data();
    if (low_precision_state) {
      if (tensor.compute != OpMath::float32) throw ParameterError(i, "weight must be float32");
      tensor.state_type = state_dtype_named(state_dtype);
      tensor.stochastic_rounding = true;
    }
    const auto check_bytes = [&](const py::array& array, std::int64_t bytes, const char* what) {
      if (array.nbytes() != bytes || !(array.flags() & py::array::c_style)) {
        throw ParameterError(i, std::string(what) + " must be C-contiguous and of " +
                                    std::to_string(bytes) + " bytes");
      }
    };
    for (int k = 0; k < rule.states; ++k) {
      if (low_precision_state) {
        check_bytes(states[i][k], tensor.size * dtype_size(tensor.state_type), "state");
      } else {
        check(states[i][k], "state");
      }
      py::array state = states[i][k];
      tensor.states[k] = state.mutable_data();
    }
    if (in_int8) {
      const std::int64_t numbers = blocks_of(tensor.size) * scales_per_block;
      check_bytes((*scales)[i], numbers * dtype_size(DType::float32), "scales");
      py::array own = (*scales)[i];
      tensor.scales = static_cast<float*>(own.mutable_data());
    }
    tensors.push_back(tensor);
  }
  const auto table = table_of(rule, tensors.size(), scalars,
                              [](const std::string&, std::size_t, double value) { return value; });
  const double* row = table.data();
  for (cpu::Tensor& tensor : tensors) {
    tensor.scalars = row;
    row += rule.scalars;
  }
  const py::gil_scoped_release release;
  cpu::update(rule, tensors, threads);
}

// The arrays of an update, and the least time that moving them takes.
class ArraysToMove {
 public:
  ArraysToMove(const std::vector<py::object>& grads,
               const std::vector<std::vector<py::object>>& written,
               const std::vector<py::object>& copies, int threads)
      : held_(py::make_tuple(grads, written, copies)), threads_(threads) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1");
    if (grads.empty() || written.size() != grads.size() ||
        (!copies.empty() && copies.size() != grads.size())) {
      throw std::invalid_argument("grads, written and copies differ in length, or are empty");
    }
    states_ = static_cast<int>(written[0].size()) - 1;
    for (std::size_t i = 0; i < grads.size(); ++i) {
      if (written[i].size() != written[0].size() || states_ < 0 || states_ > max_states) {
        throw ParameterError(i, "expected a weight and 0 to 4 states, as many for each");
      }
      BaselineTensor tensor{};
      tensor.size = grads[i].attr("size").cast<std::int64_t>();
      const std::size_t grad_bytes = copies.empty() ? 4 : 2;
      tensor.grad = data_of(grads[i], i, "gradient", tensor.size, grad_bytes);
      for (int k = 0; k <= states_; ++k) {
        tensor.written[k] = static_cast<float*>(
            data_of(written[i][k], i, k == 0 ? "weight" : "state", tensor.size, 4));
      }
      if (!copies.empty()) tensor.copy = data_of(copies[i], i, "copy", tensor.size, 2);
      tensors_.push_back(tensor);
    }
  }

  void move() const {
    const py::gil_scoped_release release;
    bandwidth_baseline(tensors_, states_, threads_, cpu::chosen_instruction_set().name);
  }

 private:
  static void* data_of(const py::object& array, std::size_t i, const char* what, std::int64_t size,
                       std::size_t bytes) {
    const Handle handle = array_of(array, i, what);
    int type = -1;
    engine::check(engine::api().MXNDArrayGetDType(handle, &type));
    // MXNet's numbers for float32, float16 and bfloat16.
    if (bytes == 4 ? type != 0 : type != 2 && type != 12) {
      throw ParameterError(
          i, std::string(what) + " must be of " + (bytes == 4 ? "float32" : "16 bits"));
    }
    if (array.attr("size").cast<std::int64_t>() != size) {
      throw ParameterError(i, std::string(what) + " differs from the gradient in size");
    }
    void* data = nullptr;
    engine::check(engine::api().MXNDArrayGetData(handle, &data));
    return data;
  }

  py::tuple held_;
  int threads_;
  int states_ = 0;
  std::vector<BaselineTensor> tensors_;
};

}  // namespace
}  // namespace mxadamax

PYBIND11_MODULE(_native, m) {
  using namespace mxadamax;
  m.doc() = "Native part of mxadamax: optimizer kernels, and their way into MXNet's engine.";

  // Raised with (position of the parameter, message, position of another parameter).
  static const py::handle parameter_error =
      py::exception<ParameterError>(m, "ParameterError", PyExc_ValueError).release();
  // NOLINTNEXTLINE(performance-unnecessary-value-param): pybind11 wants just this type.
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const ParameterError& error) {
      const py::tuple args = py::make_tuple(error.position, error.what(), error.other);
      PyErr_SetObject(parameter_error.ptr(), args.ptr());
    }
  });

  py::class_<cpu::RuleKernels>(m, "Rule", "What is known about a rule.")
      .def_readonly("states", &cpu::RuleKernels::states, "How many arrays of state it has.")
      .def_readonly("supports_low_precision_state", &cpu::RuleKernels::supports_low_precision_state,
                    "Whether its states can be kept in 16 bits, rounded at random.")
      .def_readonly("supports_int8_state", &cpu::RuleKernels::supports_int8_state,
                    "Whether they can be kept in 8 bits.");
  m.attr("block_size") = block_size;
  m.attr("scales_per_block") = scales_per_block;

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
  m.def(
      "update_host_memory_by",
      [](const py::object& kernels) {
        backend_for_host_memory = kernels.is_none() ? nullptr : &functions_of(kernels);
      },
      py::arg("kernels"),
      "For tests: update arrays in host memory by the kernels of this module, which is "
      "_cuda_on_host, on the way that arrays on a GPU take; None for the processor's own.");
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
      .def(py::init(&make_update), py::arg("rule"), py::arg("weights"), py::arg("grads"),
           py::arg("states"), py::arg("cache"), py::arg("lazy"), py::arg("multi_precision"),
           py::arg("average"), py::arg("state_dtype"),
           "Check all arrays and hold them; ParameterError names what is wrong. With lazy, rows "
           "that a row_sparse gradient does not hold are left alone. The others say what states "
           "are made of.")
      .def("push", &push, py::arg("tables"), py::arg("clip_global_norm"), py::arg("skip_nonfinite"),
           py::arg("report"), py::arg("skipped_before"),
           "Hand the update to MXNet's engine, once. Each table is a dict, in which each scalar of "
           "the rule is one number, or a list with one for each parameter. The first table counts "
           "if skipped_before steps of the report have been skipped, the next if one more, and so "
           "on.")
      .def_property_readonly("pushed", &engine::FusedUpdate::pushed,
                             "Whether the engine has it: it will be done, whatever comes.");

  m.def("decode", &decode, py::arg("array"), py::arg("type"), py::arg("instruction_set"),
        "What the bits of 16-bit numbers stand for: float32 numbers.");
  m.def("encode", &encode, py::arg("array"), py::arg("type"), py::arg("instruction_set"),
        "The bits of the 16-bit numbers that are nearest to float32 numbers.");
  m.def("encode_stochastic", &encode_stochastic, py::arg("array"), py::arg("type"),
        py::arg("divisor"), py::arg("key"), py::arg("instruction_set"),
        "The same, rounded at random; of divisors nothing but 0 becomes 0.");
  m.def("encode_int8", &encode_int8, py::arg("plain"), py::arg("divisor"), py::arg("key"),
        py::arg("instruction_set"),
        "Ratios, divisors and scales that stand for two states in 8 bits each.");
  m.def("decode_int8", &decode_int8, py::arg("ratios"), py::arg("divisors"), py::arg("scales"),
        py::arg("instruction_set"), "The two states that they stand for.");
  m.def("update_numpy", &update_numpy, py::arg("rule"), py::arg("weights"), py::arg("grads"),
        py::arg("states"), py::arg("scalars"), py::arg("instruction_set") = "",
        py::arg("threads") = 0, py::arg("state_dtype") = "", py::arg("scales") = py::none(),
        "Update lists of NumPy arrays in place. Scalars as for FusedUpdate.push, taken as they "
        "are. With "
        "a state_dtype, states are arrays of the bits, and each weight has scales for int8.");

  py::class_<ArraysToMove>(m, "BandwidthBaseline",
                           "What the memory allows: reads and writes the NDArrays of an update and "
                           "computes next to nothing. Spoils them.")
      .def(py::init<const std::vector<py::object>&, const std::vector<std::vector<py::object>>&,
                    const std::vector<py::object>&, int>(),
           py::arg("grads"), py::arg("written"), py::arg("copies"), py::arg("threads"),
           "Take gradients, for each the weight and the states, and with 16-bit gradients a 16-bit "
           "copy of each weight. All must have been computed.")
      .def("__call__", &ArraysToMove::move, "Move them once, in this thread's time.");
}
