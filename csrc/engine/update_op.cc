// SPDX-License-Identifier: Apache-2.0
#include "update_op.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/chunks.h"
#include "common/low_precision.h"
#include "common/sparse_rows.h"
#include "dlpack.h"
#include "row_sparse.h"

namespace mxadamax::engine {
namespace {

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
  SparseRows rows;
};

// Appends the parts of a tensor that a gradient updates: all of it; or the rows that it holds and,
// unless lazy, the other rows, with a gradient of zero.
void split_rows(cpu::Tensor whole, const Gradient& gradient, std::vector<cpu::Tensor>& parts) {
  const SparseRows& rows = gradient.rows;
  const std::int64_t length = rows.length;
  if (length == 0) {
    whole.grad = gradient.data;
    parts.push_back(whole);
    return;
  }
  const std::size_t begin = parts.size();
  const auto add = [&](std::int64_t first, std::int64_t size, const void* grad) {
    cpu::Tensor part = cpu::part_of(whole, first, size, grad);
    part.continues_parameter = parts.size() > begin;
    parts.push_back(part);
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
    add(row * length, (end - k) * length,
        cpu::advanced(gradient.data, whole.grad_type, k * length));
    next = row + end - k;
    k = end;
  }
  add_zeros(next, total);
}

// Calls body() and lets nothing but std::runtime_error out: the engine turns a std::exception into
// an MXNetError at the next wait and ends the process on anything else.
template <class Body>
void rethrow_with_context(const char* rule, Body&& body) {
  const std::string prefix = std::string("mxadamax, rule ") + rule + ": ";
  try {
    body();
  } catch (const std::exception& error) {
    throw std::runtime_error(prefix + error.what());
  } catch (...) {
    throw std::runtime_error(prefix + "unknown failure");
  }
}

class UpdateOp final : public EngineOp {
 public:
  UpdateOp(std::shared_ptr<const UpdateArguments> arrays, StepScalars scalars,
           const StepOptions& options, StepHistory history)
      : held_(std::move(arrays)),
        arrays_(*held_),
        scalars_(std::move(scalars)),
        options_(options),
        history_(std::move(history)),
        finish_{history_.report} {}

  void run(const RunContext& context) const override {
    const Finish now = std::move(finish_);
    rethrow_with_context(arrays_.rule.rule, [&] {
      if (arrays_.device_backend != nullptr) {
        update_on_device(context);
      } else {
        update_on_host();
      }
    });
  }

 private:
  // In the end counted as finished, also where the engine never runs it after a failure.
  struct Finish {
    std::shared_ptr<StepStatus> report;
    Finish(Finish&&) = default;
    ~Finish() {
      if (report) ++report->finished;
    }
  };

  void update_on_host() const {
    const std::vector<double>& rows = table();
    if (arrays_.all_stay_in_place && !options_.any()) {
      for (std::size_t i = 0; i < arrays_.tensors.size(); ++i) {
        arrays_.tensors[i].scalars = row_of(i, rows);
      }
      cpu::update(arrays_.rule, arrays_.tensors);
      return;
    }
    std::vector<double> clipped;
    std::vector<cpu::Tensor> tensors;
    tensors.reserve(arrays_.parameters.size());
    // Each in one piece: their norm depends neither on which rows they hold nor on what is done to
    // the others.
    std::vector<cpu::Tensor> gradients;
    bool all_stay_in_place = true;
    for (std::size_t i = 0; i < arrays_.parameters.size(); ++i) {
      const Parameter& parameter = arrays_.parameters[i];
      cpu::Tensor& known = arrays_.tensors[i];
      if (known.weight != nullptr) {
        tensors.push_back(known);
        tensors.back().scalars = row_of(i, rows);
        if (options_.any()) gradients.push_back(tensors.back());
      } else if (parameter.size > 0) {
        cpu::Tensor tensor = tensor_of(parameter);
        tensor.scalars = row_of(i, rows);
        const Gradient gradient = gradient_of(parameter);
        split_rows(tensor, gradient, tensors);
        if (options_.any()) {
          tensor.grad = gradient.data;
          tensor.size = held_elements(gradient.rows, parameter.size);
          gradients.push_back(tensor);
        }
        if (stays_in_place(parameter)) known = tensors.back();
      }
      all_stay_in_place = all_stay_in_place && known.weight != nullptr;
    }
    arrays_.all_stay_in_place = all_stay_in_place;
    if (options_.any()) {
      const double norm =
          std::abs(rows[rescale_grad_scalar]) * cpu::gradient_norm(arrays_.rule, gradients);
      history_.report->gradient_norm = norm;
      // A sum of squares of float64 numbers may overflow.
      if (options_.skip_nonfinite && !std::isfinite(norm) &&
          !cpu::gradients_finite(arrays_.rule, gradients)) {
        ++history_.report->skipped;
        return;
      }
      if (options_.clips()) clipped = clip(tensors, norm);
    }
    cpu::update(arrays_.rule, tensors);
  }

  // Waits for the device: MXNet 1 takes an operation that has returned for one that is done, and
  // the next step's table depends on what this one has found.
  void update_on_device(const RunContext& context) const {
    std::vector<DeviceTensor> tensors;
    tensors.reserve(arrays_.parameters.size());
    for (const Parameter& parameter : arrays_.parameters) {
      tensors.push_back(device_tensor(parameter));
    }
    const std::vector<double> rows = row_of_each();
    DeviceStep step{};
    step.scalars = rows.data();
    step.scalar_count = static_cast<std::int64_t>(rows.size());
    step.options = options_;
    if (is_gpu(arrays_.context) && context.stream != nullptr) {
      step.stream = *static_cast<void* const*>(context.stream);
    }
    const DeviceReport found = arrays_.device_batch_cache->update(
        *arrays_.device_backend, arrays_.rule.rule, tensors,
        is_gpu(arrays_.context) ? arrays_.context.device_id : 0, step);
    if (!options_.any()) return;
    history_.report->gradient_norm = found.norm;
    if (found.skipped) ++history_.report->skipped;
  }

