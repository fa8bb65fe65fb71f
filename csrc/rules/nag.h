// SPDX-License-Identifier: Apache-2.0
// Nesterov's accelerated gradient (Nesterov, "A method for solving the convex programming problem
// with convergence rate O(1/k^2)", 1983) in the form of Sutskever et al., ICML 2013.
#pragma once

#include "rule.h"

namespace mxadamax {

struct Nag : Rule {
  static constexpr const char* name = "nag";

  // The last change of the weight, without the look ahead.
  static constexpr int states = 1;
  static constexpr StateKind kinds[] = {StateKind::with_sign};

  template <class T>
  struct Scalars {
    T lr, momentum;
  };
  static constexpr const char* scalars[] = {"lr", "momentum"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& change = state[0];
    change = s.momentum * change - s.lr * g;
    return s.momentum * change - s.lr * g;
  }
};

}  // namespace mxadamax
