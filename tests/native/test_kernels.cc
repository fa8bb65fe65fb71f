// SPDX-License-Identifier: Apache-2.0
// Every kernel at every length and misalignment, against the plainest on single elements.
#include "check.h"

namespace mxadamax::tests {
namespace {

// Weight, gradient and states, each between guards.
template <class T>
struct Arrays {
  Arrays(std::size_t size, std::size_t misaligned, int states, std::uint32_t seed)
      : weight(size, misaligned), grad(size, misaligned) {
    std::mt19937 source(seed);
    for (int k = 0; k < states; ++k) state.emplace_back(size, misaligned);
    for (std::size_t i = 0; i < size; ++i) {
      weight[i] = random_number<T>(source);
      grad[i] = random_number<T>(source);
      for (auto& s : state) s[i] = std::abs(random_number<T>(source));
    }
  }
  void update(const cpu::RuleKernels& rule, const double* row, std::size_t first,
              std::size_t count) {
    void* pointers[max_states] = {};
    for (std::size_t k = 0; k < state.size(); ++k) pointers[k] = state[k].data() + first;
    const double scales[max_scales] = {1, 1, 1};
    rule.kernels[sizeof(T) == 8](row, scales, grad.data() + first, weight.data() + first, pointers,
                                 static_cast<std::int64_t>(count));
  }
  Guarded<T> weight, grad;
  std::vector<Guarded<T>> state;
};

template <class T>
void every_length(const cpu::RuleKernels& rule, const cpu::RuleKernels& plainest) {
  constexpr std::size_t vector = 64 / sizeof(T);
  const auto row = row_of(rule);
  for (std::size_t misaligned = 0; misaligned <= 3; ++misaligned) {
    for (std::size_t size = 0; size <= 3 * vector + 1; ++size) {
      const auto seed = static_cast<std::uint32_t>(size * 7 + misaligned);
      Arrays<T> actual(size, misaligned, rule.states, seed);
      Arrays<T> expected(size, misaligned, rule.states, seed);
      const Arrays<T> before(size, misaligned, rule.states, seed);
      actual.update(rule, row.data(), 0, size);
      for (std::size_t i = 0; i < size; ++i) expected.update(plainest, row.data(), i, 1);
      for (std::size_t i = 0; i < size; ++i) {
        CHECK(same(actual.weight[i], expected.weight[i]), rule.rule << ", " << i << " of " << size);
        CHECK(same(actual.grad[i], before.grad[i]), rule.rule << " wrote a gradient");
        for (int k = 0; k < rule.states; ++k) {
          CHECK(same(actual.state[k][i], expected.state[k][i]),
                rule.rule << ", state " << k << ", " << i << " of " << size);
        }
      }
      CHECK(actual.weight.guards_stand() && actual.grad.guards_stand(), rule.rule << ", " << size);
      for (const auto& state : actual.state) CHECK(state.guards_stand(), rule.rule << ", " << size);
    }
  }
}

}  // namespace

void test_kernels() {
  const auto& sets = cpu::instruction_sets();
  for (const cpu::InstructionSet& set : sets) {
    for (int k = 0; k < set.table.count; ++k) {
      every_length<float>(set.table.rules[k], sets[0].table.rules[k]);
      every_length<double>(set.table.rules[k], sets[0].table.rules[k]);
    }
  }
}

}  // namespace mxadamax::tests
