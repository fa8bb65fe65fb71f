// SPDX-License-Identifier: Apache-2.0
// What only tests need of the native code: updates of NumPy's arrays, the codecs, and a switch that
// sends arrays in host memory the way of those on devices.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/low_precision.h"
#include "convert.h"
#include "testing_hooks.h"

namespace mxadamax {
namespace {

using engine::ParameterError;

// Of _native, which is never unloaded.
const TestingHooks* hooks = nullptr;

const cpu::Codec& codec_named(const std::string& type, const std::string& instruction_set) {
  const cpu::RuleKernels& any = hooks->instruction_set(instruction_set).table.rules[0];
  const std::optional<DType> found = dtype_named(type);
  if (found && is_converted(*found)) return cpu::codec_of(*any.shared, *found);
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
      random_bits(key, from.size(), *hooks->instruction_set(instruction_set).table.rules[0].shared);
  encode(from.data(), bits.data(), 0, to.mutable_data(), from.size());
  return to;
}

const cpu::Int8Codec& int8_codec(std::size_t states, const std::string& instruction_set) {
  const cpu::SharedKernels& shared = *hooks->instruction_set(instruction_set).table.rules[0].shared;
  if (states != 1 && states != 2) throw std::invalid_argument("expected one state or two");
  return shared.int8_codecs[states - 1];
}

template <class Array>
py::ssize_t size_of_all(const std::vector<Array>& arrays) {
  for (const Array& array : arrays) {
    if (array.size() != arrays[0].size()) throw std::invalid_argument("sizes differ");
  }
  return arrays[0].size();
}

py::tuple encode_int8(const std::vector<Floats>& states, const Key& key,
                      const std::string& instruction_set) {
  const cpu::Int8Codec& codec = int8_codec(states.size(), instruction_set);
  const py::ssize_t size = size_of_all(states);
  py::array_t<std::int8_t> levels(size);
  py::array_t<std::uint8_t> denominators(size);
  Floats scales(blocks_of(size) * static_cast<std::int64_t>(states.size()));
  const auto bits =
      random_bits(key, size, *hooks->instruction_set(instruction_set).table.rules[0].shared);
  const float* const from[] = {states[0].data(), states.back().data()};
  void* const to[] = {levels.mutable_data(), denominators.mutable_data()};
  codec.encode(from, bits.data(), to, scales.mutable_data(), size);
  if (states.size() == 1) return py::make_tuple(levels, scales);
  return py::make_tuple(levels, denominators, scales);
}

py::list decode_int8(const std::vector<py::array>& levels, const Floats& scales,
                     const std::string& instruction_set) {
  const cpu::Int8Codec& codec = int8_codec(levels.size(), instruction_set);
  const py::ssize_t size = size_of_all(levels);
  if (scales.size() != blocks_of(size) * static_cast<std::int64_t>(levels.size())) {
    throw std::invalid_argument("sizes differ");
  }
  std::vector<Floats> states;
  states.reserve(levels.size());
  for (std::size_t k = 0; k < levels.size(); ++k) states.emplace_back(size);
  const void* const from[] = {levels[0].data(), levels.back().data()};
  float* const to[] = {states[0].mutable_data(), states.back().mutable_data()};
  codec.decode(from, scales.data(), to, size);
  return py::cast(states);
}

// Updates NumPy arrays, without MXNet, in the calling thread.
void update_numpy(const std::string& rule_name, const std::vector<py::array>& weights,
                  const std::vector<py::array>& grads,
                  const std::vector<std::vector<py::array>>& states, const py::dict& scalars,
                  const std::string& instruction_set, int threads, const std::string& state_dtype,
                  const std::optional<std::vector<py::array>>& scales) {
  const cpu::InstructionSet& set = instruction_set.empty()
                                       ? hooks->chosen_instruction_set()
                                       : hooks->instruction_set(instruction_set);
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
      const std::int64_t numbers = blocks_of(tensor.size) * rule.states;
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
  hooks->update(rule, tensors, threads);
}

void update_host_memory_by(const py::object& kernels) {
  *hooks->backend_for_host_memory = kernels.is_none() ? nullptr : &functions_of(kernels);
}

}  // namespace
}  // namespace mxadamax

PYBIND11_MODULE(_native_testing, m) {
  using namespace mxadamax;
  m.doc() = "What tests need of the native part of mxadamax, and users do not.";

  const py::module_ native = py::module_::import("mxadamax._native");
  hooks = static_cast<const TestingHooks*>(
      PyCapsule_GetPointer(native.attr("testing_hooks").ptr(), testing_hooks_name));
  if (hooks == nullptr) throw py::error_already_set();
  translate_parameter_errors(native.attr("ParameterError"));

  py::dict sizes;
  for (const DType type : dtypes) sizes[dtype_name(type)] = dtype_size(type);
  m.attr("dtype_sizes") = sizes;

  m.def("decode", &decode, py::arg("array"), py::arg("type"), py::arg("instruction_set"),
        "What the bits of 16-bit numbers stand for: float32 numbers.");
  m.def("encode", &encode, py::arg("array"), py::arg("type"), py::arg("instruction_set"),
        "The bits of the 16-bit numbers that are nearest to float32 numbers.");
  m.def("encode_stochastic", &encode_stochastic, py::arg("array"), py::arg("type"),
        py::arg("divisor"), py::arg("key"), py::arg("instruction_set"),
        "The same, rounded at random; of divisors nothing but 0 becomes 0.");
  m.def("encode_int8", &encode_int8, py::arg("states"), py::arg("key"), py::arg("instruction_set"),
        "Levels and scales that stand for a signed state in 8 bits; with a divisor, ratios, "
        "divisors and scales that stand for both.");
  m.def("decode_int8", &decode_int8, py::arg("levels"), py::arg("scales"),
        py::arg("instruction_set"), "The states that they stand for.");
  m.def("update_numpy", &update_numpy, py::arg("rule"), py::arg("weights"), py::arg("grads"),
        py::arg("states"), py::arg("scalars"), py::arg("instruction_set") = "",
        py::arg("threads") = 0, py::arg("state_dtype") = "", py::arg("scales") = py::none(),
        "Update lists of NumPy arrays in place. Scalars as for FusedUpdate.push, taken as they "
        "are. With "
        "a state_dtype, states are arrays of the bits, and each weight has scales for int8.");
  m.def("update_host_memory_by", &update_host_memory_by, py::arg("kernels"),
        "Update arrays in host memory by the kernels of this module, which is _cuda_on_host, on "
        "the way that arrays on a GPU take; None for the processor's own.");
}
