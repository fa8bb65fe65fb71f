// SPDX-License-Identifier: Apache-2.0
#include "update.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <numeric>

#include "common/chunks.h"
#include "common/scalar_text.h"

namespace mxadamax::cpu {
namespace {

constexpr std::int64_t elements_for_one_thread = 8 * Chunks::length;
// How many tensors ahead memory is asked for.
constexpr std::size_t tensors_ahead = 8;
// Elements that are converted at a time: seven arrays of them stay in the nearest cache.
constexpr std::int64_t block = converted_block;
// Where states are used in place: then the memory is what takes time, and the less is done without
// it, the better.
constexpr std::int64_t block_in_place = 256;
constexpr bool is_power_of_two(std::int64_t n) { return (n & (n - 1)) == 0; }
static_assert(is_power_of_two(block) && is_power_of_two(block_in_place), "cut by masks");

// The part of an array that begins at `first`, converted into `buffer` where it has to be.
template <class Pointer>
Pointer load_as_float(const RuleKernels& rule, Pointer array, DType type, std::int64_t first,
                      std::int64_t count, float* buffer) noexcept {
  const Pointer part = advanced(array, type, first);
  if (!is_converted(type)) return part;
  codec_of(*rule.shared, type).decode(part, buffer, count);
  return buffer;
}

void store(const RuleKernels& rule, const void* from, void* array, DType type, std::int64_t first,
           std::int64_t count) noexcept {
  codec_of(*rule.shared, type)
      .encode(static_cast<const float*>(from), advanced(array, type, first), count);
}

// The states of one block of a tensor, in float32 or float64 for as long as a kernel works on them.
class States {
 public:
  States(const RuleKernels& rule, const Tensor& tensor) : rule_(rule), tensor_(tensor) {}

  void* const* read(std::int64_t first, std::int64_t count) noexcept {
    for (int k = 0; k < rule_.states; ++k) {
      if (tensor_.state_type == DType::int8) {
        const Int8Codec& codec =
            rule_.shared->int8_codecs[static_cast<int>(int8_state_of(rule_, k))];
        float* const scales = tensor_.scales + first / block_size * rule_.states + k;
        codec.decode(advanced(tensor_.states[k], DType::int8, first), scales, rule_.states,
                     buffers_[k], count);
        states_[k] = buffers_[k];
      } else {
        states_[k] =
            load_as_float(rule_, tensor_.states[k], tensor_.state_type, first, count, buffers_[k]);
      }
    }
    if (tensor_.low_precision_state) undo_low_precision(count);
    return states_;
  }

  // Those in low precision have a kernel that does it.
  void write(std::int64_t first, std::int64_t count) noexcept {
    if (!is_converted(tensor_.state_type)) return;
    for (int k = 0; k < rule_.states; ++k) {
      store(rule_, states_[k], tensor_.states[k], tensor_.state_type, first, count);
    }
  }

 private:
  void undo_low_precision(std::int64_t count) noexcept {
    if (tensor_.state_type == DType::int8 && int8_state_of(rule_, 0) == Int8State::ratio) {
      const auto epsilon = static_cast<float>(tensor_.scalars[rule_.epsilon_scalar]);
      rule_.shared->multiply_ratios(buffers_[0], buffers_[rule_.states - 1], epsilon, count);
    }
    for (int k = 0; k < rule_.states; ++k) {
      if (rule_.kinds[k] == StateKind::second_moment) rule_.shared->square(buffers_[k], count);
    }
  }

