// SPDX-License-Identifier: Apache-2.0
#include "batch.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>

#include "dlpack.h"
#include "few_bits.h"
#include "row_sparse.h"
#include "rows.h"

namespace mxadamax::engine {
namespace {

// MXNet's numbers.
constexpr int cpu_device = 1;
constexpr int gpu_device = 2;
constexpr int default_storage = 0;
constexpr int row_sparse_storage = 1;
constexpr int float32_dtype = 0;
constexpr int float64_dtype = 1;
constexpr int float16_dtype = 2;
constexpr int uint8_dtype = 3;
constexpr int int8_dtype = 5;
constexpr int int64_dtype = 6;
constexpr int bfloat16_dtype = 12;

bool is_supported(int dtype) {
  return dtype == float32_dtype || dtype == float64_dtype || dtype == float16_dtype ||
         dtype == bfloat16_dtype;
}

Stored stored(int dtype) {
  return dtype == float64_dtype    ? Stored::float64
         : dtype == float16_dtype  ? Stored::float16
         : dtype == bfloat16_dtype ? Stored::bfloat16
                                   : Stored::float32;
}

std::string dtype_name(int dtype) {
  static const char* const names[] = {"float32", "float64", "float16", "uint8", "int32",
                                      "int8",    "int64",   "bool",    "int16", "uint16",
                                      "uint32",  "uint64",  "bfloat16"};
  constexpr int count = sizeof names / sizeof *names;
  return dtype >= 0 && dtype < count ? names[dtype] : "of number " + std::to_string(dtype);
}

// What an array is to its parameter.
enum Role : std::size_t {
  weight_role,
  gradient_role,
  master_role,
  average_role,
  scales_role,
  state_role
};

const char* role_name(std::size_t role) {
  static const char* const names[] = {"weight",  "gradient", "master weight", "average", "scales",
                                      "state 0", "state 1",  "state 2",       "state 3"};
  static_assert(sizeof names / sizeof *names == state_role + max_states, "one name for each array");
  return names[role];
}

bool is_short(int dtype) { return dtype == float16_dtype || dtype == bfloat16_dtype; }

std::string storage_name(int storage) {
  return storage == 1   ? "row_sparse"
         : storage == 2 ? "csr"
                        : "of number " + std::to_string(storage);
}

int dtype_of(Handle array) {
  int dtype = -1;
  check(api().MXNDArrayGetDType(array, &dtype));
  return dtype;
}

int storage_of(Handle array) {
  int storage = -1;
  check(api().MXNDArrayGetStorageType(array, &storage));
  return storage;
}

// Whether a weight or gradient is row_sparse; refuses what is neither that nor dense.
bool check_storage(std::size_t position, const char* what, Handle array) {
  const int storage = storage_of(array);
  if (storage == default_storage) return false;
  if (storage != row_sparse_storage || !row_indices_found()) {
    throw ParameterError(position, std::string(what) + " is " + storage_name(storage) +
                                       ", expected a dense array (storage type 'default')" +
                                       (row_indices_found() ? " or a row_sparse one" : ""));
  }
  int type = -1;
  check(api().MXNDArrayGetAuxType(array, 0, &type));
  if (type != int64_dtype) {
    throw ParameterError(position, std::string(what) + " has row numbers of dtype " +
                                       dtype_name(type) + ", expected int64");
  }
  return true;
}

void check_dense(std::size_t position, const char* what, Handle array) {
  const int storage = storage_of(array);
  if (storage == default_storage) return;
  throw ParameterError(position, std::string(what) + " is " + storage_name(storage) +
                                     ", expected a dense array (storage type 'default')");
}

std::string place_name(const Place& place) {
  return is_gpu(place) ? "gpu(" + std::to_string(place.device_id) + ")" : "host memory";
}

// Turns autograd off on this thread for as long as it lives: what the update does to weights is no
// part of what a user records.
class NotRecording {
 public:
  NotRecording() { check(api().MXAutogradSetIsRecording(0, &before_)); }
  ~NotRecording() {
    int ignored = 0;
    api().MXAutogradSetIsRecording(before_, &ignored);
  }
  NotRecording(const NotRecording&) = delete;
  NotRecording& operator=(const NotRecording&) = delete;

