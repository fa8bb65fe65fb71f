// The least that an update can cost: its reads and its writes, and next to nothing else.
// benchmark.py compiles this file on first use.
#include <algorithm>
#include <cstdint>

namespace {

template <int states>
void run(float* const* arrays, const float* g, std::int64_t begin, std::int64_t end) {
  float* const w = arrays[0];
  float* s[states + 1];
  for (int k = 0; k < states; ++k) s[k] = arrays[1 + k];
#pragma GCC ivdep
  for (std::int64_t i = begin; i < end; ++i) {
    // All sums converge: numbers that are too small to be normal, or infinite, would be slow to
    // compute with.
    float x = 0.5f * w[i] + g[i];
    for (int k = 0; k < states; ++k) {
      s[k][i] = 0.5f * s[k][i] + g[i] * g[i];
      x += s[k][i];
    }
    w[i] = x;
  }
}

}  // namespace

// Reads the gradient `grads[t]` and reads and writes the 1 + `states` arrays that begin at
// `arrays[t * (1 + states)]` of each of `tensors` tensors, `sizes[t]` elements of each. Arrays must
// not overlap. Each of `threads` threads takes an equal part of the whole. At most 4 states.
extern "C" void memory_floor(std::int64_t tensors, std::int64_t states, const std::int64_t* sizes,
                             const float* const* grads, float* const* arrays,
                             std::int64_t threads) {
  constexpr decltype(&run<0>) runs[] = {run<0>, run<1>, run<2>, run<3>, run<4>};
  std::int64_t total = 0;
  for (std::int64_t t = 0; t < tensors; ++t) total += sizes[t];
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (std::int64_t part = 0; part < threads; ++part) {
    const std::int64_t begin = total * part / threads;
    const std::int64_t end = total * (part + 1) / threads;
    std::int64_t start = 0;
    for (std::int64_t t = 0; t < tensors && start < end; start += sizes[t++]) {
      const std::int64_t first = std::max(begin - start, std::int64_t{0});
      const std::int64_t last = std::min(end - start, sizes[t]);
      if (first < last) runs[states](arrays + t * (1 + states), grads[t], first, last);
    }
  }
}
