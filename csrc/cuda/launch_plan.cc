// SPDX-License-Identifier: Apache-2.0
#include "launch_plan.h"

#include <algorithm>
#include <array>
#include <limits>

#include "common/low_precision.h"
#include "memory.h"

namespace mxadamax::cuda {
namespace {

DeviceKernelTable kernels_of(Variant variant) {
  switch (variant) {
    case Variant::float64:
      return kernels_float64();
    case Variant::half:
      return kernels_half();
    case Variant::low_precision:
      return kernels_low_precision();
    default:
      return kernels_float32();
  }
}

const DeviceRuleKernels& rule_of(int rule, Variant variant) {
  return kernels_of(variant).rules[rule];
}

bool has_master(const DeviceTensor& tensor) { return tensor.copy != nullptr; }

// Returns the variant of a weight of this type.
Variant variant_of(DType type, bool master) {
  if (type == DType::float16 || type == DType::bfloat16) return Variant::half;
  if (type == DType::float32 && !master) return Variant::float32;
  if (type == DType::float64 && !master) return Variant::float64;
  throw std::invalid_argument(master ? "a weight that has not 16 bits has no master"
                                     : "8 bits are no type of weights");
}
Variant variant_of(const DeviceTensor& tensor) {
  const Variant found = variant_of(tensor.type, has_master(tensor));
  return tensor.low_precision_state ? Variant::low_precision : found;
}

const DeviceRuleKernels& rule_of(int rule, const DeviceTensor& tensor) {
  return rule_of(rule, variant_of(tensor));
}

DType weight_type(const DeviceTensor& tensor) {
  return updated_type(tensor.type, has_master(tensor));
}
DType state_type(const DeviceTensor& tensor) {
  return tensor.low_precision_state ? tensor.state_type : weight_type(tensor);
}

// Refuses low-precision states that the rule or the dtype does not support.
void check_low_precision(std::size_t position, const DeviceTensor& tensor,
                         const DeviceRuleKernels& rule) {
  if (!tensor.low_precision_state) return;
  const bool is_int8 = tensor.state_type == DType::int8;
  if (!is_int8 && !is_converted(tensor.state_type)) {
    throw std::invalid_argument("low-precision states are float16, bfloat16 or int8");
  }
  if (tensor.type == DType::float64) {
    throw TensorError(position, "weight is float64, whose states are not kept in low precision");
  }
  if (!(is_int8 ? rule.supports_int8_state : rule.supports_low_precision_state)) {
    throw TensorError(position, std::string("the states of rule ") + rule.rule +
                                    " are not kept in " + (is_int8 ? "8 bits" : "low precision"));
  }
  if (is_int8 && tensor.rows.length > 0) {
    throw TensorError(position, "gradient holds some rows, expected all with states of 8 bits");
  }
}

bool holds_some_rows(const DeviceTensor& tensor) { return tensor.rows.length > 0; }

std::int64_t gradient_size(const DeviceTensor& tensor) {
  return held_elements(tensor.rows, tensor.size);
}

// One array of a tensor.
struct Array {
  const char* role;
  const void* address;
  std::int64_t count;
  std::int64_t element_size;
  bool is_written;
};

std::vector<Array> arrays_of(const DeviceTensor& tensor, int states) {
  std::vector<Array> arrays;
  const auto add_of = [&](const char* role, const void* address, DType type, std::int64_t count) {
    arrays.push_back({role, address, count, dtype_size(type), true});
  };
  const auto add = [&](const char* role, const void* address, DType type) {
    add_of(role, address, type, tensor.size);
  };
  arrays.push_back(
      {"gradient", tensor.grad, gradient_size(tensor), dtype_size(tensor.type), false});
  if (has_master(tensor)) add("weight", tensor.copy, tensor.type);
  add(has_master(tensor) ? "master" : "weight", tensor.weight, weight_type(tensor));
  for (int k = 0; k < states; ++k) add("state", tensor.states[k], state_type(tensor));
  if (tensor.average != nullptr) add("average", tensor.average, op_math_type(tensor.type));
  if (tensor.low_precision_state && tensor.state_type == DType::int8) {
    add_of("scales", tensor.scales, DType::float32, blocks_of(tensor.size) * states);
  }
  if (holds_some_rows(tensor)) {
    constexpr std::int64_t number_size = sizeof *tensor.rows.numbers;
    arrays.push_back({"row indices", tensor.rows.numbers, tensor.rows.count, number_size, false});
  }
  return arrays;
}

// Returns the range of each tensor's parts among those of a kernel.
std::vector<PartRange> ranges_of(const std::vector<Tile>& parts) {
  std::vector<PartRange> ranges;
  for (std::size_t k = 0; k < parts.size(); ++k) {
    if (ranges.empty() || ranges.back().tensor != parts[k].tensor) {
      ranges.push_back({static_cast<std::int64_t>(k), 0, parts[k].tensor});
    }
    ++ranges.back().count;
  }
  return ranges;
}

void check_place(std::size_t position, const Array& array, int device) {
  const auto address = reinterpret_cast<std::uintptr_t>(array.address);
  if (address % static_cast<std::uintptr_t>(array.element_size) != 0) {
    throw TensorError(position, std::string(array.role) + " begins at address " +
                                    std::to_string(address) + ", expected a multiple of " +
                                    std::to_string(array.element_size));
  }
  const std::string expected = std::string(", expected memory of device ") + std::to_string(device);
  cudaPointerAttributes found{};
  if (cudaPointerGetAttributes(&found, array.address) != cudaSuccess) {
    cudaGetLastError();
    throw TensorError(position,
                      std::string(array.role) + " is memory that CUDA does not know" + expected);
  }
  if (found.type != cudaMemoryTypeDevice && found.type != cudaMemoryTypeManaged) {
    throw TensorError(position, std::string(array.role) + " is memory of the host" + expected);
  }
  if (found.type == cudaMemoryTypeDevice && found.device != device) {
    throw TensorError(position, std::string(array.role) + " is memory of device " +
                                    std::to_string(found.device) + expected);
  }
}

}  // namespace

int rule_named(const std::string& name) {
  const DeviceKernelTable table = kernels_float32();
  for (int k = 0; k < table.count; ++k) {
    if (table.rules[k].rule == name) return k;
  }
  throw std::invalid_argument("there is no rule '" + name + "'");
}

// Tables that depend only on addresses and sizes go to the device once; scalars, when they change.
struct LaunchPlan::Tables {
  Tables(int rule, const std::vector<DeviceTensor>& tensors, int device)
      : rule(rule), tensors(tensors) {
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "number of processors");
  }