 private:
  int before_ = 0;
};

// Lets the engine join what this thread pushes into one operation, for as long as it lives. The
// engine takes memory for as many at once.
class OneOperation {
 public:
  explicit OneOperation(std::size_t most) {
    check(api().MXEngineSetBulkSize(static_cast<int>(most), &before_));
  }
  ~OneOperation() {
    int ignored = 0;
    api().MXEngineSetBulkSize(before_, &ignored);
  }
  OneOperation(const OneOperation&) = delete;
  OneOperation& operator=(const OneOperation&) = delete;

 private:
  int before_ = 0;
};

// Brings a weight into MXNet's plain layout, in the order of the engine, without waiting.
//
// In evaluation mode oneDNN's layers leave a weight in a blocked layout of their own. They do so by
// an operation that the forward pass queues when it runs, so whether it is still to come cannot be
// seen from here, and inside our own operation it could not be undone: it would wait for the array
// that the operation holds. An MXNet operator that writes part of the array undoes it, and
// completing that write makes MXNet drop every reordering queued later by a forward pass from
// before it. A cast to the type that it has leaves all bits as they are; arithmetic would not,
// since MXNet 2 lets the processor take subnormal numbers for zero.
void restore_layout(Handle weight, int dtype) {
  static void* const cast = [] {
    void* op = nullptr;
    check(api().NNGetOpHandle("Cast", &op));
    return op;
  }();
  Handle slice = nullptr;
  check(api().MXNDArraySlice(weight, 0, 1, &slice));
  const Array owner(slice);
  const char* key = "dtype";
  const std::string type = dtype_name(dtype);
  const char* value = type.c_str();
  int outputs = 1;
  Handle* out = &slice;
  const int* storage_types = nullptr;
  check(api().MXImperativeInvoke(cast, 1, &slice, &outputs, &out, 1, &key, &value, &storage_types));
}

// The address of an array that may be in a layout of oneDNN's. Unlike MXNDArrayGetData, which would
// then wait for ever inside an operation, this fails.
void* checked_address_of(Handle array, std::int64_t size) {
  const DlpackView view(array);
  const std::int64_t found =
      std::accumulate(view->shape, view->shape + view->ndim, std::int64_t{1}, std::multiplies<>());
  if (found != size) {
    throw std::runtime_error("an array of " + std::to_string(size) +
                             " elements has become one of " + std::to_string(found) +
                             " while its update was waiting");
  }
  return view->data;
}

void* address_of(Handle array) {
  void* data = nullptr;
  check(api().MXNDArrayGetData(array, &data));
  return data;
}

// A gradient that is zero.
const std::vector<double>& zeros() {
  static const std::vector<double> elements(Chunks::length);
  return elements;
}

// What a gradient holds, of all rows of its weight or of some.
struct Gradient {
  const void* data;
  HeldRows rows;
};

// Adds what a gradient updates of a tensor: all of it, or with some rows alone these, or unless
// lazy the others as well, whose gradient is zero.
void add_parts(cpu::Tensor whole, const Gradient& gradient, std::vector<cpu::Tensor>& parts) {
  const HeldRows& rows = gradient.rows;
  const std::int64_t length = rows.length;
  if (length == 0) {
    whole.grad = gradient.data;
    parts.push_back(whole);
    return;
  }
  const auto add = [&](std::int64_t first, std::int64_t size, const void* grad) {
    parts.push_back(cpu::part_of(whole, first, size, grad));
  };
  const auto add_zeros = [&](std::int64_t from_row, std::int64_t to_row) {
    if (rows.lazy) return;
    const auto most = static_cast<std::int64_t>(zeros().size());
    for (std::int64_t first = from_row * length; first < to_row * length; first += most) {
      add(first, std::min(most, to_row * length - first), zeros().data());
    }
  };

  const std::int64_t total = whole.size / length;
  check_rows(rows.numbers, rows.count, total);
  std::int64_t next = 0;
  for (std::int64_t k = 0; k < rows.count;) {
    const std::int64_t row = rows.numbers[k];
    // Rows that follow one another do so in the gradient as well.
    std::int64_t end = k + 1;
    while (end < rows.count && rows.numbers[end] == row + end - k) ++end;
    add_zeros(next, row);
    add(row * length, (end - k) * length, cpu::moved(gradient.data, whole.grad_type, k * length));
    next = row + end - k;
    k = end;
  }
  add_zeros(next, total);
}

// Calls body() and lets nothing but std::runtime_error out: the engine turns a std::exception into
// an MXNetError at the next wait and ends the process on anything else.
template <class Body>
void run_in_engine(const char* rule, Body&& body) {
  const std::string prefix = std::string("mxadamax, rule ") + rule + ": ";
  try {
    body();
  } catch (const std::exception& error) {
    throw std::runtime_error(prefix + error.what());
  } catch (...) {
    throw std::runtime_error(prefix + "unknown failure");
  }
}

// Pushes a task that the engine runs once through `run` and then deletes.
template <class Task>
void push_task(std::unique_ptr<const Task> task, const Place& place, std::vector<Handle>& read,
               std::vector<Handle>& written, const char* name) {
  const std::int32_t context[2] = {place.device_type, place.device_id};
  const int status = api().MXEnginePushSyncND(
      [](void* context, void* task) {
        static_cast<const Task*>(task)->run(*static_cast<const RunContext*>(context));
      },
      const_cast<Task*>(task.get()), [](void* task) { delete static_cast<const Task*>(task); },
      context, read.data(), static_cast<int>(read.size()), written.data(),
      static_cast<int>(written.size()), nullptr, 0, name);
  // The engine owns the task from the call on, also when it failed while running it.
  task.release();
  check(status);
}

}  // namespace

Place place_of(Handle array) {
  Place place{};
  check(api().MXNDArrayGetContext(array, &place.device_type, &place.device_id));
  if (is_gpu(place)) return place;
  return {cpu_device, place.device_type == cpu_device ? place.device_id : 0};
}

bool is_gpu(const Place& place) { return place.device_type == gpu_device; }

Shape::Shape(Handle array) {
  const std::int64_t* data = nullptr;
  check(api().MXNDArrayGetShape64(array, &ndim, &data));
  if (ndim < 0 || ndim > most_dims) throw std::runtime_error("an array of unknown shape");
  std::copy(data, data + ndim, dims);
}

Shape::Shape(std::int64_t rows, std::int64_t columns) : ndim(2), dims{rows, columns} {}

bool Shape::operator==(const Shape& other) const {
  return ndim == other.ndim && std::equal(dims, dims + ndim, other.dims);
}

std::int64_t Shape::size() const {
  return std::accumulate(dims, dims + ndim, std::int64_t{1}, std::multiplies<>());
}

std::string Shape::text() const {
  std::string list;
  for (int k = 0; k < ndim; ++k) list += (k == 0 ? "" : ", ") + std::to_string(dims[k]);
  return "(" + list + (ndim == 1 ? ",)" : ")");
}

// A batch on its way through the engine.
struct Operation {
  Batch batch;
  std::vector<std::vector<double>> tables;
  StepOptions options;
  // In the end counted as finished, also where the engine never runs it after a failure.
  struct Finish {
    std::shared_ptr<StepReport> report;
    Finish(Finish&&) = default;
    ~Finish() {
      if (report) ++report->finished;
    }
  };
  mutable Finish finish;

