// SPDX-License-Identifier: Apache-2.0
// The functions of GCC's OpenMP runtime that csrc/cpu calls, by std::thread.
//
// ThreadSanitizer takes threads for unordered that the runtime itself orders, since the runtime is
// not built with it. With these, it sees every order there is and no other; nothing is suppressed.
#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

// What the threads of a team share: one loop, from 0 to an end that all of them name.
struct Team {
  std::atomic<long> next{0};
};
thread_local Team* team = nullptr;
thread_local long end_of_loop = 0;

}  // namespace

extern "C" {

bool GOMP_loop_nonmonotonic_dynamic_next(long* begin, long* end) {
  *begin = team->next.fetch_add(1);
  *end = *begin + 1;
  return *begin < end_of_loop;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long first, long last, long step, long chunk, long* begin,
                                          long* end) {
  if (first != 0 || step != 1 || chunk != 1) std::abort();
  end_of_loop = last;
  return GOMP_loop_nonmonotonic_dynamic_next(begin, end);
}

void GOMP_loop_end_nowait() {}

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  Team shared;
  const auto run = [&] {
    team = &shared;
    body(data);
  };
  std::vector<std::thread> others;
  for (unsigned k = 1; k < threads; ++k) others.emplace_back(run);
  run();
  for (std::thread& thread : others) thread.join();
}

int omp_get_max_threads() { return 3; }
}
