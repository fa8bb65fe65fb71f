// SPDX-License-Identifier: Apache-2.0
// Stochastic gradient Langevin dynamics (Welling & Teh, "Bayesian Learning via Stochastic Gradient
// Langevin Dynamics", ICML 2011).
#pragma once

#include "rule.h"

namespace mxadamax {

struct Sgld : Rule {
  static constexpr const char* name = "sgld";

  // The noise of this step, which MXNet draws.
  static constexpr int states = 1;
  static constexpr StateKind kinds[1] = {StateKind::with_sign};
  static constexpr bool supports_low_precision_state = false;
  static constexpr bool gives_weight = true;

  template <class T>
  struct Scalars {
    T half_lr;
  };
  static constexpr const char* scalars[] = {"half_lr"};

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T* state) {
    return weight - s.half_lr * g + state[0];
  }
};

}  // namespace mxadamax