  void run(const RunContext& context) const {
    const Finish now = std::move(finish);
    run_in_engine(batch.rule_.rule, [&] {
      if (batch.device_kernels_ != nullptr) {
        update_on_device(context);
      } else {
        update_on_host();
      }
    });
  }

  void update_on_host() const {
    std::vector<double> clipped;
    const double* row = table().data();
    std::vector<cpu::Tensor> tensors;
    tensors.reserve(batch.size());
    // Each in one piece: their norm depends neither on which rows they hold nor on what is done to
    // the others.
    std::vector<cpu::Tensor> gradients;
    for (const Batch::Parameter& parameter : batch.parameters_) {
      if (parameter.size > 0) {
        cpu::Tensor tensor = tensor_of(parameter);
        tensor.scalars = row;
        const Gradient gradient = gradient_of(parameter);
        add_parts(tensor, gradient, tensors);
        if (has_option()) {
          tensor.grad = gradient.data;
          tensor.size = held_elements(gradient.rows, parameter.size);
          gradients.push_back(tensor);
        }
      }
      row += batch.rule_.scalars;
    }
    if (has_option()) {
      const double norm =
          std::abs(table()[rescale_grad_scalar]) * cpu::gradient_norm(batch.rule_, gradients);
      options.report->gradient_norm = norm;
      // A sum of squares of float64 numbers may overflow.
      if (options.skip_nonfinite && !std::isfinite(norm) &&
          !cpu::gradients_finite(batch.rule_, gradients)) {
        ++options.report->skipped;
        return;
      }
      if (options.clip_global_norm) clipped = clip(tensors, norm);
    }
    cpu::update(batch.rule_, tensors);
  }

