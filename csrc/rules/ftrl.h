// SPDX-License-Identifier: Apache-2.0
// FTRL-Proximal (McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013,
// algorithm 1).
#pragma once

#include "rule.h"

namespace mxadamax {

// What all of these are.
struct FtrlRule : Rule {
  // z, from which the weight is made; n, the sum of the squares of all gradients.
  static constexpr int states = 2;
  static constexpr StateKind kinds[2] = {StateKind::with_sign, StateKind::second_moment};
  static constexpr bool gives_weight = true;
  // Noise of z would be noise of the weight.
  static constexpr bool supports_low_precision_state = false;

  template <class T>
  struct Scalars {
    T lr, lamda1, beta, weight_decay;
  };
  static constexpr const char* scalars[] = {"lr", "lamda1", "beta", "weight_decay"};
};

struct Ftrl : FtrlRule {
  static constexpr const char* name = "ftrl";

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T* state) {
    T& z = state[0];
    T& n = state[1];
    const T root_before = square_root(n);
    n = n + square(g);
    const T root = square_root(n);
    const T sigma = (root - root_before) / s.lr;
    z = z + (g - sigma * weight);
    const T divisor = (root + s.beta) / s.lr + s.weight_decay;
    return -(sign(z) * maximum(absolute(z) - s.lamda1, T{0})) / divisor;
  }
};

// MXNet's operator `ftrl_update`.
template <int series>
struct FtrlOfMxnet : FtrlRule {
  static constexpr const char* name = series == 1 ? "ftrl_mxnet1" : "ftrl_mxnet2";

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T* state) {
    T& z = state[0];
    T& n = state[1];
    z = z + (g - (square_root(n + square(g)) - square_root(n)) * weight / s.lr);
    n = n + square(g);
    const T divisor = (s.beta + square_root(n)) / s.lr + s.weight_decay;
    const T size = absolute(z);
    if (series == 1) {
      return (sign(z) * s.lamda1 - z) / divisor * (size > s.lamda1 ? T{1} : T{0});
    }
    return -sign(z) * maximum(size - s.lamda1, T{0}) / divisor;
  }
};

}  // namespace mxadamax