  const RuleKernels& rule_;
  const Tensor& tensor_;
  void* states_[max_states] = {};
  alignas(64) float buffers_[max_states][block];
};

// Whether there are states that only a kernel of their type takes.
bool has_low_precision_states(const RuleKernels& rule, const Tensor& tensor) {
  return tensor.low_precision_state && rule.states > 0;
}

// Updates elements with states in low precision.
void update_in_low_precision(const RuleKernels& rule, const Tensor& tensor, const double* scales,
                             const void* grad, void* weight, std::int64_t first,
                             std::int64_t count) noexcept {
  const EpilogueScalars scalars = epilogue_scalars_of(rule, tensor.scalars);
  void* stored[max_states];
  for (int k = 0; k < rule.states; ++k) {
    stored[k] = advanced(tensor.states[k], tensor.state_type, first);
  }
  float* const own_scales =
      tensor.scales == nullptr ? nullptr : tensor.scales + first / block_size * rule.states;
  const LowPrecisionStates states{stored, own_scales, rng_seed(scalars.rng_stream, scalars.step),
                                  tensor.offset + first};
  low_precision_kernel_of(rule, tensor.state_type)(tensor.scalars, scales,
                                                   static_cast<const float*>(grad),
                                                   static_cast<float*>(weight), states, count);
}

DType op_math_type_of(const Tensor& tensor) {
  return tensor.compute == OpMath::float64 ? DType::float64 : DType::float32;
}

// Updates elements, whose gradient and weight come as they are computed with.
void update_elements(const RuleKernels& rule, const Tensor& tensor, const double* scales,
                     const void* grad, void* weight, States& states, std::int64_t first,
                     std::int64_t count) noexcept {
  if (has_low_precision_states(rule, tensor)) {
    update_in_low_precision(rule, tensor, scales, grad, weight, first, count);
    return;
  }
  rule.kernels[static_cast<std::size_t>(tensor.compute)](tensor.scalars, scales, grad, weight,
                                                         states.read(first, count), count);
  states.write(first, count);
}

// Updates what is more than one kernel's work on arrays in place, block by block.
void update_blocks(const RuleKernels& rule, const Tensor& tensor, const double* scales,
                   std::int64_t begin, std::int64_t end) noexcept {
  alignas(64) float grad_buffer[block], weight_buffer[block];
  States states(rule, tensor);
  const double ema_weight = epilogue_scalars_of(rule, tensor.scalars).ema_weight;
  const bool in_place = is_floating(tensor.state_type) && !is_converted(tensor.state_type);
  const std::int64_t length = in_place ? block_in_place : block;
  // Cut where blocks of 8-bit states are, wherever a chunk begins.
  for (std::int64_t first = begin, count; first < end; first += count) {
    count = std::min(length - (first & (length - 1)), end - first);
    const void* const grad =
        load_as_float(rule, tensor.grad, tensor.grad_type, first, count, grad_buffer);
    void* const weight =
        load_as_float(rule, tensor.weight, tensor.weight_type, first, count, weight_buffer);
    update_elements(rule, tensor, scales, grad, weight, states, first, count);
    if (is_converted(tensor.weight_type)) {
      store(rule, weight, tensor.weight, tensor.weight_type, first, count);
    }
    if (tensor.copy != nullptr) store(rule, weight, tensor.copy, tensor.copy_type, first, count);
    if (tensor.average != nullptr) {
      rule.shared->average[static_cast<std::size_t>(tensor.compute)](
          weight, ema_weight, advanced(tensor.average, op_math_type_of(tensor), first), count);
    }
  }
}

// Whether one kernel does it all, on the arrays themselves.
bool is_one_kernel(const Tensor& tensor) {
  return tensor.copy == nullptr && tensor.average == nullptr && !is_converted(tensor.grad_type) &&
         !is_converted(tensor.weight_type) &&
         (tensor.low_precision_state || !is_converted(tensor.state_type));
}

void update_part(const RuleKernels& rule, const Tensor& tensor, const double* scales,
                 std::int64_t first, std::int64_t count) noexcept {
  if (!is_one_kernel(tensor)) {
    update_blocks(rule, tensor, scales, first, first + count);
    return;
  }
  const void* const grad = advanced(tensor.grad, tensor.grad_type, first);
  void* const weight = advanced(tensor.weight, tensor.weight_type, first);
  if (has_low_precision_states(rule, tensor)) {
    update_in_low_precision(rule, tensor, scales, grad, weight, first, count);
    return;
  }
  void* states[max_states] = {};
  for (int k = 0; k < rule.states; ++k) {
    states[k] = advanced(tensor.states[k], tensor.state_type, first);
  }
  rule.kernels[static_cast<std::size_t>(tensor.compute)](tensor.scalars, scales, grad, weight,
                                                         states, count);
}

// Finds the terms of a block of a tensor in a stage, with what is converted in float32.
void find_terms(const RuleKernels& rule, int stage, const Tensor& tensor, const double* scales,
                std::int64_t first, std::int64_t count, Sums& sums, Terms& terms) noexcept {
  alignas(64) float grad[sum_block], weight[sum_block], copy[sum_block];
  States states(rule, tensor);
  SumBlock block{};
  block.grad = load_as_float(rule, tensor.grad, tensor.grad_type, first, count, grad);
  block.weight =
      load_as_float<const void*>(rule, tensor.weight, tensor.weight_type, first, count, weight);
  // No MXNet has masters of bfloat16 weights.
  if (rule.sums_copy && tensor.copy != nullptr && tensor.copy_type == DType::float16) {
    block.copy =
        load_as_float<const void*>(rule, tensor.copy, tensor.copy_type, first, count, copy);
  }
  block.states = states.read(first, count);
  block.count = count;
  rule.sum_kernels[stage][static_cast<std::size_t>(tensor.compute)].find_terms(
      tensor.scalars, scales, block, sums, terms);
}

// Asks for the first bytes of what a tensor's update reads and writes, without waiting for them.
// Rows of a table lie apart: nothing but their addresses tells the processor which memory comes
// next. Of longer tensors it finds out itself. Inlined by force: a compiler that takes this for a
// function without effects leaves calls of it out.
__attribute__((always_inline)) inline void prefetch(const RuleKernels& rule, const Tensor& tensor) {
  constexpr std::int64_t line = 64;
  const auto prefetch_array = [&](const void* array, DType type) {
    const std::int64_t bytes = std::min(tensor.size * dtype_size(type), 4 * line);
    for (std::int64_t k = 0; k < bytes; k += line) {
      __builtin_prefetch(static_cast<const char*>(array) + k);
    }
  };
  prefetch_array(tensor.grad, tensor.grad_type);
  prefetch_array(tensor.weight, tensor.weight_type);
  for (int k = 0; k < rule.states; ++k) prefetch_array(tensor.states[k], tensor.state_type);
}

using Reduce = double (*)(const void* numbers, std::int64_t count) noexcept;

double reduce_gradient(const RuleKernels& rule, const Tensor& tensor, Reduce reduce,
                       std::int64_t begin, std::int64_t end) noexcept {
  if (!is_converted(tensor.grad_type)) {
    return reduce(advanced(tensor.grad, tensor.grad_type, begin), end - begin);
  }
  double sum = 0;
  for (std::int64_t first = begin; first < end; first += block) {
    alignas(64) float buffer[block];
    const std::int64_t count = std::min(block, end - first);
    sum += reduce(load_as_float(rule, tensor.grad, tensor.grad_type, first, count, buffer), count);
  }
  return sum;
}

// Little work is done sooner than a team is woken, and a team that has been woken goes on spinning
// on the processors that Python needs. It is never a smaller team: that would end threads which the
// next operator starts again.
bool is_for_one_thread(std::int64_t elements, int threads) {
  return threads == 0 && elements <= elements_for_one_thread;
}

int team_of(int threads) { return threads > 0 ? threads : omp_get_max_threads(); }

// Calls visit(chunk, tensor, first element, number of elements) for all that lies in the chunks of
// all tensors, on `threads` threads.
template <class Visit>
void for_each_part(const Chunks& chunks, int threads, Visit&& visit) {
  const std::int64_t count = chunks.count();
  const auto run = [&](std::int64_t chunk) noexcept {
    chunks.visit(chunk, [&](std::size_t tensor, std::int64_t first, std::int64_t elements) {
      visit(chunk, tensor, first, elements);
    });
  };
  if (is_for_one_thread(count * Chunks::length, threads)) {
    for (std::int64_t chunk = 0; chunk < count; ++chunk) run(chunk);
    return;
  }
// Without "monotonic" it needs a newer libgomp than MXNet does, whose loop is the same.
#pragma omp parallel for schedule(monotonic : dynamic) num_threads(team_of(threads))
  for (std::int64_t chunk = 0; chunk < count; ++chunk) run(chunk);
}

Chunks chunks_of(const std::vector<Tensor>& tensors) {
  std::vector<std::int64_t> sizes;
  sizes.reserve(tensors.size());
  for (const Tensor& tensor : tensors) sizes.push_back(tensor.size);
  return Chunks(sizes);
}

// A parameter: a tensor, or consecutive ones that are its parts.
struct TensorGroup {
  std::size_t begin, end;
  std::int64_t size;
};

std::int64_t elements_of(const std::vector<Tensor>& tensors) {
  return std::accumulate(tensors.begin(), tensors.end(), std::int64_t{0},
                         [](std::int64_t sum, const Tensor& tensor) { return sum + tensor.size; });
}

// The largest first, for the threads to end together.
std::vector<TensorGroup> groups_of(const std::vector<Tensor>& tensors) {
  std::vector<TensorGroup> groups;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].continues_parameter) groups.push_back({i, i, 0});
    groups.back().end = i + 1;
    groups.back().size += tensors[i].size;
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const TensorGroup& a, const TensorGroup& b) { return a.size > b.size; });
  return groups;
}