  // Waits for the device: MXNet 1 takes an operation that has returned for one that is done, and
  // the next step's table depends on what this one has found.
  void update_on_device(const RunContext& context) const {
    std::vector<DeviceTensor> tensors;
    tensors.reserve(batch.size());
    for (const Batch::Parameter& parameter : batch.parameters_) {
      tensors.push_back(device_tensor(parameter));
    }
    DeviceStep step{};
    step.scalars = table().data();
    step.scalar_count = static_cast<std::int64_t>(table().size());
    step.clip_global_norm =
        options.clip_global_norm.value_or(std::numeric_limits<double>::quiet_NaN());
    step.skip_nonfinite = options.skip_nonfinite;
    if (is_gpu(batch.place_) && context.stream != nullptr) {
      step.stream = *static_cast<void* const*>(context.stream);
    }
    const DeviceReport found =
        batch.device_batches_->update(*batch.device_kernels_, batch.rule_.rule, tensors,
                                      is_gpu(batch.place_) ? batch.place_.device_id : 0, step);
    if (!has_option()) return;
    options.report->gradient_norm = found.norm;
    if (found.skipped) ++options.report->skipped;
  }

  bool has_option() const { return options.clip_global_norm || options.skip_nonfinite; }

  const std::vector<double>& table() const {
    if (!options.skip_nonfinite) return tables[0];
    return tables.at(static_cast<std::size_t>(options.report->skipped - options.skipped_before));
  }

  // Where the gradients, of this norm after rescaling, have a larger one than is allowed: scalars
  // with which they do not, to which it points the tensors.
  std::vector<double> clip(std::vector<cpu::Tensor>& tensors, double norm) const {
    // NaN goes through.
    if (norm <= *options.clip_global_norm) return {};
    const std::vector<double>& scalars = table();
    std::vector<double> clipped = scalars;
    const double factor = *options.clip_global_norm / norm;
    for (std::size_t first = 0; first < clipped.size();
         first += static_cast<std::size_t>(batch.rule_.scalars)) {
      clipped[first + rescale_grad_scalar] *= factor;
    }
    for (cpu::Tensor& tensor : tensors) {
      tensor.scalars = clipped.data() + (tensor.scalars - scalars.data());
    }
    return clipped;
  }

  DeviceTensor device_tensor(const Batch::Parameter& p) const {
    DeviceTensor tensor{};
    tensor.type = stored(p.dtype);
    tensor.size = p.size;
    if (p.size == 0) return tensor;
    const cpu::Tensor found = tensor_of(p);
    const Gradient gradient = gradient_of(p);
    tensor.grad = gradient.data;
    tensor.rows = gradient.rows;
    tensor.weight = found.weight;
    std::copy(found.states, found.states + max_states, tensor.states.begin());
    tensor.copy = found.copy;
    tensor.average = found.average;
    tensor.in_few_bits = found.at_random;
    tensor.state_type = found.state_type;
    tensor.scales = found.scales;
    return tensor;
  }

