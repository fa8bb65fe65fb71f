// SPDX-License-Identifier: Apache-2.0
// Every rule against the oracle in tests/support, whose results rule_cases.py has written down, and
// rules of MXNet's operators against MXNet, whose results record_mxnet_cases.py has recorded.
#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "check.h"

namespace mxadamax::tests {
namespace {

// A number and how far a rule may miss it.
struct Expected {
  double value, error;
};

struct Case {
  std::string rule, dtype;
  bool low_precision = false, recorded = false;
  std::vector<std::string> kinds;
  std::map<std::string, double> scalars;
  // For each element the gradient, the weight and the states, with masters also their float16 copy;
  // then the weight and the states.
  std::vector<std::vector<double>> before;
  std::vector<std::vector<Expected>> after;
};

// Streams do not read "nan" and "inf".
double read_number(std::istream& file) {
  std::string text;
  CHECK(file >> text, "the file ends too early");
  return std::strtod(text.c_str(), nullptr);
}

void read_cases(const std::string& path, bool recorded, std::vector<Case>& cases) {
  std::ifstream file(path);
  CHECK(file, path);
  std::string word;
  while (file >> word) {
    CHECK(word == "case", word);
    Case found;
    found.recorded = recorded;
    std::size_t elements = 0, states = 0, scalars = 0;
    file >> found.rule >> found.dtype >> found.low_precision >> elements >> states;
    found.kinds.resize(states);
    for (std::string& kind : found.kinds) file >> kind;
    for (file >> scalars; scalars > 0; --scalars) {
      file >> word;
      found.scalars[word] = read_number(file);
    }
    for (std::size_t i = 0; i < elements; ++i) {
      found.before.emplace_back(2 + states + (found.dtype == "masters"));
      for (double& x : found.before.back()) x = read_number(file);
      found.after.emplace_back(1 + states);
      for (Expected& x : found.after.back()) x = {read_number(file), read_number(file)};
    }
    cases.push_back(found);
  }
}

const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = [] {
    std::vector<Case> found;
    read_cases(MXADAMAX_RULE_CASES, false, found);
    for (const char* series : {"1", "2"}) {
      read_cases(MXADAMAX_MXNET_CASES "/mxnet" + std::string(series) + "_cases.txt", true, found);
    }
    return found;
  }();
  return cases;
}

std::vector<double> row_of(const cpu::RuleKernels& rule, std::map<std::string, double> scalars) {
  // What no kernel of a rule takes, but the pass around it.
  scalars.insert({{"ema_weight", 0.13}, {"step", 3}, {"rng_stream", 7}});
  std::vector<double> row;
  for (int k = 0; k < rule.scalars; ++k) {
    const auto found = scalars.find(rule.scalar_names[k]);
    CHECK(found != scalars.end(), rule.rule << " has a scalar " << rule.scalar_names[k]);
    row.push_back(found->second);
  }
  return row;
}

bool close(double actual, Expected expected, bool recorded) {
  // The sign of zero too.
  if (recorded && actual == 0 && std::signbit(actual) != std::signbit(expected.value)) return false;
  if (!std::isfinite(actual) || !std::isfinite(expected.value)) return same(actual, expected.value);
  return std::fabs(actual - expected.value) <= expected.error;
}

template <class T>
void compare(const cpu::RuleKernels& rule, const Case& test, std::size_t number) {
  const std::size_t count = test.before.size();
  std::vector<std::vector<T>> arrays(test.before[0].size());
  for (std::size_t k = 0; k < arrays.size(); ++k) {
    for (const auto& element : test.before) arrays[k].push_back(static_cast<T>(element[k]));
  }
  void* states[max_states] = {};
  for (std::size_t k = 0; k < test.kinds.size(); ++k) states[k] = arrays[2 + k].data();
  constexpr int compute = sizeof(T) == 8;
  const auto row = row_of(rule, test.scalars);
  const auto elements = static_cast<std::int64_t>(count);
  double scales[max_scales] = {};
  cpu::Tensor tensor{};
  tensor.compute = static_cast<OpMath>(compute);
  tensor.size = elements;
  tensor.scalars = row.data();
  tensor.grad = arrays[0].data();
  tensor.weight = arrays[1].data();
  tensor.grad_type = tensor.weight_type = tensor.state_type =
      compute == 1 ? DType::float64 : DType::float32;
  std::copy_n(states, max_states, tensor.states);
  const T* const copy = arrays.size() > 2 + test.kinds.size() ? arrays.back().data() : nullptr;
  find_scales_in_place(rule, tensor, elements / 2, scales, rule.sums_copy ? copy : nullptr);
  rule.kernels[compute](row.data(), scales, arrays[0].data(), arrays[1].data(), states, elements);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t k = 0; k < test.after[i].size(); ++k) {
      const Expected expected = test.after[i][k];
      CHECK(close(arrays[1 + k][i], expected, test.recorded),
            rule.rule << ", " << test.dtype << ", case " << number << ", element " << i << ": "
                      << (k == 0 ? "weight" : "state") << " " << arrays[1 + k][i] << " for "
                      << expected.value << " +- " << expected.error);
    }
  }
}

