// SPDX-License-Identifier: Apache-2.0
// AdaGrad (Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
// Optimization", JMLR 12, 2011).
#pragma once

#include "rule.h"

namespace mxadamax {

struct Adagrad : Rule {
  static constexpr const char* name = "adagrad";

  // Sum of the squares of all gradients.
  static constexpr int states = 1;
  static constexpr StateKind kinds[] = {StateKind::second_moment};

  template <class T>
  struct Scalars {
    T lr, epsilon;
  };
  static constexpr const char* scalars[] = {"lr", "epsilon"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& history = state[0];
    history = history + square(g);
    return -(s.lr * (g / (square_root(history) + s.epsilon)));
  }
};

// MXNet 1's `adagrad`: `epsilon` under the root, and weight decay that nothing divides.
struct AdagradOfMxnet1 : Rule {
  static constexpr const char* name = "adagrad_mxnet1";
  static constexpr int states = 1;
  static constexpr StateKind kinds[] = {StateKind::second_moment};

  template <class T>
  struct Scalars {
    T lr, epsilon, weight_decay;
  };
  static constexpr const char* scalars[] = {"lr", "epsilon", "weight_decay"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T weight, T* state) {
    T& history = state[0];
    history = history + square(g);
    return -(s.lr * (g / square_root(history + s.epsilon) + s.weight_decay * weight));
  }
};

}  // namespace mxadamax
