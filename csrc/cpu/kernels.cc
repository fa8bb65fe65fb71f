// The loops over the rules. This file is compiled once per instruction set, with
// MXADAMAX_KERNELS naming the function that hands out the result.
//
// Everything but that function has internal linkage, so that code made for one instruction set is
// never picked by the linker for another.
#include <cstring>
#include <iterator>

#include "kernel.h"
#include "rules/all.h"

#if defined(__clang__)
#define MXADAMAX_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define MXADAMAX_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

namespace mxadamax::cpu {
namespace {

template <class Rule, class T>
void run(const double* scalars, const void* grad, void* weight, void* const* states,
         std::int64_t count) noexcept {
  using Scalars = typename Rule::template Scalars<T>;
  constexpr int n = std::size(Rule::scalars);
  static_assert(sizeof(Scalars) == n * sizeof(T), "one name for each scalar");
  static_assert(Rule::states <= max_states, "raise max_states");

  T rounded[n];
  for (int k = 0; k < n; ++k) rounded[k] = static_cast<T>(scalars[k]);
  Scalars s;
  std::memcpy(&s, rounded, sizeof s);

  const T* const g = static_cast<const T*>(grad);
  T* const w = static_cast<T*>(weight);
  T* st[Rule::states > 0 ? Rule::states : 1];
  for (int k = 0; k < Rule::states; ++k) st[k] = static_cast<T*>(states[k]);

  MXADAMAX_INDEPENDENT_ITERATIONS
  for (std::int64_t i = 0; i < count; ++i) {
    T x = w[i];
    T state[Rule::states > 0 ? Rule::states : 1];
    for (int k = 0; k < Rule::states; ++k) state[k] = st[k][i];
    Rule::update(s, g[i], x, state);
    for (int k = 0; k < Rule::states; ++k) st[k][i] = state[k];
    w[i] = x;
  }
}

template <class Rule>
constexpr RuleKernels describe() {
  return {Rule::name,
          Rule::states,
          Rule::scalars,
          static_cast<int>(std::size(Rule::scalars)),
          {run<Rule, float>, run<Rule, double>}};
}

template <class... Rules>
KernelTable table(RuleList<Rules...>) {
  static constexpr RuleKernels rules[] = {describe<Rules>()...};
  return {rules, static_cast<int>(sizeof...(Rules))};
}

}  // namespace

KernelTable MXADAMAX_KERNELS() { return table(AllRules{}); }

}  // namespace mxadamax::cpu
