#include "update.h"

#include <omp.h>

#include "chunks.h"

namespace mxadamax::cpu {
namespace {

constexpr std::int64_t chunks_for_one_thread = 8;
constexpr std::size_t element_size[compute_types] = {sizeof(float), sizeof(double)};

void update_part(const RuleKernels& rule, const Tensor& tensor, std::int64_t first,
                 std::int64_t count) noexcept {
  const auto compute = static_cast<std::size_t>(tensor.compute);
  const std::size_t offset = static_cast<std::size_t>(first) * element_size[compute];
  void* states[max_states] = {};
  for (int k = 0; k < rule.states; ++k) states[k] = static_cast<char*>(tensor.states[k]) + offset;
  rule.kernels[compute](tensor.scalars, static_cast<const char*>(tensor.grad) + offset,
                        static_cast<char*>(tensor.weight) + offset, states, count);
}

}  // namespace

void update(const RuleKernels& rule, const std::vector<Tensor>& tensors, int threads) {
  std::vector<std::int64_t> sizes;
  sizes.reserve(tensors.size());
  for (const Tensor& tensor : tensors) sizes.push_back(tensor.size);
  const Chunks chunks(sizes);
  const std::int64_t count = chunks.count();

  const auto run = [&](std::int64_t chunk) noexcept {
    chunks.visit(chunk, [&](std::size_t tensor, std::int64_t first, std::int64_t elements) {
      update_part(rule, tensors[tensor], first, elements);
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

}  // namespace mxadamax::cpu