// What is summed up: some elements of a parameter, from one of its tensors on.
struct SumPart {
  std::size_t group, index, tensor;
  std::int64_t first, size;
};
using FoundScales = std::array<double, max_scales>;

// Sums up parts of parameters on one thread, each in the order of its elements; short ones side by
// side.
class SideBySide {
 public:
  SideBySide(const RuleKernels& rule, const std::vector<Tensor>& tensors, OpMath compute)
      : rule_(rule), tensors_(tensors), compute_(static_cast<std::size_t>(compute)) {}

  // Sums up parts for as long as next() has one, and calls done(part, sums, scales) after each,
  // with the sums of the last stage and the scales that the stages before it have found.
  template <class Next, class Done>
  void run(Next&& next, Done&& done) noexcept {
    int busy = 0;
    for (bool more = true;;) {
      while (more && !is_full(busy)) {
        lanes_[busy].part = next();
        lanes_[busy].scales = {};
        more = lanes_[busy].part != nullptr;
        if (more) begin_stage(busy++, 0);
      }
      if (busy == 0) return;
      std::int64_t length = 0;
      for (int k = 0; k < busy; ++k) length = std::max(length, find_terms_of_block(k));
      rule_.sum_kernels[0][compute_].add(terms_, sums_, busy, length);
      for (int k = busy - 1; k >= 0; --k) {
        Lane& lane = lanes_[k];
        if (lane.left > 0) continue;
        if (lane.stage + 1 < rule_.stages) {
          rule_.sum_kernels[lane.stage][compute_].find_scales(tensors_[lane.tensor].scalars,
                                                              &sums_[k], 1, lane.scales.data());
          begin_stage(k, lane.stage + 1);
          continue;
        }
        done(*lane.part, sums_[k], lane.scales);
        // Those that are busy come first.
        --busy;
        lane = lanes_[busy];
        sums_[k] = sums_[busy];
      }
    }
  }