  void upload_layout(cudaStream_t stream);
  void upload_rows(const std::vector<double>& scalars, cudaStream_t stream);
  void prepare_sums(cudaStream_t stream);

  template <class Table>
  DeviceMemory uploaded(const Table& table, cudaStream_t stream) {
    const std::size_t bytes = table.size() * sizeof table[0];
    DeviceMemory memory(bytes);
    staging.copy(memory.as<void>(), table.data(), bytes, stream);
    return memory;
  }

  // Tensors of one kernel.
  struct Group {
    const UpdateKernel* kernel;
    unsigned blocks;
    std::int64_t part_count;
    DeviceMemory parts;
    // For rules with sums over each tensor.
    TensorSumKernels::Start start_sums;
    std::int64_t tensor_count;
    DeviceMemory ranges;
  };

  const int rule;
  const std::vector<DeviceTensor>& tensors;
  int processors = 0;
  bool has_layout = false;
  Event done;
  PinnedStaging staging;
  std::vector<Group> groups;
  DeviceMemory entries, device_rows, control;
  // The present rows on the device.
  std::vector<unsigned char> rows;
  std::int64_t row_size = 0;
  // For the row indices of gradients.
  std::int64_t row_part_count = 0;
  DeviceMemory row_parts, refused;
  // For rules with sums over each tensor: the partial sums of the largest group, and what
  // follows from them.
  DeviceMemory part_sums, scales;
  // Created when a step first needs it.
  bool has_sums = false;
  SumTable sums{};
  DeviceMemory sum_parts, chunks, lane_sums, chunk_sums;
};

