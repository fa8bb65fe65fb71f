// SPDX-License-Identifier: Apache-2.0
// AdaBelief (Zhuang et al., arXiv 2010.07468, algorithm 2).
#pragma once

#include "rule.h"

namespace mxadamax {

struct Adabelief : Rule {
  static constexpr const char* name = "adabelief";

  // First moment m; second moment v of the gradient's deviation from m.
  static constexpr int states = 2;
  static constexpr StateKind kinds[] = {StateKind::with_sign, StateKind::second_moment};
  static constexpr bool steps_by_ratio = true;

  static constexpr bool clip_after_wd = true;

  // `lr` includes the bias corrections: lr * sqrt(1 - beta2^t) / (1 - beta1^t).
  template <class T>
  struct Scalars {
    T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon;
  };
  static constexpr const char* scalars[] = {"lr",    "beta1",           "one_minus_beta1",
                                            "beta2", "one_minus_beta2", "epsilon"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& m = state[0];
    T& v = state[1];
    m = s.beta1 * m + s.one_minus_beta1 * g;
    v = s.beta2 * v + s.one_minus_beta2 * square(g - m) + s.epsilon;
    return -(s.lr * (m / (square_root(v) + s.epsilon)));
  }
};

// MXNet 2's operator `multi_adabelief_update`, or for row_sparse gradients `adabelief_update`.
template <bool of_rows>
struct AdabeliefOfMxnet2 : Rule {
  static constexpr const char* name = of_rows ? "adabelief_rows_mxnet2" : "adabelief_mxnet2";
  static constexpr int states = 2;
  static constexpr StateKind kinds[2] = {StateKind::with_sign, StateKind::second_moment};
  static constexpr bool steps_by_ratio = true;
  static constexpr bool clip_after_wd = true;

  // `lr` comes with the bias corrections in it.
  template <class T>
  struct Scalars {
    T lr, beta1, beta2, epsilon;
  };
  static constexpr const char* scalars[] = {"lr", "beta1", "beta2", "epsilon"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& m = state[0];
    T& v = state[1];
    m = of_rows ? s.beta1 * m + (1 - s.beta1) * g : s.beta1 * (m - g) + g;
    const T distance = square(m - g);
    v = (of_rows ? s.beta2 * v + (1 - s.beta2) * distance : s.beta2 * (v - distance) + distance) +
        s.epsilon;
    return -(s.lr * (m / (square_root(v) + s.epsilon)));
  }
};

}  // namespace mxadamax
