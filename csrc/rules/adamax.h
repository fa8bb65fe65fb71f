// SPDX-License-Identifier: Apache-2.0
// AdaMax (Kingma & Ba, arXiv 1412.6980, section 7.1, algorithm 2).
#pragma once

#include "rule.h"

namespace mxadamax {

struct Adamax : Rule {
  static constexpr const char* name = "adamax";

  // First moment m, exponentially weighted infinity norm u.
  static constexpr int states = 2;
  static constexpr StateKind kinds[] = {StateKind::with_sign, StateKind::non_negative};
  static constexpr bool steps_by_ratio = true;

  // `lr` includes the bias correction: lr / (1 - beta1^t).
  template <class T>
  struct Scalars {
    T lr, beta1, one_minus_beta1, beta2, epsilon;
  };
  static constexpr const char* scalars[] = {"lr", "beta1", "one_minus_beta1", "beta2", "epsilon"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& m = state[0];
    T& u = state[1];
    m = s.beta1 * m + s.one_minus_beta1 * g;
    u = maximum(s.beta2 * u, absolute(g));
    return -(s.lr * (m / (u + s.epsilon)));
  }
};

// MXNet 1's `adamax`, which has no epsilon. Where it divides zero by zero, no step is taken.
struct AdamaxOfMxnet1 : Rule {
  static constexpr const char* name = "adamax_mxnet1";
  static constexpr int states = 2;
  static constexpr StateKind kinds[] = {StateKind::with_sign, StateKind::non_negative};
  static constexpr bool steps_by_ratio = true;
  static constexpr bool clip_after_wd = true;

  // `lr` comes with the bias correction in it: lr / (1 - beta1^t).
  template <class T>
  struct Scalars {
    T lr, beta1, one_minus_beta1, beta2, epsilon;
  };
  static constexpr const char* scalars[] = {"lr", "beta1", "one_minus_beta1", "beta2", "epsilon"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& m = state[0];
    T& u = state[1];
    m = s.beta1 * m + s.one_minus_beta1 * g;
    u = maximum(s.beta2 * u, absolute(g));
    const T divisor = u + s.epsilon;
    const T step = s.lr * m;
    return -(step / (step == 0 && divisor == 0 ? constant<T>(1) : divisor));
  }
};

}  // namespace mxadamax