LaunchPlan::LaunchPlan(int rule, std::vector<DeviceTensor> tensors, int device)
    : rule_(rule), device_(device), tensors_(std::move(tensors)) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const DeviceTensor& tensor = tensors_[i];
    check_low_precision(i, tensor, rule_of(rule_, tensor));
    if (!holds_some_rows(tensor)) continue;
    const std::int64_t total = tensor.size / tensor.rows.length;
    if (total * tensor.rows.length != tensor.size || tensor.rows.count > total) {
      throw TensorError(i, "gradient holds " + std::to_string(tensor.rows.count) + " rows of " +
                               std::to_string(tensor.rows.length) + " elements, the weight has " +
                               std::to_string(tensor.size) + " elements");
    }
  }
  const DeviceGuard current(device_);
  check_memory();
  tables_ = std::make_unique<Tables>(rule_, tensors_, device_);
}

LaunchPlan::~LaunchPlan() {
  int before = 0;
  cudaGetDevice(&before);
  cudaSetDevice(device_);
  try {
    tables_->done.wait();
    // NOLINTNEXTLINE(bugprone-empty-catch): the next CUDA call reports the failure.
  } catch (const std::exception&) {
  }
  tables_.reset();
  cudaSetDevice(before);
}

void LaunchPlan::check_memory() const {
  struct Range {
    std::uintptr_t begin, end;
    std::size_t position;
    Array array;
  };
  std::vector<Range> ranges;
  const int states = rule_of(rule_, Variant::float32).states;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (tensors_[i].size == 0) continue;
    for (const Array& array : arrays_of(tensors_[i], states)) {
      if (array.count == 0) continue;
      check_place(i, array, device_);
      const auto begin = reinterpret_cast<std::uintptr_t>(array.address);
      ranges.push_back(
          {begin, begin + static_cast<std::uintptr_t>(array.count * array.element_size), i, array});
    }
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  // The range that ends last so far, among all and among the written ones.
  const Range* any = nullptr;
  const Range* written = nullptr;
  for (const Range& range : ranges) {
    const Range* const other = range.array.is_written ? any : written;
    if (other != nullptr && other->end > range.begin) {
      throw TensorError(range.position, std::string(range.array.role) + " shares memory with the " +
                                            other->array.role + " of tensor " +
                                            std::to_string(other->position) +
                                            ", expected an array of its own");
    }
    if (any == nullptr || range.end > any->end) any = &range;
    if (range.array.is_written && (written == nullptr || range.end > written->end)) {
      written = &range;
    }
  }
}

