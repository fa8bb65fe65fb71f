// SPDX-License-Identifier: Apache-2.0
// Every rule against its formula, written down once more in long double, from docs/optimizers.md.
#include <algorithm>
#include <functional>
#include <map>

#include "check.h"

namespace mxadamax::tests {
namespace {

using Real = long double;
using Scalars = std::map<std::string, double>;

// NaN where either is.
Real larger(Real a, Real b) { return std::isnan(a) || std::isnan(b) ? NAN : std::max(a, b); }

Real bounded(Real x, Real bound) {
  if (std::isnan(x)) return x;
  return std::max(std::min(x, bound), -bound);
}

struct Formula {
  const char* name;
  std::vector<StateKind> kinds;
  bool low_precision;
  bool clip_after_wd;
  // Turns the weight and the states into those after the step.
  void (*update)(Scalars& s, Real g, Real& w, Real* state);
};

void moments(Scalars& s, Real g, Real* state, Real distance) {
  state[0] = s["beta1"] * state[0] + s["one_minus_beta1"] * g;
  state[1] = s["beta2"] * state[1] + s["one_minus_beta2"] * distance * distance;
}

constexpr StateKind plain = StateKind::with_sign, square = StateKind::second_moment,
                    magnitude = StateKind::non_negative;

const Formula formulas[] = {
    {"adamax",
     {plain, magnitude},
     true,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       state[0] = s["beta1"] * state[0] + s["one_minus_beta1"] * g;
       state[1] = larger(s["beta2"] * state[1], std::fabs(g));
       w -= s["lr"] * state[0] / (state[1] + s["epsilon"]);
     }},
    {"adam",
     {plain, square},
     true,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       moments(s, g, state, g);
       w -= s["lr"] * state[0] / (std::sqrt(state[1]) + s["epsilon"]);
     }},
    {"amsgrad",
     {plain, square, square},
     true,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       moments(s, g, state, g);
       state[2] = larger(state[2], state[1]);
       w -= s["lr"] * state[0] / (std::sqrt(state[2]) + s["epsilon"]);
     }},
    {"nadam",
     {plain, square},
     true,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       moments(s, g, state, g);
       const Real ahead = s["next_momentum"] * state[0] / s["m_divisor"] +
                          s["one_minus_momentum"] * g / s["grad_divisor"];
       w -= s["lr"] * ahead / (std::sqrt(state[1] / s["v_divisor"]) + s["epsilon"]);
     }},
    {"adabelief",
     {plain, square},
     true,
     true,
     [](Scalars& s, Real g, Real& w, Real* state) {
       const Real m = s["beta1"] * state[0] + s["one_minus_beta1"] * g;
       moments(s, g, state, g - m);
       state[1] += s["epsilon"];
       w -= s["lr"] * m / (std::sqrt(state[1]) + s["epsilon"]);
     }},
    {"rmsprop",
     {square},
     true,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       state[0] = s["rho"] * state[0] + s["one_minus_rho"] * g * g;
       w = bounded(w - s["lr"] * g / (std::sqrt(state[0]) + s["epsilon"]), s["clip_weights"]);
     }},
    {"rmsprop_centered",
     {plain, square, plain},
     false,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       state[0] = s["rho"] * state[0] + s["one_minus_rho"] * g;
       state[1] = s["rho"] * state[1] + s["one_minus_rho"] * g * g;
       state[2] = s["momentum"] * state[2] -
                  s["lr"] * g / std::sqrt(state[1] - state[0] * state[0] + s["epsilon"]);
       w = bounded(w + state[2], s["clip_weights"]);
     }},
    {"adagrad",
     {square},
     true,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       state[0] += g * g;
       w -= s["lr"] * g / (std::sqrt(state[0]) + s["epsilon"]);
     }},
    {"adadelta",
     {square, square},
     true,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       state[0] = s["rho"] * state[0] + s["one_minus_rho"] * g * g;
       const Real change =
           std::sqrt(state[1] + s["epsilon"]) / std::sqrt(state[0] + s["epsilon"]) * g;
       state[1] = s["rho"] * state[1] + s["one_minus_rho"] * change * change;
       w -= s["lr"] * change;
     }},
    {"sgd", {}, true, false, [](Scalars& s, Real g, Real& w, Real*) { w -= s["lr"] * g; }},
    {"sgd_momentum",
     {plain},
     true,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       state[0] = s["momentum"] * state[0] - s["lr"] * g;
       w += state[0];
     }},
    {"lion",
     {plain},
     true,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       const Real direction = s["beta1"] * state[0] + s["one_minus_beta1"] * g;
       state[0] = s["beta2"] * state[0] + s["one_minus_beta2"] * g;
       w -= s["lr"] * (direction > 0 ? 1 : direction < 0 ? -1 : direction);
     }},
    {"nag",
     {plain},
     true,
     false,
     [](Scalars& s, Real g, Real& w, Real* state) {
       state[0] = s["momentum"] * state[0] - s["lr"] * g;
       w += s["momentum"] * state[0] - s["lr"] * g;
     }},
};