const char* name_of(StateKind kind) {
  return kind == StateKind::with_sign       ? "with_sign"
         : kind == StateKind::non_negative  ? "non_negative"
         : kind == StateKind::second_moment ? "second_moment"
                                            : "earlier_weight";
}

}  // namespace

void find_scales_in_place(const cpu::RuleKernels& rule, const cpu::Tensor& tensor,
                          std::int64_t most, double* scales, const void* copy) {
  for (int stage = 0; rule.sums > 0 && stage < rule.stages; ++stage) {
    const auto& kernels = rule.sum_kernels[stage][static_cast<std::size_t>(tensor.compute)];
    cpu::Sums sums[1] = {};
    cpu::Terms terms[1] = {};
    for (std::int64_t first = 0, count; first < tensor.size; first += count) {
      count = std::min({most, cpu::sum_block, tensor.size - first});
      const cpu::Tensor part =
          cpu::part_of(tensor, first, count, cpu::advanced(tensor.grad, tensor.grad_type, first));
      const void* const of_copy =
          copy == nullptr ? nullptr : cpu::advanced(copy, tensor.weight_type, first);
      const cpu::SumBlock block{part.grad, part.weight, of_copy, part.states, count};
      kernels.find_terms(tensor.scalars, scales, block, sums[0], terms[0]);
      kernels.add(terms, sums, 1, count);
    }
    kernels.find_scales(tensor.scalars, sums, 1, scales);
  }
}

std::vector<double> row_of(const cpu::RuleKernels& rule) {
  for (const Case& test : all_cases()) {
    if (test.rule != rule.rule) continue;
    auto scalars = test.scalars;
    scalars["decay_factor"] = 0.97;
    return row_of(rule, scalars);
  }
  std::map<std::string, double> any;
  for (int k = 0; k < rule.scalars; ++k) any[rule.scalar_names[k]] = 0.5;
  return row_of(rule, any);
}

void test_rules() {
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    std::set<std::string> names;
    for (int k = 0; k < set.table.count; ++k) {
      const cpu::RuleKernels& rule = set.table.rules[k];
      const std::string name = rule.rule;
      CHECK(names.insert(name).second, "two rules of the name " << name);
      // What only other parts of a step ask for.
      CHECK(rule.none_first == (name.substr(0, 6) == "dcasgd" && rule.states == 1), name);
      std::size_t compared = 0;
      for (const Case& test : all_cases()) {
        if (test.rule != rule.rule) continue;
        CHECK(rule.states == static_cast<int>(test.kinds.size()), rule.rule);
        CHECK(rule.supports_low_precision_state == test.low_precision, rule.rule);
        for (int s = 0; s < rule.states; ++s) {
          CHECK(name_of(rule.kinds[s]) == test.kinds[static_cast<std::size_t>(s)],
                rule.rule << ", state " << s);
        }
        if (test.dtype == "float32" || test.dtype == "masters")
          compare<float>(rule, test, compared);
        if (test.dtype == "float64") compare<double>(rule, test, compared);
        ++compared;
      }
      // Of rules for row_sparse gradients there are few.
      const bool is_mxnet = std::string_view(rule.rule).find("_mxnet") != std::string_view::npos;
      CHECK(compared >= (is_mxnet ? 2 : 16), "a rule without cases: " << rule.rule);
    }
  }
}

}  // namespace mxadamax::tests
