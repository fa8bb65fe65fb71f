// SPDX-License-Identifier: Apache-2.0
// AdaDelta (Zeiler, arXiv 1212.5701, algorithm 1).
#pragma once

#include "rule.h"

namespace mxadamax {

struct Adadelta : Rule {
  static constexpr const char* name = "adadelta";

  // Second moments of the gradient and of the change.
  static constexpr int states = 2;
  static constexpr StateKind kinds[] = {StateKind::second_moment, StateKind::second_moment};

  template <class T>
  struct Scalars {
    T lr, rho, one_minus_rho, epsilon;
  };
  static constexpr const char* scalars[] = {"lr", "rho", "one_minus_rho", "epsilon"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& v = state[0];
    T& changes = state[1];
    v = s.rho * v + s.one_minus_rho * square(g);
    const T change = square_root(changes + s.epsilon) / square_root(v + s.epsilon) * g;
    changes = s.rho * changes + s.one_minus_rho * square(change);
    return -(s.lr * change);
  }
};

// MXNet 1's `adadelta`, which has no learning rate, and weight decay that nothing divides.
struct AdadeltaOfMxnet1 : Rule {
  static constexpr const char* name = "adadelta_mxnet1";
  static constexpr int states = 2;
  static constexpr StateKind kinds[] = {StateKind::second_moment, StateKind::second_moment};

  template <class T>
  struct Scalars {
    T rho, one_minus_rho, epsilon, weight_decay;
  };
  static constexpr const char* scalars[] = {"rho", "one_minus_rho", "epsilon", "weight_decay"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T weight, T* state) {
    T& v = state[0];
    T& changes = state[1];
    v = s.rho * v + s.one_minus_rho * g * g;
    const T change = square_root(changes + s.epsilon) / square_root(v + s.epsilon) * g;
    changes = s.rho * changes + s.one_minus_rho * change * change;
    return -(change + s.weight_decay * weight);
  }
};

}  // namespace mxadamax
