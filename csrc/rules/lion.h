// SPDX-License-Identifier: Apache-2.0
// Lion (Chen et al., arXiv 2302.06675, algorithm 2).
#pragma once

#include "rule.h"

namespace mxadamax {

struct Lion : Rule {
  static constexpr const char* name = "lion";

  // First moment m.
  static constexpr int states = 1;
  static constexpr StateKind kinds[] = {StateKind::with_sign};

  template <class T>
  struct Scalars {
    T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, weight_decay;
  };
  static constexpr const char* scalars[] = {"lr",    "beta1",           "one_minus_beta1",
                                            "beta2", "one_minus_beta2", "weight_decay"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T weight, T* state) {
    T& m = state[0];
    const T direction = s.beta1 * m + s.one_minus_beta1 * g;
    m = s.beta2 * m + s.one_minus_beta2 * g;
    return -(s.lr * (sign(direction) + s.weight_decay * weight));
  }
};

}  // namespace mxadamax