  // A parameter's arrays but for the gradient.
  cpu::Tensor tensor_of(const Batch::Parameter& p) const {
    cpu::Tensor tensor{};
    tensor.compute = p.dtype == float64_dtype ? Compute::float64 : Compute::float32;
    tensor.size = p.size;
    tensor.grad_type = stored(p.dtype);
    auto array = p.state->arrays.begin();
    if (p.has_master) {
      tensor.weight = address_of((array++)->get());
      tensor.weight_type = tensor.state_type = Stored::float32;
      tensor.copy = weight_address(p);
      tensor.copy_type = stored(p.dtype);
    } else {
      tensor.weight = weight_address(p);
      tensor.weight_type = tensor.state_type = stored(p.dtype);
    }
    const StateFormat& format = batch.format_;
    if (format.low_bit) {
      tensor.state_type = *format.low_bit;
      tensor.at_random = true;
    }
    for (int k = 0; k < batch.rule_.states; ++k) tensor.states[k] = address_of((array++)->get());
    if (format.low_bit == Stored::int8) {
      tensor.scales = static_cast<float*>(address_of((array++)->get()));
    }
    if (format.average) tensor.average = address_of((array++)->get());
    return tensor;
  }

  Gradient gradient_of(const Batch::Parameter& p) const {
    if (p.grad_in_rows) {
      const Rows rows = rows_of(p.grad.get());
      return {rows.data, {rows.indices, rows.count, p.size / p.shape.dims[0], batch.lazy_}};
    }
    return {p.is_matrix ? checked_address_of(p.grad.get(), p.size) : address_of(p.grad.get()), {}};
  }

