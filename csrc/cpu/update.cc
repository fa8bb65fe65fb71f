#include "update.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "chunks.h"

namespace mxadamax::cpu {
namespace {

constexpr std::int64_t chunks_for_one_thread = 8;
// Elements that are converted at a time: seven arrays of them stay in the nearest cache.
constexpr std::int64_t block = 512;

bool converted(Stored type) { return type == Stored::float16 || type == Stored::bfloat16; }

const Codec& codec(const RuleKernels& rule, Stored type) {
  return rule.shared->codecs[static_cast<int>(type) - static_cast<int>(Stored::float16)];
}

// The part of an array that begins at `first`, converted into `buffer` where it has to be.
template <class Pointer>
Pointer load(const RuleKernels& rule, Pointer array, Stored type, std::int64_t first,
             std::int64_t count, float* buffer) noexcept {
  const Pointer part = moved(array, type, first);
  if (!converted(type)) return part;
  codec(rule, type).decode(part, buffer, count);
  return buffer;
}

void store(const RuleKernels& rule, const void* from, void* array, Stored type, std::int64_t first,
           std::int64_t count) noexcept {
  codec(rule, type).encode(static_cast<const float*>(from), moved(array, type, first), count);
}

// Updates what no kernel can work on in place, block by block.
void update_converted(const RuleKernels& rule, const Tensor& tensor, std::int64_t begin,
                      std::int64_t end) noexcept {
  alignas(64) float buffers[2 + max_states][block];
  const Kernel kernel = rule.kernels[static_cast<std::size_t>(tensor.compute)];
  for (std::int64_t first = begin; first < end; first += block) {
    const std::int64_t count = std::min(block, end - first);
    const void* const grad = load(rule, tensor.grad, tensor.grad_type, first, count, buffers[0]);
    void* const weight = load(rule, tensor.weight, tensor.weight_type, first, count, buffers[1]);
    void* states[max_states] = {};
    for (int k = 0; k < rule.states; ++k) {
      states[k] = load(rule, tensor.states[k], tensor.state_type, first, count, buffers[2 + k]);
    }
    kernel(tensor.scalars, grad, weight, states, count);
    if (converted(tensor.weight_type)) {
      store(rule, weight, tensor.weight, tensor.weight_type, first, count);
    }
    if (converted(tensor.state_type)) {
      for (int k = 0; k < rule.states; ++k) {
        store(rule, states[k], tensor.states[k], tensor.state_type, first, count);
      }
    }
    if (tensor.copy != nullptr) {
      store(rule, weight, tensor.copy, tensor.copy_type, first, count);
    }
  }
}

void update_part(const RuleKernels& rule, const Tensor& tensor, std::int64_t first,
                 std::int64_t count) noexcept {
  if (tensor.copy != nullptr || converted(tensor.grad_type) || converted(tensor.weight_type) ||
      converted(tensor.state_type)) {
    update_converted(rule, tensor, first, first + count);
    return;
  }
  void* states[max_states] = {};
  for (int k = 0; k < rule.states; ++k) {
    states[k] = moved(tensor.states[k], tensor.state_type, first);
  }
  rule.kernels[static_cast<std::size_t>(tensor.compute)](
      tensor.scalars, moved(tensor.grad, tensor.grad_type, first),
      moved(tensor.weight, tensor.weight_type, first), states, count);
}

double gradient_part_squared(const RuleKernels& rule, const Tensor& tensor, std::int64_t begin,
                             std::int64_t end) noexcept {
  const auto sum_of_squares = rule.shared->sum_of_squares[static_cast<std::size_t>(tensor.compute)];
  if (!converted(tensor.grad_type)) {
    return sum_of_squares(moved(tensor.grad, tensor.grad_type, begin), end - begin);
  }
  double sum = 0;
  for (std::int64_t first = begin; first < end; first += block) {
    alignas(64) float buffer[block];
    const std::int64_t count = std::min(block, end - first);
    sum += sum_of_squares(load(rule, tensor.grad, tensor.grad_type, first, count, buffer), count);
  }
  return sum;
}

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

  // Little work is done sooner than a team is woken, and a team that has been woken goes on
  // spinning on the processors that Python needs. It is never a smaller team: that would end
  // threads which the next operator starts again.
  if (threads == 0 && count <= chunks_for_one_thread) {
    for (std::int64_t chunk = 0; chunk < count; ++chunk) run(chunk);
    return;
  }
  const int team = threads > 0 ? threads : omp_get_max_threads();
#pragma omp parallel for schedule(dynamic) num_threads(team)
  for (std::int64_t chunk = 0; chunk < count; ++chunk) run(chunk);
}

Chunks chunks_of(const std::vector<Tensor>& tensors) {
  std::vector<std::int64_t> sizes;
  sizes.reserve(tensors.size());
  for (const Tensor& tensor : tensors) sizes.push_back(tensor.size);
  return Chunks(sizes);
}

}  // namespace

void update(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads) {
  for_each_part(chunks_of(tensors), threads,
                [&](std::int64_t, std::size_t tensor, std::int64_t first, std::int64_t elements) {
                  update_part(rule, tensors[tensor], first, elements);
                });
}

double gradient_norm(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads) {
  const Chunks chunks = chunks_of(tensors);
  std::vector<double> sums(static_cast<std::size_t>(chunks.count()));
  for_each_part(
      chunks, threads,
      [&](std::int64_t chunk, std::size_t tensor, std::int64_t first, std::int64_t elements) {
        sums[static_cast<std::size_t>(chunk)] +=
            gradient_part_squared(rule, tensors[tensor], first, first + elements);
      });
  return std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0));
}

}  // namespace mxadamax::cpu
