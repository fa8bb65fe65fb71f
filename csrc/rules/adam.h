// SPDX-License-Identifier: Apache-2.0
// Adam (Kingma & Ba, arXiv 1412.6980, section 2, algorithm 1) and AMSGrad (Reddi, Kale & Kumar,
// arXiv 1904.09237, algorithm 2).
#pragma once

#include "rule.h"

namespace mxadamax {

template <bool amsgrad>
struct AdamRule : Rule {
  static constexpr const char* name = amsgrad ? "amsgrad" : "adam";

  // First moment m, second moment v; for AMSGrad the largest v so far.
  static constexpr int states = amsgrad ? 3 : 2;
  static constexpr StateKind kinds[3] = {StateKind::with_sign, StateKind::second_moment,
                                         StateKind::second_moment};
  static constexpr bool steps_by_ratio = true;
  static constexpr bool keeps_largest = amsgrad;

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
    v = s.beta2 * v + s.one_minus_beta2 * square(g);
    T scale = v;
    if constexpr (amsgrad) scale = state[2] = maximum(state[2], v);
    return -(s.lr * (m / (square_root(scale) + s.epsilon)));
  }
};

using Adam = AdamRule<false>;
using Amsgrad = AdamRule<true>;

// MXNet's operator `adam_update`. With `squared_first`, the square of the gradient is one factor,
// as in what MXNet runs for most row_sparse gradients.
template <int series, bool squared_first>
struct AdamOfMxnet : Rule {
  static constexpr const char* name = series == 1
                                          ? (squared_first ? "adam_rows_mxnet1" : "adam_mxnet1")
                                          : (squared_first ? "adam_rows_mxnet2" : "adam_mxnet2");
  static constexpr int states = 2;
  static constexpr StateKind kinds[2] = {StateKind::with_sign, StateKind::second_moment};
  static constexpr bool steps_by_ratio = true;
  static constexpr bool clip_after_wd = series == 1;

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
    m = s.beta1 * m + (1 - s.beta1) * g;
    const T unseen = 1 - s.beta2;
    v = s.beta2 * v + (squared_first ? unseen * square(g) : unseen * g * g);
    return -(s.lr * m / (square_root(v) + s.epsilon));
  }
};

}  // namespace mxadamax
