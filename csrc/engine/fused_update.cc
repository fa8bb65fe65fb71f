// SPDX-License-Identifier: Apache-2.0
#include "fused_update.h"

#include <cstddef>
#include <functional>

#include "common/low_precision.h"
#include "row_sparse.h"

namespace mxadamax::engine {
namespace {

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

std::string storage_name(int storage) {
  return storage == row_sparse_storage ? "row_sparse"
         : storage == csr_storage      ? "csr"
                                       : "of number " + std::to_string(storage);
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
  if (const std::string found = dtype_name(type); found != "int64") {
    throw ParameterError(
        position, std::string(what) + " has row indices of dtype " + found + ", expected int64");
  }
  return true;
}

void check_dense(std::size_t position, const char* what, Handle array) {
  const int storage = storage_of(array);
  if (storage == default_storage) return;
  throw ParameterError(position, std::string(what) + " is " + storage_name(storage) +
                                     ", expected a dense array (storage type 'default')");
}

std::string context_name(const Context& context) {
  return is_gpu(context) ? "gpu(" + std::to_string(context.device_id) + ")" : "host memory";
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
class BulkScope {
 public:
  explicit BulkScope(std::size_t most) {
    check(api().MXEngineSetBulkSize(static_cast<int>(most), &before_));
  }
  ~BulkScope() {
    int ignored = 0;
    api().MXEngineSetBulkSize(before_, &ignored);
  }
  BulkScope(const BulkScope&) = delete;
  BulkScope& operator=(const BulkScope&) = delete;

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
void restore_layout(Handle first_row, DType dtype) {
  static void* const cast = [] {
    void* op = nullptr;
    check(api().NNGetOpHandle("Cast", &op));
    return op;
  }();
  const char* key = "dtype";
  const char* value = dtype_name(dtype);
  int outputs = 1;
  Handle* out = &first_row;
  const int* storage_types = nullptr;
  check(api().MXImperativeInvoke(cast, 1, &first_row, &outputs, &out, 1, &key, &value,
                                 &storage_types));
}

}  // namespace

// Refuses an array that is somewhere else than the first weight.
void FusedUpdate::check_context(std::size_t position, const char* what, Handle array) const {
  const Context context = context_of(array);
  if (is_gpu(context) == is_gpu(arrays_->context) &&
      (!is_gpu(context) || context.device_id == arrays_->context.device_id)) {
    return;
  }
  const std::string expected = is_gpu(arrays_->context) ? context_name(arrays_->context)
                                                        : "an array in host memory (mx.cpu())";
  throw ParameterError(position, std::string(what) + " is " + (is_gpu(context) ? "on " : "in ") +
                                     context_name(context) + ", expected " + expected +
                                     ", as the first weight of this step is there");
}

// Refuses an array that is not of this shape and type. `like` introduces what is expected.
void FusedUpdate::check_like(std::size_t position, const char* what, Handle array,
                             const Shape& shape, DType dtype, const char* like,
                             const char* shape_like) const {
  check_context(position, what, array);
  const Shape found(array);
  if (!(found == shape)) {
    throw ParameterError(position, std::string(what) + " has shape " + found.text() + ", " +
                                       shape_like + shape.text());
  }
  const int found_dtype = dtype_of(array);
  if (found_dtype != dtype_number(dtype)) {
    throw ParameterError(position, std::string(what) + " has dtype " + dtype_name(found_dtype) +
                                       ", " + like + dtype_name(dtype));
  }
}

void FusedUpdate::add(Handle weight, Handle grad) {
  const std::size_t position = size();
  const bool weight_in_rows = check_storage(position, role_name(weight_role), weight);
  const bool grad_in_rows = check_storage(position, role_name(gradient_role), grad);
  if (position == 0) arrays_->context = context_of(weight);
  check_context(position, role_name(weight_role), weight);
  const int number = dtype_of(weight);
  const std::optional<DType> found = dtype_numbered(number);
  if (!found || !is_floating(*found)) {
    throw ParameterError(position, "weight has dtype " + dtype_name(number) +
                                       ", expected float32, float64, float16 or bfloat16");
  }
  const DType dtype = *found;
  const Shape shape(weight);
  check_like(position, role_name(gradient_role), grad, shape, dtype, "weight has ");
  if (arrays_->format.state_dtype && dtype == DType::float64) {
    throw ParameterError(position,
                         "weight has dtype float64, expected float32, float16 or bfloat16 with "
                         "state_dtype");
  }
  if (arrays_->format.state_dtype == DType::int8 && grad_in_rows) {
    throw ParameterError(position,
                         "gradient is row_sparse, expected a dense array with state_dtype='int8'");
  }
  const std::int64_t elements = shape.size();
  // oneDNN's layouts exist for these types and for layers whose weights are matrices or larger.
  const bool is_matrix = !is_gpu(arrays_->context) &&
                         (dtype == DType::float32 || dtype == DType::bfloat16) && shape.ndim >= 2 &&
                         elements > 0;
  const bool has_master = arrays_->format.multi_precision && is_converted(dtype);
  arrays_->parameters.push_back({shape, elements, dtype, has_master, is_matrix, weight_in_rows,
                                 grad_in_rows, Array::share(weight), Array::share(grad), nullptr});
  if (is_matrix && !weight_in_rows) {
    Handle first_row = nullptr;
    check(api().MXNDArraySlice(arrays_->parameters.back().weight.get(), 0, 1, &first_row));
    arrays_->first_rows.push_back({Array(first_row), dtype});
  }
}

bool FusedUpdate::is_like(const FusedUpdate& other) const {
  return &rule() == &other.rule() && arrays_->lazy == other.arrays_->lazy &&
         format() == other.format() && arrays_->device_backend == other.arrays_->device_backend;
}

bool FusedUpdate::still_holds(std::size_t position, Handle weight, Handle grad) const {
  const Parameter& parameter = arrays_->parameters[position];
  return memory_of(weight) == memory_of(parameter.weight.get()) &&
         memory_of(grad) == memory_of(parameter.grad.get()) && parameter.shape.is_of(weight) &&
         parameter.shape.is_of(grad);
}

// What an array of a state must be.
struct FusedUpdate::Expected {
  std::size_t role;
  DType dtype;
  Shape shape;
  const char* like;
  const char* shape_like = "weight has ";
};

std::vector<FusedUpdate::Expected> FusedUpdate::expected_state() const {
  const Parameter& p = arrays_->parameters.back();
  const DType computed = op_math_type(p.dtype);
  const char* const other = "expected ";
  const char* const like = p.has_master ? other : "weight has ";
  std::vector<Expected> list;
  if (p.has_master) list.push_back({master_role, computed, p.shape, like});
  for (int k = 0; k < arrays_->rule.states; ++k) {
    const std::size_t role = state_role + static_cast<std::size_t>(k);
    if (!arrays_->format.state_dtype) {
      list.push_back({role, updated_type(p.dtype, p.has_master), p.shape, like});
    } else if (arrays_->format.state_dtype == DType::int8) {
      list.push_back({role, DType::int8, p.shape, other});
    } else {
      list.push_back({role, *arrays_->format.state_dtype, p.shape, other});
    }
  }
  if (arrays_->format.state_dtype == DType::int8) {
    const Shape shape(blocks_of(p.size), arrays_->rule.states);
    list.push_back({scales_role, DType::float32, shape, other, other});
  }
  if (arrays_->format.average) {
    list.push_back({average_role, computed, p.shape, p.dtype == computed ? "weight has " : other});
  }
  return list;
}

std::shared_ptr<const State> FusedUpdate::add_state(const std::vector<Handle>& arrays) {
  Parameter& parameter = arrays_->parameters.back();
  const std::vector<Expected> expected = expected_state();
  State state{parameter.shape, parameter.dtype, arrays_->format, {}};
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

bool FusedUpdate::reuse_state(const std::shared_ptr<const State>& state) {
  Parameter& parameter = arrays_->parameters.back();
  const bool fits = state->weight_dtype == parameter.dtype && state->format == arrays_->format &&
                    state->shape == parameter.shape;
  if (fits) parameter.state = state;
  return fits;
}

void FusedUpdate::check_memory() const {
  struct User {
    const void* memory;
    std::size_t parameter;
    std::size_t role;
  };
  // A hash table with open addressing, at most half full.
  std::size_t slots = 16;
  while (slots < 2 * size() * (5 + static_cast<std::size_t>(arrays_->rule.states))) slots *= 2;
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
    const Parameter& parameter = arrays_->parameters[i];
    enter(parameter.weight, i, weight_role);
    enter(parameter.grad, i, gradient_role);
    std::size_t k = 0;
    const std::vector<Array>& arrays = parameter.state->arrays;
    if (parameter.has_master) enter(arrays[k++], i, master_role);
    for (int state = 0; state < arrays_->rule.states; ++state) {
      enter(arrays[k++], i, state_role + static_cast<std::size_t>(state));
    }
    if (arrays_->format.state_dtype == DType::int8) enter(arrays[k++], i, scales_role);
    if (arrays_->format.average) enter(arrays[k++], i, average_role);
  }
}

void FusedUpdate::complete() {
  check_memory();
  arrays_->tensors.resize(size());
  std::vector<Handle>& read = arrays_->read;
  std::vector<Handle>& written = arrays_->written;
  read.reserve(size());
  written.reserve(size() * (4 + static_cast<std::size_t>(arrays_->rule.states)));
  for (const Parameter& parameter : arrays_->parameters) {
    read.push_back(parameter.grad.get());
    written.push_back(parameter.weight.get());
    for (const Array& array : parameter.state->arrays) written.push_back(array.get());
  }
}

void FusedUpdate::restore_layouts() const {
  if (arrays_->first_rows.empty()) return;
  const NotRecording not_recording;
  const BulkScope bulk_scope(size());
  for (const FirstRow& row : arrays_->first_rows) restore_layout(row.array.get(), row.dtype);
}

void FusedUpdate::push(StepScalars scalars, const StepOptions& options, StepHistory history) {
  if (arrays_->parameters.empty()) return;
  restore_layouts();
  engine::push(update_of(arrays_, std::move(scalars), options, std::move(history)),
               arrays_->context, arrays_->read, arrays_->written, arrays_->rule.rule);
  pushed_ = true;
}

}  // namespace mxadamax::engine
