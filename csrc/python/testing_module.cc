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

// Calls visit(first, count, line) for each group of elements that share random bits, of those that
// one of a rule's states has.
template <class Visit>
void for_each_group(py::ssize_t size, std::uint64_t seed, int state, Visit&& visit) {
  for (std::int64_t first = 0; first < size; first += rng_block) {
    visit(first, std::min(rng_block, size - first), rng_line(seed, state, first));
  }
}

Bits encode_stochastic(const Floats& from, const std::string& type, bool denominator,
                       std::uint64_t seed, int state, const std::string& instruction_set) {
  const auto encode = codec_named(type, instruction_set).encode_stochastic[denominator];
  Bits to(from.size());
  for_each_group(from.size(), seed, state, [&](std::int64_t i, std::int64_t count, RngLine line) {
    encode(from.data() + i, line, to.mutable_data() + i, count);
  });
  return to;
}

const cpu::Int8Codec& int8_codec(const std::string& kind, const std::string& instruction_set) {
  const cpu::SharedKernels& shared = *hooks->instruction_set(instruction_set).table.rules[0].shared;
  const char* const kinds[] = {"ratio", "signed", "denominator"};
  for (int k = 0; k < cpu::int8_states; ++k) {
    if (kind == kinds[k]) return shared.int8_codecs[k];
  }
  throw std::invalid_argument("kind '" + kind + "' must be ratio, signed or denominator");
}

py::tuple encode_int8(const Floats& from, const std::string& kind, std::uint64_t seed, int state,
                      const std::string& instruction_set) {
  const auto encode = int8_codec(kind, instruction_set).encode;
  py::array_t<std::int8_t> codes(from.size());
  Floats scales(blocks_of(from.size()));
  for_each_group(from.size(), seed, state, [&](std::int64_t i, std::int64_t count, RngLine line) {
    encode(from.data() + i, line, codes.mutable_data() + i, scales.mutable_data() + i / block_size,
           1, count);
  });
  return py::make_tuple(codes, scales);
}

Floats decode_int8(const py::array_t<std::int8_t, py::array::c_style>& codes, const Floats& scales,
                   const std::string& kind, const std::string& instruction_set) {
  if (scales.size() != blocks_of(codes.size())) throw std::invalid_argument("sizes differ");
  const auto decode = int8_codec(kind, instruction_set).decode;
  Floats to(codes.size());
  for_each_group(codes.size(), 0, 0, [&](std::int64_t i, std::int64_t count, RngLine) {
    decode(codes.data() + i, scales.data() + i / block_size, 1, to.mutable_data() + i, count);
  });
  return to;
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
      tensor.low_precision_state = true;
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
        py::arg("denominator"), py::arg("seed"), py::arg("state"), py::arg("instruction_set"),
        "The same, rounded at random, as this state of a rule; of denominators nothing but 0 "
        "becomes 0.");
  m.def("encode_int8", &encode_int8, py::arg("array"), py::arg("kind"), py::arg("seed"),
        py::arg("state"), py::arg("instruction_set"),
        "Codes and scales that stand for float32 numbers: ratios, a signed state or denominators.");
  m.def("decode_int8", &decode_int8, py::arg("codes"), py::arg("scales"), py::arg("kind"),
        py::arg("instruction_set"), "The numbers that they stand for.");
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
