// SPDX-License-Identifier: Apache-2.0
// Stochastic gradient descent, plain and with momentum (Polyak, "Some methods of speeding up the
// convergence of iteration methods", 1964).
#pragma once

#include "rule.h"

namespace mxadamax {

struct Sgd : Rule {
  static constexpr const char* name = "sgd";
  static constexpr int states = 0;
  static constexpr StateKind kinds[] = {StateKind::with_sign};

  template <class T>
  struct Scalars {
    T lr;
  };
  static constexpr const char* scalars[] = {"lr"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T*) {
    return -(s.lr * g);
  }
};

struct SgdMomentum : Rule {
  static constexpr const char* name = "sgd_momentum";

  // The last change of the weight.
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
    return change;
  }
};

}  // namespace mxadamax