void LaunchPlan::Tables::upload_layout(cudaStream_t stream) {
  const int states = rule_of(rule, Variant::float32).states;
  std::vector<TensorEntry> found(tensors.size());
  std::vector<Tile> parts[variants], row_numbers;
  std::int64_t widest = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const DeviceTensor& tensor = tensors[i];
    const auto number = static_cast<std::int32_t>(i);
    const Variant v = variant_of(tensor);
    if (tensor.size > 0) widest = std::max(widest, rule_of(rule, v).row_size);
    TensorEntry& entry = found[i];
    entry = {};
    entry.grad = tensor.grad;
    entry.weight = tensor.weight;
    entry.copy = tensor.copy;
    entry.average = tensor.average;
    entry.scales = tensor.scales;
    entry.rows = tensor.rows;
    entry.size = tensor.size;
    entry.grad_type = tensor.type;
    entry.weight_type = weight_type(tensor);
    entry.state_type = state_type(tensor);
    std::copy_n(tensor.states.begin(), states, entry.states);
    append_tiles(number, tensor.rows.lazy ? gradient_size(tensor) : tensor.size,
                 parts[static_cast<std::size_t>(v)]);
    if (holds_some_rows(tensor)) {
      if (tensor.size > 0) append_tiles(number, tensor.rows.count, row_numbers);
      entry.head = no_vectors;
      continue;
    }
    std::vector<Alignment> alignments;
    for (const Array& array : arrays_of(tensor, states)) {
      alignments.push_back({reinterpret_cast<std::uintptr_t>(array.address), array.element_size});
    }
    entry.head = vector_head(alignments.data(), static_cast<int>(alignments.size()),
                             elements_at_once(dtype_size(entry.grad_type)));
  }

  const TensorSumKernels& sum_kernels = tensor_sum_kernels(rule);
  std::int64_t most_parts = 0;
  std::vector<Group> made;
  for (int v = 0; v < variants; ++v) {
    const std::vector<Tile>& of_variant = parts[v];
    if (of_variant.empty()) continue;
    const auto variant = static_cast<Variant>(v);
    const UpdateKernel& kernel = rule_of(rule, variant).update;
    Group group{};
    group.start_sums = sum_kernels.of(variant);
    if (sum_kernels.sums > 0) {
      const std::vector<PartRange> ranges = ranges_of(of_variant);
      group.tensor_count = static_cast<std::int64_t>(ranges.size());
      group.ranges = uploaded(ranges, stream);
      most_parts = std::max(most_parts, static_cast<std::int64_t>(of_variant.size()));
    }
    group.kernel = &kernel;
    group.part_count = static_cast<std::int64_t>(of_variant.size());
    group.blocks = grid_size(group.part_count, processors, kernel.blocks_per_processor());
    group.parts = uploaded(of_variant, stream);
    made.push_back(std::move(group));
  }
  if (most_parts > 0) {
    const auto numbers = static_cast<std::size_t>(most_parts * sums_per_part * sum_kernels.sums);
    part_sums = DeviceMemory(numbers * sizeof(double));
    scales = DeviceMemory(tensors.size() * static_cast<std::size_t>(sum_kernels.scales) *
                          sizeof(double));
  }
  row_part_count = static_cast<std::int64_t>(row_numbers.size());
  if (row_part_count > 0) {
    row_parts = uploaded(row_numbers, stream);
    refused = uploaded(std::array<std::int32_t, 1>{}, stream);
  }
  constexpr std::int64_t row_alignment = 16;
  row_size = (widest + row_alignment - 1) / row_alignment * row_alignment;
  entries = uploaded(found, stream);
  device_rows = DeviceMemory(static_cast<std::size_t>(row_size) * tensors.size());
  control = uploaded(std::array<StepControl, 1>{}, stream);
  groups = std::move(made);
  has_layout = true;
}

void LaunchPlan::Tables::upload_rows(const std::vector<double>& scalars, cudaStream_t stream) {
  std::vector<unsigned char> found(static_cast<std::size_t>(row_size) * tensors.size());
  const double* from = scalars.data();
  unsigned char* to = found.data();
  for (const DeviceTensor& tensor : tensors) {
    const DeviceRuleKernels& kernels = rule_of(rule, tensor);
    if (tensor.size > 0) kernels.write_row(from, to);
    from += kernels.scalars;
    to += row_size;
  }
  if (found == rows) return;
  rows.clear();
  staging.copy(device_rows.as<void>(), found.data(), found.size(), stream);
  rows = std::move(found);
}

void LaunchPlan::Tables::prepare_sums(cudaStream_t stream) {
  std::vector<std::int64_t> sizes;
  std::vector<bool> converted;
  for (const DeviceTensor& tensor : tensors) {
    sizes.push_back(gradient_size(tensor));
    converted.push_back(is_converted(tensor.type));
  }
  const Sums found = sums_of(sizes, converted);
  sum_parts = uploaded(found.parts, stream);
  chunks = uploaded(found.chunks, stream);
  const auto chunk_count = static_cast<std::int64_t>(found.chunks.size()) - 1;
  lane_sums = DeviceMemory(static_cast<std::size_t>(found.segments * sum_lanes) * sizeof(double));
  chunk_sums = DeviceMemory(static_cast<std::size_t>(chunk_count) * sizeof(double));
  sums.parts = sum_parts.as<SumTile>();
  sums.part_count = static_cast<std::int64_t>(found.parts.size());
  sums.threads = found.threads;
  sums.chunks = chunks.as<std::int64_t>();
  sums.chunk_count = chunk_count;
  sums.tensors = entries.as<TensorEntry>();
  sums.lane_sums = lane_sums.as<double>();
  sums.chunk_sums = chunk_sums.as<double>();
  sums.control = control.as<StepControl>();
  sums.refused = refused.as<std::int32_t>();
  has_sums = true;
}

