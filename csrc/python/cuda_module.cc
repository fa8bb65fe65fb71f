// SPDX-License-Identifier: Apache-2.0
// The Python surface of the CUDA kernels: the module _cuda, and _cuda_on_host, which is the same
// compiled for the host.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/low_precision.h"
#include "cuda/c_abi.h"
#include "cuda/launch_plan.h"
#include "cuda/memory.h"

namespace py = pybind11;

namespace mxadamax::cuda {
namespace {

DType type_named(const std::string& dtype) {
  const std::optional<DType> found = dtype_named(dtype);
  if (found && is_floating(*found)) return *found;
  throw std::invalid_argument("dtype '" + dtype + "' is unknown");
}

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

// One tensor from Python: dtype of the weight, number of elements, addresses, 0 for none; of a
// gradient that holds some rows, their numbers' address, how many, the length of a row, whether
// lazy; and of low-precision states, their dtype and the address of their scales.
DeviceTensor tensor_of(const py::tuple& given, int states) {
  using Rows = std::tuple<std::uintptr_t, std::int64_t, std::int64_t, bool>;
  using LowPrecision = std::pair<std::string, std::uintptr_t>;
  const auto [dtype, size, grad, weight, own, master, average, rows, low_precision] =
      py::cast<std::tuple<std::string, std::int64_t, std::uintptr_t, std::uintptr_t,
                          std::vector<std::uintptr_t>, std::uintptr_t, std::uintptr_t,
                          std::optional<Rows>, std::optional<LowPrecision>>>(given);
  if (static_cast<int>(own.size()) != states) {
    throw std::invalid_argument("the rule has " + std::to_string(states) + " states");
  }
  DeviceTensor tensor{};
  tensor.type = type_named(dtype);
  tensor.size = size;
  tensor.grad = pointer(grad);
  tensor.weight = pointer(master != 0 ? master : weight);
  tensor.copy = master != 0 ? pointer(weight) : nullptr;
  tensor.average = pointer(average);
  for (int k = 0; k < states; ++k) tensor.states[k] = pointer(own[static_cast<std::size_t>(k)]);
  if (rows) {
    const auto [numbers, count, length, lazy] = *rows;
    if (count < 0 || length < 1) throw std::invalid_argument("rows of less than nothing");
    tensor.rows = {static_cast<const std::int64_t*>(pointer(numbers)), count, length, lazy};
  }
  if (low_precision) {
    const auto& [state_dtype, scales] = *low_precision;
    tensor.low_precision_state = true;
    tensor.state_type = state_dtype == "int8" ? DType::int8 : type_named(state_dtype);
    tensor.scales = static_cast<float*>(pointer(scales));
  }
  return tensor;
}

std::unique_ptr<LaunchPlan> make_batch(const std::string& rule_name,
                                       const std::vector<py::tuple>& tensors, int device) {
  const int rule = rule_named(rule_name);
  std::vector<DeviceTensor> list;
  list.reserve(tensors.size());
  for (const py::tuple& tensor : tensors) {
    list.push_back(tensor_of(tensor, kernels_float32().rules[rule].states));
  }
  const py::gil_scoped_release release;
  return std::make_unique<LaunchPlan>(rule, std::move(list), device);
}

cudaStream_t stream_at(std::uintptr_t address) {
  return static_cast<cudaStream_t>(pointer(address));
}

// An array, since a list of ten thousand rows takes longer to read than their update.
using ScalarArray = py::array_t<double, py::array::c_style | py::array::forcecast>;

void update(LaunchPlan& batch, const ScalarArray& given, std::optional<double> clip_global_norm,
            bool skip_nonfinite, std::uintptr_t stream) {
  const std::vector<double> scalars(given.data(), given.data() + given.size());
  StepOptions options;
  if (clip_global_norm) options.clip_global_norm = *clip_global_norm;
  options.skip_nonfinite = skip_nonfinite;
  const py::gil_scoped_release release;
  batch.update(scalars, options, stream_at(stream));
}

// Makes what is queued on a stream from now on wait for what is queued on another.
void order_streams(std::uintptr_t first, std::uintptr_t then, int device) {
  const py::gil_scoped_release release;
  const DeviceGuard current(device);
  Event reached;
  reached.record(stream_at(first));
  reached.stream_wait(stream_at(then));
}

// The beginning of DLPack's DLManagedTensor, and of its versioned form, which other fields precede.
struct DlTensor {
  void* data;
  std::int32_t device_type, device_id, ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  const std::int64_t* shape;
  const std::int64_t* strides;
  std::uint64_t byte_offset;
};

// Address, device type and number, code and bits of its numbers, shape, strides in elements.
py::tuple read_dlpack(const py::capsule& capsule) {
  if (std::string(capsule.name()) != "dltensor") {
    throw std::invalid_argument(std::string("a DLPack capsule of kind ") + capsule.name() +
                                ", expected dltensor");
  }
  const auto& tensor = *static_cast<const DlTensor*>(capsule.get_pointer());
  py::tuple shape(tensor.ndim);
  for (int k = 0; k < tensor.ndim; ++k) shape[static_cast<std::size_t>(k)] = tensor.shape[k];
  py::object strides = py::none();
  if (tensor.strides != nullptr) {
    py::tuple found(tensor.ndim);
    for (int k = 0; k < tensor.ndim; ++k) found[static_cast<std::size_t>(k)] = tensor.strides[k];
    strides = std::move(found);
  }
  return py::make_tuple(reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset,
                        tensor.device_type, tensor.device_id, static_cast<int>(tensor.code),
                        static_cast<int>(tensor.bits) * tensor.lanes, shape, strides);
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

py::list devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "number of devices");
  py::list list;
  for (int k = 0; k < count; ++k) {
    cudaDeviceProp found{};
    check(cudaGetDeviceProperties(&found, k), "properties of a device");
    list.append(
        py::make_tuple(std::string(found.name), found.totalGlobalMem, found.major, found.minor));
  }
  return list;
}

int device_of(std::uintptr_t address) {
  cudaPointerAttributes found{};
  check(cudaPointerGetAttributes(&found, pointer(address)), "device of an array");
  return found.device < 0 ? 0 : found.device;
}

int driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "version of the driver");
  return version;
}