  static void* weight_address(const Batch::Parameter& p) {
    if (!p.weight_in_rows) {
      return p.is_matrix ? checked_address_of(p.weight.get(), p.size) : address_of(p.weight.get());
    }
    const Rows rows = rows_of(p.weight.get());
    if (rows.count != p.shape.dims[0]) {
      throw std::runtime_error("a row_sparse weight holds " + std::to_string(rows.count) +
                               " rows, expected all of its " + std::to_string(p.shape.dims[0]));
    }
    return const_cast<void*>(rows.data);
  }
};

// Refuses an array that is somewhere else than the first weight.
void Batch::check_place(std::size_t position, const char* what, Handle array) const {
  const Place place = place_of(array);
  if (is_gpu(place) == is_gpu(place_) && (!is_gpu(place) || place.device_id == place_.device_id)) {
    return;
  }
  const std::string expected =
      is_gpu(place_) ? place_name(place_) : "an array in host memory (mx.cpu())";
  throw ParameterError(position, std::string(what) + " is " + (is_gpu(place) ? "on " : "in ") +
                                     place_name(place) + ", expected " + expected +
                                     ", as the first weight of this step is there");
}

// Refuses an array that is not of this shape and type. `like` introduces what is expected.
void Batch::check_like(std::size_t position, const char* what, Handle array, const Shape& shape,
                       int dtype, const char* like, const char* shape_like) const {
  check_place(position, what, array);
  const Shape found(array);
  if (!(found == shape)) {
    throw ParameterError(position, std::string(what) + " has shape " + found.text() + ", " +
                                       shape_like + shape.text());
  }
  const int found_dtype = dtype_of(array);
  if (found_dtype != dtype) {
    throw ParameterError(position, std::string(what) + " has dtype " + dtype_name(found_dtype) +
                                       ", " + like + dtype_name(dtype));
  }
}

void Batch::add(Handle weight, Handle grad) {
  const std::size_t position = size();
  const bool weight_in_rows = check_storage(position, role_name(weight_role), weight);
  const bool grad_in_rows = check_storage(position, role_name(gradient_role), grad);
  if (position == 0) place_ = place_of(weight);
  check_place(position, role_name(weight_role), weight);
  const int dtype = dtype_of(weight);
  if (!is_supported(dtype)) {
    throw ParameterError(position, "weight has dtype " + dtype_name(dtype) +
                                       ", expected float32, float64, float16 or bfloat16");
  }
  const Shape shape(weight);
  check_like(position, role_name(gradient_role), grad, shape, dtype, "weight has ");
  if (format_.low_bit && dtype == float64_dtype) {
    throw ParameterError(position,
                         "weight has dtype float64, expected float32, float16 or bfloat16 with "
                         "state_dtype");
  }
  if (format_.low_bit == Stored::int8 && grad_in_rows) {
    throw ParameterError(position,
                         "gradient is row_sparse, expected a dense array with state_dtype='int8'");
  }
  const std::int64_t elements = shape.size();
  // oneDNN's layouts exist for these types and for layers whose weights are matrices or larger.
  const bool is_matrix = !is_gpu(place_) && (dtype == float32_dtype || dtype == bfloat16_dtype) &&
                         shape.ndim >= 2 && elements > 0;
  const bool has_master = format_.multi_precision && is_short(dtype);
  parameters_.push_back({shape, elements, dtype, has_master, is_matrix, weight_in_rows,
                         grad_in_rows, Array::share(weight), Array::share(grad), nullptr});
}

// What an array of a state must be.
struct Batch::Expected {
  std::size_t role;
  int dtype;
  Shape shape;
  const char* like;
  const char* shape_like = "weight has ";
};

std::vector<Batch::Expected> Batch::expected_state() const {
  const Parameter& p = parameters_.back();
  const int computed = p.dtype == float64_dtype ? float64_dtype : float32_dtype;
  const char* const other = "expected ";
  const char* const like = p.has_master ? other : "weight has ";
  std::vector<Expected> list;
  if (p.has_master) list.push_back({master_role, computed, p.shape, like});
  for (int k = 0; k < rule_.states; ++k) {
    const std::size_t role = state_role + static_cast<std::size_t>(k);
    if (!format_.low_bit) {
      list.push_back({role, p.has_master ? computed : p.dtype, p.shape, like});
    } else if (format_.low_bit == Stored::int8) {
      list.push_back({role, k == 0 ? int8_dtype : uint8_dtype, p.shape, other});
    } else {
      const bool half = format_.low_bit == Stored::float16;
      list.push_back({role, half ? float16_dtype : bfloat16_dtype, p.shape, other});
    }
  }
  if (format_.low_bit == Stored::int8) {
    const Shape shape(scaled_blocks_of(p.size), scales_of_block);
    list.push_back({scales_role, float32_dtype, shape, other, other});
  }
  if (format_.average) {
    list.push_back({average_role, computed, p.shape, p.dtype == computed ? "weight has " : other});
  }
  return list;
}

std::shared_ptr<const State> Batch::add_state(const std::vector<Handle>& arrays) {
  Parameter& parameter = parameters_.back();
  const std::vector<Expected> expected = expected_state();
  State state{parameter.shape, parameter.dtype, format_, {}};
  state.arrays.reserve(arrays.size());
  for (std::size_t k = 0; k < arrays.size(); ++k) {
    const char* const role = role_name(expected[k].role);
    check_dense(size() - 1, role, arrays[k]);
    check_like(size() - 1, role, arrays[k], expected[k].shape, expected[k].dtype, expected[k].like,
               expected[k].shape_like);
    state.arrays.push_back(Array::share(arrays[k]));
  }
  parameter.state = std::make_shared<const State>(std::move(state));
  return parameter.state;
}

bool Batch::reuse_state(const std::shared_ptr<const State>& state) {
  Parameter& parameter = parameters_.back();
  const bool fits = state->weight_dtype == parameter.dtype && state->format == format_ &&
                    state->shape == parameter.shape;
  if (fits) parameter.state = state;
  return fits;
}

void Batch::check_memory() const {
  struct User {
    const void* memory;
    std::size_t parameter;
    std::size_t role;
  };
  // A hash table with open addressing, at most half full.
  std::size_t slots = 16;
  while (slots < 2 * size() * (5 + static_cast<std::size_t>(rule_.states))) slots *= 2;
  std::vector<User> users(slots, User{nullptr, 0, 0});

  const auto enter = [&](const Array& array, std::size_t parameter, std::size_t role) {
    const void* const memory = memory_of(array.get());
    if (memory == nullptr) {
      throw ParameterError(
          parameter, std::string(role_name(role)) + " has no memory; was the array initialized?");
    }
    std::size_t slot = std::hash<const void*>()(memory) / alignof(std::max_align_t);
    for (;; ++slot) {
      User& user = users[slot & (slots - 1)];
      if (user.memory == nullptr) {
        user = {memory, parameter, role};
        return;
      }
      if (user.memory == memory) {
        if (role == gradient_role && user.role == gradient_role) return;
        throw ParameterError(parameter,
                             std::string(role_name(role)) + " shares memory with the " +
                                 role_name(user.role) + " of {other}, expected an array of its own",
                             user.parameter);
      }
    }
  };
  for (std::size_t i = 0; i < size(); ++i) {
    const Parameter& parameter = parameters_[i];
    enter(parameter.weight, i, weight_role);
    enter(parameter.grad, i, gradient_role);
    std::size_t k = 0;
    const std::vector<Array>& arrays = parameter.state->arrays;
    if (parameter.has_master) enter(arrays[k++], i, master_role);
    for (int state = 0; state < rule_.states; ++state) {
      enter(arrays[k++], i, state_role + static_cast<std::size_t>(state));
    }
    if (format_.low_bit == Stored::int8) enter(arrays[k++], i, scales_role);
    if (format_.average) enter(arrays[k++], i, average_role);
  }
}

void Batch::restore_layouts() const {
  const NotRecording not_recording;
  const OneOperation one_operation(size());
  for (const Parameter& parameter : parameters_) {
    if (parameter.is_matrix && !parameter.weight_in_rows)
      restore_layout(parameter.weight.get(), parameter.dtype);
  }
}

void Batch::push(std::vector<std::vector<double>> tables, StepOptions options) && {
  if (parameters_.empty()) return;
  std::vector<Handle> read;
  std::vector<Handle> written;
  read.reserve(size());
  written.reserve(size() * (4 + static_cast<std::size_t>(rule_.states)));
  for (const Parameter& parameter : parameters_) {
    read.push_back(parameter.grad.get());
    written.push_back(parameter.weight.get());
    for (const Array& array : parameter.state->arrays) written.push_back(array.get());
  }
  restore_layouts();
  const Place place = place_;
  const char* const name = rule_.rule;
  const auto report = options.report;
  push_task(std::unique_ptr<const Operation>(
                new Operation{std::move(*this), std::move(tables), std::move(options), {report}}),
            place, read, written, name);
  pushed_ = true;
}

namespace {

struct Failure {
  std::vector<Array> arrays;
  std::string message;
  void run(const RunContext&) const { throw std::runtime_error(message); }
};

}  // namespace

void push_failure(const std::vector<Handle>& arrays, const std::string& message) {
  auto task = std::make_unique<Failure>();
  task->message = message;
  std::vector<Handle> read;
  std::vector<Handle> written;
  std::vector<const void*> seen;
  for (const Handle array : arrays) {
    const void* memory = memory_of(array);
    if (memory == nullptr || std::find(seen.begin(), seen.end(), memory) != seen.end()) continue;
    seen.push_back(memory);
    task->arrays.push_back(Array::share(array));
    written.push_back(task->arrays.back().get());
  }
  if (written.empty()) return;
  push_task(std::unique_ptr<const Failure>(std::move(task)), Place{cpu_device, 0}, read, written,
            "mxadamax failure");
}

}  // namespace mxadamax::engine