 private:
  // A long part goes alone: few arrays at once are read faster than many. Not so where squares are
  // rounded to 16 bits: many lie half-way between two numbers, and are not added in lanes.
  bool is_full(int busy) const {
    constexpr std::int64_t long_part = 8 * sum_block;
    if (busy == 0) return false;
    const SumPart& first = *lanes_[0].part;
    const bool has_halves = rule_.sums_copy && tensors_[first.tensor].copy != nullptr;
    return busy == summed_together || (first.size >= long_part && !has_halves);
  }

  struct Lane {
    const SumPart* part;
    int stage;
    // Where it has come to, and how many elements are left of the part.
    std::size_t tensor;
    std::int64_t position, left;
    FoundScales scales;
  };

  void begin_stage(int k, int stage) noexcept {
    Lane& lane = lanes_[k];
    lane.stage = stage;
    lane.tensor = lane.part->tensor;
    lane.position = lane.part->first;
    lane.left = lane.part->size;
    sums_[k] = {};
  }

  // Returns how many there are.
  std::int64_t find_terms_of_block(int k) noexcept {
    Lane& lane = lanes_[k];
    if (lane.left > 0 && lane.position == tensors_[lane.tensor].size) {
      ++lane.tensor;
      lane.position = 0;
    }
    const Tensor& tensor = tensors_[lane.tensor];
    const std::int64_t count = std::min({sum_block, tensor.size - lane.position, lane.left});
    find_terms(rule_, lane.stage, tensor, lane.scales.data(), lane.position, count, sums_[k],
               terms_[k]);
    lane.position += count;
    lane.left -= count;
    return count;
  }