// How launch_config.h lays work out, for its tests.
py::list parts(const std::vector<std::int64_t>& sizes) {
  std::vector<Tile> found;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    append_tiles(static_cast<std::int32_t>(i), sizes[i], found);
  }
  py::list list;
  for (const Tile& part : found) list.append(py::make_tuple(part.tensor, part.first, part.count));
  return list;
}

int head(const std::vector<std::pair<std::uintptr_t, std::int64_t>>& arrays, int at_once) {
  std::vector<Alignment> alignments;
  alignments.reserve(arrays.size());
  for (const auto& [address, size] : arrays) alignments.push_back({address, size});
  return vector_head(alignments.data(), static_cast<int>(alignments.size()), at_once);
}

// (tensor, first, count, first segment) of each, and the number of segments.
py::tuple sum_parts(const std::vector<std::int64_t>& sizes, const std::vector<bool>& converted) {
  const Sums sums = sums_of(sizes, converted);
  py::list list;
  for (const SumTile& part : sums.parts) {
    list.append(py::make_tuple(part.tensor, part.first, part.count, part.first_segment));
  }
  return py::make_tuple(list, sums.segments);
}

py::tuple split_part(std::int32_t count, int head, int at_once) {
  const Split found = split(count, head, at_once);
  return py::make_tuple(found.head, found.vectors, found.tail);
}

}  // namespace
}  // namespace mxadamax::cuda

