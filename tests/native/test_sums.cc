// SPDX-License-Identifier: Apache-2.0
// Sums over blocks of terms, against a plain loop, to the last bit.
#include <algorithm>
#include <functional>
#include <limits>

#include "check.h"

namespace mxadamax::tests {
namespace {

// Returns the terms of a block, in the type that is computed in.
using MakeTerm = std::function<double(std::mt19937&)>;

double number_of_bits(std::mt19937& source, int bits) {
  const auto mantissa = static_cast<double>(source() % (1U << bits) + 1);
  const auto exponent = static_cast<int>(source() % 12);
  return std::ldexp(mantissa, exponent - 16);
}

// What makes sums hard to add out of order: terms that lie half-way between two numbers, that carry
// a sum over powers of two, that are too small to count, or no numbers.
std::vector<MakeTerm> kinds_of_terms() {
  const auto normal = [](std::mt19937& source) {
    return std::normal_distribution<double>()(source);
  };
  std::vector<MakeTerm> kinds = {
      [=](std::mt19937& source) { return std::pow(normal(source), 2); },
      [=](std::mt19937& source) { return std::pow(random_number<double>(source), 2); },
      [](std::mt19937&) { return 1.0; },
      [](std::mt19937&) { return 0.1; },
      [](std::mt19937& source) { return source() % 97 == 0 ? 1e3 : 1e-9; },
      [](std::mt19937& source) { return source() % 2 == 0 ? 0.0 : 3.0; },
      [=](std::mt19937& source) { return std::abs(normal(source)) * 1e-43; },
      [=](std::mt19937& source) { return std::abs(normal(source)) * 1e-37; },
      [=](std::mt19937& source) { return std::abs(normal(source)) * 3e35; },
      [=](std::mt19937& source) { return std::abs(normal(source)) * 1e306; },
      [=](std::mt19937& source) {
        return source() % 3001 == 0 ? std::numeric_limits<double>::infinity() : normal(source) > 0;
      },
      [=](std::mt19937& source) {
        return source() % 3001 == 0 ? std::numeric_limits<double>::quiet_NaN() : normal(source) > 0;
      }};
  for (const int bits : {1, 2, 5, 11, 16, 22}) {
    kinds.emplace_back([=](std::mt19937& source) { return number_of_bits(source, bits); });
  }
  return kinds;
}

template <class T, class Total>
void compare_sums(const cpu::SumKernels& kernels, int sums, int tensors, std::int64_t longest,
                  std::uint32_t seed, const char* rule) {
  const auto kinds = kinds_of_terms();
  std::mt19937 source(seed);
  std::vector<MakeTerm> made;
  for (int k = 0; k < tensors * sums; ++k) made.push_back(kinds[source() % kinds.size()]);
  cpu::Sums found[cpu::summed_together] = {};
  std::vector<Total> expected(made.size(), Total{0});
  std::vector<cpu::Terms> terms(cpu::summed_together);
  for (int block = 0; block < 40; ++block) {
    const std::int64_t length = 1 + source() % longest;
    for (int k = 0; k < tensors * sums; ++k) {
      const auto which = static_cast<std::size_t>(k);
      T* const room = reinterpret_cast<T*>(terms[which / sums].room[k % sums]);
      for (std::int64_t i = 0; i < cpu::sum_block; ++i) {
        room[i] = i < length ? static_cast<T>(made[which](source)) : T{0};
        expected[which] = static_cast<Total>(expected[which] + room[i]);
      }
    }
    kernels.add(terms.data(), found, tensors, length);
    for (int k = 0; k < tensors * sums; ++k) {
      const auto actual = static_cast<Total>(found[k / sums][static_cast<std::size_t>(k % sums)]);
      CHECK(same(actual, expected[static_cast<std::size_t>(k)]),
            rule << ", seed " << seed << ", block " << block << ", sum " << k << ": " << actual
                 << " for " << expected[static_cast<std::size_t>(k)]);
    }
  }
}

}  // namespace

void test_sums() {
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    int compared = 0;
    for (int r = 0; r < set.table.count; ++r) {
      const cpu::RuleKernels& rule = set.table.rules[r];
      const std::string name = rule.rule;
      // MXNet 1 keeps norms in single precision for arrays of any type.
      const bool single = name == "lamb_mxnet1";
      if (name != "lamb" && !single) continue;
      ++compared;
      for (std::uint32_t seed = 0; seed < 200; ++seed) {
        const int tensors = 1 + static_cast<int>(seed % cpu::summed_together);
        const std::int64_t longest = seed % 3 == 0 ? 70 : cpu::sum_block;
        const cpu::SumKernels* const kernels = rule.sum_kernels[0];
        compare_sums<float, float>(kernels[0], rule.sums, tensors, longest, seed, rule.rule);
        if (single) {
          compare_sums<double, float>(kernels[1], rule.sums, tensors, longest, seed, rule.rule);
        } else {
          compare_sums<double, double>(kernels[1], rule.sums, tensors, longest, seed, rule.rule);
        }
      }
    }
    CHECK(compared == 2, "the rules that this compares");
  }
}

}  // namespace mxadamax::tests