  const RuleKernels& rule_;
  const std::vector<Tensor>& tensors_;
  const std::size_t compute_;
  Lane lanes_[summed_together] = {};
  Sums sums_[summed_together] = {};
  Terms terms_[summed_together] = {};
};

// For rules that sum over a tensor before they update it: two loops in one parallel region. In the
// first, each thread sums up parameters, and updates one at once if it is small enough to be in the
// cache still; the second updates the others in chunks.
//
// MXNet adds up a scaled norm in as many parts as there are threads.
class UpdateAfterSums {
 public:
  UpdateAfterSums(const RuleKernels& rule, const std::vector<Tensor>& tensors, int parts)
      : rule_(rule),
        tensors_(tensors),
        parts_per_group_(static_cast<std::size_t>(parts)),
        groups_(groups_of(tensors)),
        sums_of_(groups_.size() * parts_per_group_),
        scales_of_(tensors.size()),
        chunks_left_(sizes_left()) {
    // The last part takes what is left over. Rows of a gradient are one part.
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const TensorGroup& group = groups_[g];
      const std::size_t count = group.end - group.begin == 1 ? parts_per_group_ : 1;
      const std::int64_t length = group.size / static_cast<std::int64_t>(count);
      std::int64_t first = 0;
      for (std::size_t k = 0; k < count; ++k) {
        const std::int64_t size = k + 1 < count ? length : group.size - first;
        parts_[static_cast<int>(tensors[group.begin].compute)].push_back(
            {g, k, group.begin, first, size});
        first += size;
      }
    }
  }

  void run_on_one_thread() noexcept {
    sum_up();
    for (std::size_t g = 0; g < groups_.size(); ++g) join_parts(g);
    for (std::int64_t chunk = 0; chunk < chunks_left_.count(); ++chunk) update_chunk(chunk);
  }

  void run_on_team(int threads) noexcept {
#pragma omp parallel num_threads(threads)
    {
      sum_up();
#pragma omp barrier
#pragma omp for schedule(static)
      for (std::size_t g = 0; g < groups_.size(); ++g) join_parts(g);
#pragma omp for schedule(monotonic : dynamic)
      for (std::int64_t chunk = 0; chunk < chunks_left_.count(); ++chunk) update_chunk(chunk);
    }
  }

 private:
  bool is_updated_at_once(const TensorGroup& group) const {
    constexpr std::int64_t elements_in_cache = 16 * Chunks::length;
    return parts_per_group_ == 1 && group.size <= elements_in_cache;
  }

  std::vector<std::int64_t> sizes_left() const {
    std::vector<std::int64_t> sizes(tensors_.size());
    for (const TensorGroup& group : groups_) {
      if (is_updated_at_once(group)) continue;
      for (std::size_t i = group.begin; i < group.end; ++i) sizes[i] = tensors_[i].size;
    }
    return sizes;
  }

  void sum_up() noexcept {
    for (int compute = 0; compute < op_math_types; ++compute) {
      const std::vector<SumPart>& parts = parts_[compute];
      SideBySide(rule_, tensors_, static_cast<OpMath>(compute))
          .run(
              [&]() noexcept -> const SumPart* {
                const std::size_t k = next_part_[compute]++;
                return k < parts.size() ? &parts[k] : nullptr;
              },
              [&](const SumPart& part, const Sums& sums, const FoundScales& scales) noexcept {
                take(part, sums, scales);
              });
    }
  }

  void take(const SumPart& part, const Sums& sums, const FoundScales& scales) noexcept {
    if (parts_per_group_ > 1) {
      sums_of_[part.group * parts_per_group_ + part.index] = sums;
      return;
    }
    find_scales(part.group, &sums, scales);
    const TensorGroup& group = groups_[part.group];
    if (!is_updated_at_once(group)) return;
    for (std::size_t i = group.begin; i < group.end; ++i) {
      update_part(rule_, tensors_[i], scales_of_[i].data(), 0, tensors_[i].size);
    }
  }

  void join_parts(std::size_t g) noexcept {
    if (parts_per_group_ > 1) find_scales(g, &sums_of_[g * parts_per_group_], {});
  }

  // From the sums of the last stage.
  void find_scales(std::size_t g, const Sums* sums, FoundScales scales) noexcept {
    const TensorGroup& group = groups_[g];
    const Tensor& first = tensors_[group.begin];
    rule_.sum_kernels[rule_.stages - 1][static_cast<std::size_t>(first.compute)].find_scales(
        first.scalars, sums, static_cast<int>(parts_per_group_), scales.data());
    for (std::size_t i = group.begin; i < group.end; ++i) scales_of_[i] = scales;
  }

  void update_chunk(std::int64_t chunk) noexcept {
    chunks_left_.visit(chunk, [&](std::size_t i, std::int64_t first, std::int64_t count) {
      update_part(rule_, tensors_[i], scales_of_[i].data(), first, count);
    });
  }

  const RuleKernels& rule_;
  const std::vector<Tensor>& tensors_;
  const std::size_t parts_per_group_;
  const std::vector<TensorGroup> groups_;
  // By OpMath.
  std::vector<SumPart> parts_[op_math_types];
  std::atomic<std::size_t> next_part_[op_math_types] = {};
  std::vector<Sums> sums_of_;
  std::vector<FoundScales> scales_of_;
  const Chunks chunks_left_;
};