// All different, none near 0 or 1, so that none can stand for another unseen.
const Scalars usual = {
    {"rescale_grad", 0.37},    {"clip_gradient", 0.8}, {"wd", 0.23},
    {"decay_factor", 0.97},    {"lr", 0.31},           {"beta1", 0.83},
    {"one_minus_beta1", 0.17}, {"beta2", 0.71},        {"one_minus_beta2", 0.29},
    {"epsilon", 0.053},        {"rho", 0.77},          {"one_minus_rho", 0.21},
    {"momentum", 0.67},        {"clip_weights", 0.9},  {"one_minus_momentum", 0.19},
    {"next_momentum", 0.59},   {"grad_divisor", 0.43}, {"m_divisor", 0.61},
    {"v_divisor", 0.47},       {"ema_weight", 0.13},   {"step", 3},
    {"rng_stream", 7}};

std::vector<double> row_of(const cpu::RuleKernels& rule, const Scalars& scalars) {
  std::vector<double> row;
  for (int k = 0; k < rule.scalars; ++k) {
    const auto found = scalars.find(rule.scalar_names[k]);
    CHECK(found != scalars.end(), rule.rule << " has a scalar " << rule.scalar_names[k]);
    row.push_back(found->second);
  }
  return row;
}

template <class T>
void compare(const cpu::RuleKernels& rule, const Formula& formula, Scalars scalars,
             const std::vector<T>& grads, const std::vector<T>& weights,
             const std::vector<std::vector<T>>& states, const char* what) {
  const std::size_t count = grads.size();
  std::vector<T> w = weights;
  std::vector<std::vector<T>> found = states;
  void* pointers[max_states] = {};
  for (int k = 0; k < rule.states; ++k) pointers[k] = found[k].data();
  const auto row = row_of(rule, scalars);
  constexpr int compute = sizeof(T) == 8;
  rule.kernels[compute](row.data(), 1, grads.data(), w.data(), pointers,
                        static_cast<std::int64_t>(count));
  // What is compared with is given the same rounded scalars.
  for (auto& scalar : scalars) scalar.second = static_cast<T>(scalar.second);

  for (std::size_t i = 0; i < count; ++i) {
    Real state[max_states] = {};
    for (int k = 0; k < rule.states; ++k) state[k] = states[k][i];
    const Real decay = scalars["wd"] < 0 ? Real{0} : Real{scalars["wd"]} * weights[i];
    const Real scaled = Real{grads[i]} * scalars["rescale_grad"];
    const Real bound = scalars["clip_gradient"];
    const Real g =
        formula.clip_after_wd ? bounded(scaled + decay, bound) : bounded(scaled, bound) + decay;
    Real weight = Real{scalars["decay_factor"]} * weights[i];
    const auto close = [&](Real actual, Real expected) {
      if (std::isnan(actual) || std::isnan(expected)) {
        return std::isnan(actual) && std::isnan(expected);
      }
      if (std::isinf(actual) || std::isinf(expected)) return actual == expected;
      // Weights and gradients are of the order of 1.
      const Real scale = std::fabs(expected) + 4;
      return std::fabs(actual - expected) <= 32 * std::numeric_limits<T>::epsilon() * scale;
    };
    formula.update(scalars, g, weight, state);
    CHECK(close(w[i], weight), rule.rule << " " << what << ", element " << i << ": weight " << w[i]
                                         << " for " << weight << ", gradient " << grads[i]);
    for (int k = 0; k < rule.states; ++k) {
      CHECK(close(found[k][i], state[k]), rule.rule << " " << what << ", element " << i
                                                    << ": state " << k << " " << found[k][i]
                                                    << " for " << state[k]);
    }
  }
}

