// The least that an update with two states can cost: its reads and its writes, and next to nothing
// else. benchmark.py compiles this file on first use.
#include <cstdint>

// Reads `g`, `w`, `m` and `u`, writes `w`, `m` and `u`: `count` elements each, which must not
// overlap. Runs on as many threads as OpenMP gives the caller.
extern "C" void memory_floor(const float* __restrict__ g, float* __restrict__ w,
                             float* __restrict__ m, float* __restrict__ u, std::int64_t count) {
  // All sums converge, or grow slowly: numbers too small to be normal would be slow to compute
  // with.
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    m[i] = 0.5f * m[i] + g[i];
    u[i] = 0.5f * u[i] + g[i];
    w[i] = w[i] - m[i] - u[i];
  }
}
