#include "batch.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>

namespace mxadamax::engine {
namespace {

// MXNet's numbers.
constexpr int cpu_device = 1;
constexpr int gpu_device = 2;
constexpr int default_storage = 0;
constexpr int float32_dtype = 0;
constexpr int float64_dtype = 1;

std::string dtype_name(int dtype) {
  static const char* const names[] = {"float32", "float64", "float16", "uint8",  "int32",
                                      "int8",    "int64",   "bool",    "int16",  "uint16",
                                      "uint32",  "uint64",  "bfloat16"};
  constexpr int count = sizeof names / sizeof *names;
  return dtype >= 0 && dtype < count ? names[dtype] : "of number " + std::to_string(dtype);
}

// What an array is to its parameter, in the order in which a batch holds them.
const char* role_name(std::size_t k) {
  static const char* const names[] = {"weight", "gradient", "state 0", "state 1", "state 2", "state 3"};
  static_assert(sizeof names / sizeof *names == 2 + cpu::max_states, "one name for each array");
  return names[k];
}

std::string storage_name(int storage) {
  return storage == 1 ? "row_sparse" : storage == 2 ? "csr" : "of number " + std::to_string(storage);
}

struct Shape {
  static constexpr int most_dims = 32;
  int ndim = 0;
  std::int64_t dims[most_dims];

  explicit Shape(Handle array) {
    const std::int64_t* data = nullptr;
    check(api().MXNDArrayGetShape64(array, &ndim, &data));
    if (ndim < 0 || ndim > most_dims) throw std::runtime_error("an array of unknown shape");
    std::copy(data, data + ndim, dims);
  }

  bool operator==(const Shape& other) const {
    return ndim == other.ndim && std::equal(dims, dims + ndim, other.dims);
  }

  std::int64_t size() const {
    return std::accumulate(dims, dims + ndim, std::int64_t{1}, std::multiplies<>());
  }