PYBIND11_MODULE(MXADAMAX_MODULE, m) {
  using namespace mxadamax;
  using namespace mxadamax::cuda;
  m.doc() = "Kernels for many tensors at once on a GPU.";

  py::register_local_exception<TensorError>(m, "TensorError", PyExc_ValueError).doc() =
      "What is wrong with one tensor of a batch.";

  py::dict rules;
  py::list low_precision, int8;
  const DeviceKernelTable table = kernels_float32();
  for (int k = 0; k < table.count; ++k) {
    const DeviceRuleKernels& rule = table.rules[k];
    py::list names;
    for (int i = 0; i < rule.scalars; ++i) names.append(rule.scalar_names[i]);
    rules[rule.rule] = py::make_tuple(rule.states, py::tuple(names));
    if (rule.supports_low_precision_state) low_precision.append(rule.rule);
    if (rule.supports_int8_state) int8.append(rule.rule);
  }
  m.attr("rules") = rules;
  m.attr("rules_with_low_precision_state") = py::tuple(low_precision);
  m.attr("rules_with_int8_state") = py::tuple(int8);
  m.attr("optional_scalars") =
      py::make_tuple(epilogue_scalars[0], epilogue_scalars[1], epilogue_scalars[2]);
  py::list integers;
  for (const char* const name : epilogue_scalars) {
    if (is_integer_scalar(name)) integers.append(name);
  }
  m.attr("integer_scalars") = py::tuple(integers);
  m.attr("bound_scalars") = py::tuple(
      py::cast(std::vector<std::string>(std::begin(bound_scalars), std::end(bound_scalars))));
  m.attr("tile_length") = tile_length;
  m.attr("block_size") = block_size;
  m.attr("architectures") = MXADAMAX_CUDA_ARCHITECTURES;
  m.attr("compiler") = MXADAMAX_CUDA_COMPILER;
#if defined(CUDART_VERSION)
  m.attr("runtime_version") = CUDART_VERSION;
#else
  m.attr("runtime_version") = py::none();
#endif

  // Local, since both modules have one.
  py::class_<LaunchPlan>(m, "LaunchPlan", py::module_local(),
                         "Tensors that are updated together, step after step.")
      .def(py::init(&make_batch), py::arg("rule"), py::arg("tensors"), py::arg("device"),
           "Each tensor is (dtype, size, gradient, weight, states, master, average, rows, few "
           "bits): the dtype of the weight, the number of elements, and addresses, 0 for none. "
           "Rows are None, or (address of their numbers, how many, elements of a row, lazy). Few "
           "bits are None, or (dtype of the states, address of the scales). What is wrong with "
           "the memory is a TensorError.")
      .def("update", &update, py::arg("scalars"), py::arg("clip_global_norm"),
           py::arg("skip_nonfinite"), py::arg("stream"),
           "Queue an update on a stream. Scalars are a row for each tensor, one after another; in "
           "the place of an integer scalar are its bits.")
      .def(
          "report",
          [](const LaunchPlan& batch) {
            const StepControl found = [&] {
              const py::gil_scoped_release release;
              return batch.report();
            }();
            return py::make_tuple(found.norm, found.skipped);
          },
          "The norm of all gradients in the last update that had an option, NaN before, and how "
          "many updates were skipped. Waits.");

  m.def("order_streams", &order_streams, py::arg("first"), py::arg("then"), py::arg("device"),
        "Make what is queued on one stream from now on wait for what is queued on another.");
  m.def("read_dlpack", &read_dlpack, py::arg("capsule"),
        "Address, device type and number, code and bits of the numbers, shape and strides.");
  m.def("device_count", &device_count, "How many GPUs the driver offers; 0 without a driver.");
  m.def("devices", &devices,
        "Name, memory in bytes, and both numbers of the architecture of each GPU.");
  m.def("device_of", &device_of, py::arg("address"), "The number of the GPU that holds an array.");
  m.def("driver_version", &driver_version,
        "The newest CUDA that the driver knows, as 1000 * major + 10 * minor; 0 without one.");

  m.attr("functions") = py::capsule(&device_backend(), device_backend_name);

  m.def("parts", &parts, py::arg("sizes"), "The parts of tensors: (tensor, first, count).");
  m.def("sum_parts", &sum_parts, py::arg("sizes"), py::arg("converted"),
        "The parts of sums: (tensor, first, count, first segment); and the number of segments.");
  m.def("vector_head", &head, py::arg("arrays"), py::arg("at_once"),
        "How many elements come before the first vector of arrays, each (address, element size).");
  m.def("split", &split_part, py::arg("count"), py::arg("head"), py::arg("at_once"),
        "Head, vectors and beginning of the tail of a part.");
  m.def("grid_size", &grid_size, py::arg("work"), py::arg("processors"),
        py::arg("blocks_per_processor"), "How many blocks to start.");
}