void update_after_sums(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads) {
  UpdateAfterSums update(rule, tensors, rule.scaled_norms ? team_of(threads) : 1);
  if (is_for_one_thread(elements_of(tensors), threads)) {
    update.run_on_one_thread();
  } else {
    update.run_on_team(team_of(threads));
  }
}

}  // namespace

double as_scalar_is_read(double x) noexcept { return as_operator_reads(x); }

void update(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads) {
  if (rule.sums > 0) {
    update_after_sums(rule, tensors, threads);
    return;
  }
  for_each_part(chunks_of(tensors), threads,
                [&](std::int64_t, std::size_t tensor, std::int64_t first, std::int64_t elements) {
                  const std::size_t later = tensor + tensors_ahead;
                  if (first == 0 && later < tensors.size()) prefetch(rule, tensors[later]);
                  update_part(rule, tensors[tensor], nullptr, first, elements);
                });
}

namespace {

// The sum of what one of the reductions of SharedKernels finds in each part of the gradients.
template <class Member>
double reduce_gradients(const RuleKernels& rule, const std::vector<Tensor>& tensors, Member member,
                        int threads) {
  const Chunks chunks = chunks_of(tensors);
  std::vector<double> sums(static_cast<std::size_t>(chunks.count()));
  for_each_part(chunks, threads,
                [&](std::int64_t chunk, std::size_t i, std::int64_t first, std::int64_t elements) {
                  const Tensor& tensor = tensors[i];
                  const Reduce reduce =
                      (rule.shared->*member)[static_cast<std::size_t>(tensor.compute)];
                  sums[static_cast<std::size_t>(chunk)] +=
                      reduce_gradient(rule, tensor, reduce, first, first + elements);
                });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace

double gradient_norm(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads) {
  return std::sqrt(reduce_gradients(rule, tensors, &SharedKernels::sum_of_squares, threads));
}

bool gradients_finite(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads) {
  return reduce_gradients(rule, tensors, &SharedKernels::nonfinite_probe, threads) == 0;
}

Tensor part_of(const Tensor& whole, std::int64_t first, std::int64_t size, const void* grad) {
  Tensor part = whole;
  part.size = size;
  part.offset = whole.offset + first;
  part.grad = grad;
  part.weight = advanced(whole.weight, whole.weight_type, first);
  part.copy = advanced(whole.copy, whole.copy_type, first);
  part.average = advanced(whole.average, op_math_type_of(whole), first);
  for (void*& state : part.states) state = advanced(state, whole.state_type, first);
  return part;
}

}  // namespace mxadamax::cpu