template <class T>
void compare_all(const cpu::RuleKernels& rule, const Formula& formula) {
  std::mt19937 source(7);
  std::uniform_real_distribution<T> number(-3, 3), positive(T(0.01), 2);
  constexpr std::size_t count = 67;
  std::vector<T> grads(count), weights(count);
  std::vector<std::vector<T>> states(rule.states, std::vector<T>(count));
  const auto fill = [&] {
    for (std::size_t i = 0; i < count; ++i) {
      grads[i] = number(source);
      weights[i] = number(source) / 2;
      for (int k = 0; k < rule.states; ++k) {
        states[k][i] = rule.kinds[k] == plain ? number(source) : positive(source);
      }
      // What centered RMSProp takes the root of must not be negative.
      if (!formula.low_precision) states[1][i] += 9;
    }
  };
  fill();
  compare(rule, formula, usual, grads, weights, states, "usual");

  Scalars scalars = usual;
  scalars["clip_gradient"] = scalars["clip_weights"] = INFINITY;
  fill();
  compare(rule, formula, scalars, grads, weights, states, "no bounds");
  scalars["wd"] = -1;
  scalars["rescale_grad"] = -1.5;
  fill();
  compare(rule, formula, scalars, grads, weights, states, "no penalty");
  scalars["clip_gradient"] = 0;
  fill();
  compare(rule, formula, scalars, grads, weights, states, "no gradient");
  // What only a sum that is zero shows: of that, rules take the sign.
  for (std::vector<T>& state : states) std::fill(state.begin(), state.end(), T(0));
  compare(rule, formula, scalars, grads, weights, states, "no gradient so far");

  // Not numbers, and infinite ones, in each place in turn: where they show and where they do not.
  for (const double wd : {-1.0, 0.0, 0.23}) {
    for (const double bound : {0.8, static_cast<double>(INFINITY)}) {
      scalars = usual;
      scalars["wd"] = wd;
      scalars["clip_gradient"] = scalars["clip_weights"] = bound;
      for (const T special :
           {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
            -std::numeric_limits<T>::infinity(), T(0)}) {
        for (int place = 0; place < 2 + rule.states; ++place) {
          fill();
          // Of a state that is never negative.
          const bool skip = special < 0 && place > 1 && rule.kinds[place - 2] != plain;
          if (skip) continue;
          auto& chosen = place == 0 ? grads : place == 1 ? weights : states[place - 2];
          for (std::size_t i = 0; i < count; i += 3) chosen[i] = special;
          compare(rule, formula, scalars, grads, weights, states, "special");
        }
      }
    }
  }
}

}  // namespace

std::vector<double> row_of(const cpu::RuleKernels& rule) { return row_of(rule, usual); }

void test_rules() {
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    CHECK(set.table.count == static_cast<int>(std::size(formulas)),
          "a rule without a formula here");
    for (int k = 0; k < set.table.count; ++k) {
      const cpu::RuleKernels& rule = set.table.rules[k];
      const auto formula =
          std::find_if(std::begin(formulas), std::end(formulas),
                       [&](const Formula& f) { return rule.rule == std::string(f.name); });
      CHECK(formula != std::end(formulas), rule.rule);
      CHECK(rule.states == static_cast<int>(formula->kinds.size()), rule.rule);
      CHECK(rule.supports_low_precision_state == formula->low_precision, rule.rule);
      for (int s = 0; s < rule.states; ++s) {
        CHECK(rule.kinds[s] == formula->kinds[s], rule.rule << ", state " << s);
      }
      compare_all<float>(rule, *formula);
      compare_all<double>(rule, *formula);
    }
  }
}

}  // namespace mxadamax::tests