void LaunchPlan::update(const std::vector<double>& scalars, const StepOptions& options,
                        cudaStream_t stream) {
  if (tensors_.empty()) return;
  const auto columns = static_cast<std::size_t>(rule_of(rule_, Variant::float32).scalars);
  if (scalars.size() != tensors_.size() * columns) {
    throw std::invalid_argument("got " + std::to_string(scalars.size()) + " scalars, expected " +
                                std::to_string(columns) + " for each of " +
                                std::to_string(tensors_.size()) + " tensors");
  }
  const std::scoped_lock lock(mutex_);
  const DeviceGuard current(device_);
  Tables& tables = *tables_;
  tables.done.stream_wait(stream);
  if (!tables.has_layout) tables.upload_layout(stream);
  tables.upload_rows(scalars, stream);
  if (tables.row_part_count > 0) {
    const RowTable rows{tables.row_parts.as<Tile>(), tables.row_part_count,
                        tables.entries.as<TensorEntry>(), tables.refused.as<std::int32_t>()};
    start_row_check(rows, tables.processors, stream);
  }
  if (options.any()) {
    if (!tables.has_sums) tables.prepare_sums(stream);
    SumTable sums = tables.sums;
    sums.rescale_grad = scalars[rescale_grad_scalar];
    sums.options = options;
    start_sums(sums, tables.processors, stream);
  }
  for (const Tables::Group& group : tables.groups) {
    const UpdateTable table{group.parts.as<Tile>(),
                            group.part_count,
                            tables.entries.as<TensorEntry>(),
                            tables.device_rows.as<unsigned char>(),
                            tables.row_size,
                            options.any() ? tables.control.as<StepControl>() : nullptr,
                            tables.refused.as<std::int32_t>(),
                            tables.scales.as<double>()};
    if (group.tensor_count > 0) {
      const TensorSumTable sums{table, group.ranges.as<PartRange>(), group.tensor_count,
                                tables.part_sums.as<double>()};
      group.start_sums(sums, tables.processors, stream);
    }
    group.kernel->start(table, group.blocks, stream);
  }
  tables.done.record(stream);
  if (tables.row_part_count > 0) check_rows();
}

void LaunchPlan::check_rows() const {
  tables_->done.wait();
  std::int32_t* const there = tables_->refused.as<std::int32_t>();
  const auto copy = [](void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    check(cudaMemcpy(to, from, bytes, kind), "copy of row indices");
  };
  std::int32_t refused = 0;
  copy(&refused, there, sizeof refused, cudaMemcpyDeviceToHost);
  if (refused == 0) return;
  refused = 0;
  copy(there, &refused, sizeof refused, cudaMemcpyHostToDevice);
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const SparseRows& rows = tensors_[i].rows;
    if (!holds_some_rows(tensors_[i]) || rows.count == 0) continue;
    std::vector<std::int64_t> numbers(static_cast<std::size_t>(rows.count));
    copy(numbers.data(), rows.numbers, numbers.size() * sizeof numbers[0], cudaMemcpyDeviceToHost);
    try {
      mxadamax::check_rows(numbers.data(), rows.count, tensors_[i].size / rows.length);
    } catch (const std::runtime_error& error) {
      throw TensorError(i, error.what());
    }
  }
  throw std::runtime_error("row indices have changed while they were used");
}

StepControl LaunchPlan::report() const {
  const std::scoped_lock lock(mutex_);
  StepControl control{};
  control.norm = std::numeric_limits<double>::quiet_NaN();
  const DeviceGuard current(device_);
  tables_->done.wait();
  if (!tables_->has_sums) return control;
  check(cudaMemcpy(&control, tables_->control.as<StepControl>(), sizeof control,
                   cudaMemcpyDeviceToHost),
        "copy from the device");
  return control;
}

}  // namespace mxadamax::cuda
