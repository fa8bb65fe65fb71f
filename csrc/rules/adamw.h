// SPDX-License-Identifier: Apache-2.0
// AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2), as MXNet 2's operator
// `multi_adamw_update` computes it, or for row_sparse gradients `adamw_update`. The portable one is
// `Adam` with decoupled weight decay.
#pragma once

#include "rule.h"

namespace mxadamax {

template <bool of_rows>
struct AdamwOfMxnet2 : Rule {
  static constexpr const char* name = of_rows ? "adamw_rows_mxnet2" : "adamw_mxnet2";
  static constexpr int states = 2;
  static constexpr StateKind kinds[2] = {StateKind::with_sign, StateKind::second_moment};

  // `lr` comes with the bias corrections in it.
  template <class T>
  struct Scalars {
    T lr, beta1, beta2, epsilon, weight_decay;
  };
  static constexpr const char* scalars[] = {"lr", "beta1", "beta2", "epsilon", "weight_decay"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T weight, T* state) {
    T& m = state[0];
    T& v = state[1];
    m = of_rows ? s.beta1 * m + (1 - s.beta1) * g : s.beta1 * (m - g) + g;
    const T squared = square(g);
    v = of_rows ? s.beta2 * v + (1 - s.beta2) * squared : s.beta2 * (v - squared) + squared;
    return -(s.lr * (m / (square_root(v) + s.epsilon) + s.weight_decay * weight));
  }
};

}  // namespace mxadamax