  std::string text() const {
    std::string list;
    for (int k = 0; k < ndim; ++k) list += (k == 0 ? "" : ", ") + std::to_string(dims[k]);
    return "(" + list + (ndim == 1 ? ",)" : ")");
  }
};

int dtype_of(Handle array) {
  int dtype = -1;
  check(api().MXNDArrayGetDType(array, &dtype));
  return dtype;
}

// What must hold for each array by itself. Returns the device's number.
int check_array(std::size_t position, const char* what, Handle array) {
  int storage = -1;
  check(api().MXNDArrayGetStorageType(array, &storage));
  if (storage != default_storage) {
    throw ParameterError(position, std::string(what) + " is " + storage_name(storage) +
                                       ", expected a dense array (storage type 'default')");
  }
  int device = 0;
  int id = 0;
  check(api().MXNDArrayGetContext(array, &device, &id));
  if (device == gpu_device) {
    throw ParameterError(position, std::string(what) + " is on gpu(" + std::to_string(id) +
                                       "), expected an array in host memory (mx.cpu())");
  }
  return device == cpu_device ? id : 0;
}

// A gradient or state must be like its weight.
void check_like(std::size_t position, const char* what, Handle array, const Shape& shape, int dtype) {
  check_array(position, what, array);
  const Shape found(array);
  if (!(found == shape)) {
    throw ParameterError(position,
                         std::string(what) + " has shape " + found.text() + ", weight has " + shape.text());
  }
  const int found_dtype = dtype_of(array);
  if (found_dtype != dtype) {
    throw ParameterError(position, std::string(what) + " has dtype " + dtype_name(found_dtype) +
                                       ", weight has " + dtype_name(dtype));
  }
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

// Lets the engine join what this thread pushes into one operation, for as long as it lives.
class OneOperation {
 public:
  OneOperation() { check(api().MXEngineSetBulkSize(std::numeric_limits<int>::max(), &before_)); }
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
// In evaluation mode oneDNN's layers leave a weight in a blocked layout of their own. They do so by an
// operation that the forward pass queues when it runs, so whether it is still to come cannot be seen
// from here, and inside our own operation it could not be undone: it would wait for the array that
// the operation holds. An MXNet operator that writes part of the array undoes it, and completing that
// write makes MXNet drop every reordering queued later by a forward pass from before it. Multiplying
// by one leaves all values as they are.
void restore_layout(Handle weight) {
  static void* const multiply = [] {
    void* op = nullptr;
    check(api().NNGetOpHandle("_mul_scalar", &op));
    return op;
  }();
  Handle slice = nullptr;
  check(api().MXNDArraySlice(weight, 0, 1, &slice));
  const Array owner(slice);
  const char* key = "scalar";
  const char* value = "1.0";
  int outputs = 1;
  Handle* out = &slice;
  const int* storage_types = nullptr;
  check(api().MXImperativeInvoke(multiply, 1, &slice, &outputs, &out, 1, &key, &value,
                                 &storage_types));
}

// The beginning of DLPack's DLManagedTensor.
struct DLTensor {
  void* data;
  std::int32_t device_type, device_id, ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  const std::int64_t* shape;
};

// The address of an array that may be in a layout of oneDNN's. Unlike MXNDArrayGetData, which would then
// wait for ever inside an operation, this fails.
void* checked_address_of(Handle array, std::int64_t size) {
  void* managed = nullptr;
  check(api().MXNDArrayToDLPack(array, &managed));
  const std::unique_ptr<void, int (*)(void*)> owner(managed, api().MXNDArrayCallDLPackDeleter);
  const auto& tensor = *static_cast<const DLTensor*>(managed);
  std::int64_t found = 1;
  for (int k = 0; k < tensor.ndim; ++k) found *= tensor.shape[k];
  if (found != size) {
    throw std::runtime_error("an array of " + std::to_string(size) + " elements has become one of " +
                             std::to_string(found) + " while its update was waiting");
  }
  return tensor.data;
}

void* address_of(Handle array) {
  void* data = nullptr;
  check(api().MXNDArrayGetData(array, &data));
  return data;
}

// Calls body() and lets nothing but std::runtime_error out: the engine turns a std::exception into an
// MXNetError at the next wait and ends the process on anything else.
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
void push_task(std::unique_ptr<Task> task, int device_id, std::vector<Handle>& read,
               std::vector<Handle>& written, const char* name) {
  const std::int32_t context[2] = {cpu_device, device_id};
  const int status = api().MXEnginePushSyncND(
      [](void*, void* task) { static_cast<Task*>(task)->run(); }, task.get(),
      [](void* task) { delete static_cast<Task*>(task); }, context, read.data(),
      static_cast<int>(read.size()), written.data(), static_cast<int>(written.size()), nullptr, 0,
      name);
  // The engine owns the task from the call on, also when it failed while running it.
  task.release();
  check(status);
}

}  // namespace

struct Operation {
  Batch batch;
  std::vector<double> scalars;

  void run() {
    run_in_engine(batch.rule_.rule, [this] {
      const std::size_t step = batch.arrays_per_tensor();
      for (std::size_t i = 0; i < batch.tensors_.size(); ++i) {
        cpu::Tensor& tensor = batch.tensors_[i];
        if (tensor.size == 0) continue;
        const Array* arrays = &batch.arrays_[i * step];
        const auto layer_address = [&](const Array& array) {
          return batch.is_matrix_[i] ? checked_address_of(array.get(), tensor.size)
                                     : address_of(array.get());
        };
        tensor.weight = layer_address(arrays[0]);
        tensor.grad = layer_address(arrays[1]);
        for (int k = 0; k < batch.rule_.states; ++k) {
          tensor.states[k] = address_of(arrays[2 + k].get());
        }
      }
      cpu::update(batch.rule_, batch.tensors_, scalars);
    });
  }
};

void Batch::add(Handle weight, Handle grad, const std::vector<Handle>& states) {
  const std::size_t position = tensors_.size();
  const int device_id = check_array(position, role_name(0), weight);
  const int dtype = dtype_of(weight);
  if (dtype != float32_dtype && dtype != float64_dtype) {
    throw ParameterError(position, "weight has dtype " + dtype_name(dtype) +
                                       ", expected float32 or float64");
  }
  const Shape shape(weight);
  check_like(position, role_name(1), grad, shape, dtype);
  for (std::size_t k = 0; k < states.size(); ++k) {
    check_like(position, role_name(2 + k), states[k], shape, dtype);
  }

  if (position == 0) device_id_ = device_id;
  const std::int64_t size = shape.size();
  arrays_.push_back(Array::share(weight));
  // oneDNN's layouts exist for float32 and for layers whose weights are matrices or larger.
  is_matrix_.push_back(dtype == float32_dtype && shape.ndim >= 2 && size > 0);
  arrays_.push_back(Array::share(grad));
  for (const Handle state : states) arrays_.push_back(Array::share(state));
  const auto compute = dtype == float64_dtype ? cpu::Compute::float64 : cpu::Compute::float32;
  tensors_.push_back({compute, size, nullptr, nullptr, {}});
}

void Batch::check_memory() const {
  const std::size_t step = arrays_per_tensor();
  std::vector<std::pair<const void*, std::size_t>> users;
  users.reserve(arrays_.size());
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    const void* memory = memory_of(arrays_[i].get());
    if (memory == nullptr) {
      throw ParameterError(i / step, "an array has no memory; was it initialized?");
    }
    users.emplace_back(memory, i);
  }
  std::sort(users.begin(), users.end());
  const auto role = [step](std::size_t i) { return std::string(role_name(i % step)); };
  const auto is_gradient = [step](std::size_t i) { return i % step == 1; };
  for (std::size_t i = 1; i < users.size(); ++i) {
    const auto [memory, first] = users[i - 1];
    const auto [other_memory, second] = users[i];
    if (memory != other_memory || (is_gradient(first) && is_gradient(second))) continue;
    throw ParameterError(second / step,
                         role(second) + " shares memory with the " + role(first) +
                             " of {other}, expected an array of its own",
                         first / step);
  }
}

void Batch::restore_layouts() const {
  const NotRecording not_recording;
  const OneOperation one_operation;
  const std::size_t step = arrays_per_tensor();
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (is_matrix_[i]) restore_layout(arrays_[i * step].get());
  }
}

void Batch::push(std::vector<double> scalars) && {
  if (tensors_.empty()) return;
  std::vector<Handle> read;
  std::vector<Handle> written;
  const std::size_t step = arrays_per_tensor();
  read.reserve(tensors_.size());
  written.reserve(arrays_.size() - tensors_.size());
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    (i % step == 1 ? read : written).push_back(arrays_[i].get());
  }
  const int device_id = device_id_;
  const char* const name = rule_.rule;
  restore_layouts();
  push_task(std::unique_ptr<Operation>(new Operation{std::move(*this), std::move(scalars)}),
            device_id, read, written, name);
}

namespace {

struct Failure {
  std::vector<Array> arrays;
  std::string message;
  void run() const { throw std::runtime_error(message); }
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
  if (!written.empty()) push_task(std::move(task), 0, read, written, "mxadamax failure");
}

}  // namespace mxadamax::engine