  const std::vector<double>& table() const {
    const std::vector<std::vector<double>>& tables = scalars_.tables;
    if (!options_.skip_nonfinite) return tables[0];
    const std::int64_t more = history_.report->skipped - history_.skipped_before;
    if (static_cast<std::size_t>(more) >= tables.size()) {
      throw std::runtime_error("got " + std::to_string(tables.size()) + " tables of scalars, but " +
                               std::to_string(more) +
                               " more steps were skipped than the first one is for");
    }
    return tables[static_cast<std::size_t>(more)];
  }

  // The scalars of a parameter in a table.
  const double* row_of(std::size_t parameter, const std::vector<double>& rows) const {
    const std::size_t row = scalars_.row_of.empty() ? parameter : scalars_.row_of[parameter];
    return rows.data() + row * static_cast<std::size_t>(arrays_.rule.scalars);
  }

  std::vector<double> row_of_each() const {
    const std::vector<double>& found = table();
    std::vector<double> rows;
    rows.reserve(arrays_.parameters.size() * static_cast<std::size_t>(arrays_.rule.scalars));
    for (std::size_t i = 0; i < arrays_.parameters.size(); ++i) {
      const double* const row = row_of(i, found);
      rows.insert(rows.end(), row, row + arrays_.rule.scalars);
    }
    return rows;
  }

  // Where the gradients, of this norm after rescaling, have a larger one than is allowed: scalars
  // with which they do not, to which it points the tensors.
  std::vector<double> clip(std::vector<cpu::Tensor>& tensors, double norm) const {
    // NaN goes through.
    if (norm <= options_.clip_global_norm) return {};
    const std::vector<double>& scalars = table();
    std::vector<double> clipped = scalars;
    const double factor = options_.clip_global_norm / norm;
    for (std::size_t first = 0; first < clipped.size();
         first += static_cast<std::size_t>(arrays_.rule.scalars)) {
      clipped[first + rescale_grad_scalar] *= factor;
    }
    for (cpu::Tensor& tensor : tensors) {
      tensor.scalars = clipped.data() + (tensor.scalars - scalars.data());
    }
    return clipped;
  }

  DeviceTensor device_tensor(const Parameter& p) const {
    DeviceTensor tensor{};
    tensor.type = p.dtype;
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
    tensor.low_precision_state = found.low_precision_state;
    tensor.state_type = found.state_type;
    tensor.scales = found.scales;
    return tensor;
  }

  // Whether nothing but another shape, which the next step sees, moves a parameter in memory: an
  // array with more dimensions can be given a layout of oneDNN's, and come back from it elsewhere.
  static bool stays_in_place(const Parameter& p) {
    return p.shape.ndim <= 1 && !p.weight_in_rows && !p.grad_in_rows;
  }

  // A parameter's arrays but for the gradient.
  cpu::Tensor tensor_of(const Parameter& p) const {
    cpu::Tensor tensor{};
    tensor.compute = p.dtype == DType::float64 ? OpMath::float64 : OpMath::float32;
    tensor.size = p.size;
    tensor.grad_type = p.dtype;
    auto array = p.state->arrays.begin();
    if (p.has_master) {
      tensor.weight = address_of((array++)->get());
      tensor.weight_type = tensor.state_type = DType::float32;
      tensor.copy = weight_address(p);
      tensor.copy_type = p.dtype;
    } else {
      tensor.weight = weight_address(p);
      tensor.weight_type = tensor.state_type = p.dtype;
    }
    const StateFormat& format = arrays_.format;
    if (format.state_dtype) {
      tensor.state_type = *format.state_dtype;
      tensor.low_precision_state = true;
    }
    for (int k = 0; k < arrays_.rule.states; ++k) tensor.states[k] = address_of((array++)->get());
    if (format.state_dtype == DType::int8) {
      tensor.scales = static_cast<float*>(address_of((array++)->get()));
    }
    if (format.average) tensor.average = address_of((array++)->get());
    return tensor;
  }

  Gradient gradient_of(const Parameter& p) const {
    if (p.grad_in_rows) {
      const Rows rows = rows_of(p.grad.get());
      return {rows.data, {rows.indices, rows.count, p.size / p.shape.dims[0], arrays_.lazy}};
    }
    return {p.is_matrix ? checked_address_of(p.grad.get(), p.size) : address_of(p.grad.get()), {}};
  }

  static void* weight_address(const Parameter& p) {
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

  std::shared_ptr<const UpdateArguments> held_;
  const UpdateArguments& arrays_;
  StepScalars scalars_;
  StepOptions options_;
  StepHistory history_;
  mutable Finish finish_;
};

}  // namespace

std::unique_ptr<const EngineOp> update_of(std::shared_ptr<const UpdateArguments> arrays,
                                          StepScalars scalars, const StepOptions& options,
                                          StepHistory history) {
  return std::make_unique<const UpdateOp>(std::move(arrays), std::move(scalars), options,
                                          std::move(history));
}

}  // namespace mxadamax::engine
