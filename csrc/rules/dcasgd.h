// SPDX-License-Identifier: Apache-2.0
// Delay-compensated SGD (Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay
// Compensation", arXiv 1609.08326), with and without momentum, as MXNet has it in Python.
#pragma once

#include "rule.h"

namespace mxadamax {

template <bool has_momentum>
struct DcasgdStates : Rule {
  // The last change of the weight, if there is a momentum; then the weight before the last update.
  static constexpr int states = has_momentum ? 2 : 1;
  static constexpr StateKind kinds[2] = {
      has_momentum ? StateKind::with_sign : StateKind::earlier_weight, StateKind::earlier_weight};
  static constexpr bool none_first = !has_momentum;
  // Steps depend on the difference of two weights that are nearly equal.
  static constexpr bool supports_low_precision_state = false;
};

template <bool has_momentum>
struct Dcasgd : DcasgdStates<has_momentum> {
  static constexpr const char* name = has_momentum ? "dcasgd_momentum" : "dcasgd";

  template <class T>
  struct Scalars {
    T lr, momentum, lamda;
  };
  static constexpr const char* scalars[] = {"lr", "momentum", "lamda"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T weight, T* state) {
    T& earlier = state[has_momentum ? 1 : 0];
    const T corrected = square(g) * (weight - earlier) * s.lamda + g;
    earlier = weight;
    if constexpr (has_momentum) {
      return state[0] = state[0] * s.momentum - s.lr * corrected;
    } else {
      return corrected * -s.lr;
    }
  }
};

// MXNet 1's: the correction does not see weight decay.
template <bool has_momentum>
struct DcasgdOfMxnet1 : DcasgdStates<has_momentum> {
  static constexpr const char* name = has_momentum ? "dcasgd_momentum_mxnet1" : "dcasgd_mxnet1";

  template <class T>
  struct Scalars {
    T lr, momentum, lamda, weight_decay;
  };
  static constexpr const char* scalars[] = {"lr", "momentum", "lamda", "weight_decay"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T weight, T* state) {
    T& earlier = state[has_momentum ? 1 : 0];
    const T change = -s.lr * (g + s.weight_decay * weight + s.lamda * g * g * (weight - earlier));
    earlier = weight;
    if constexpr (has_momentum) {
      return state[0] = state[0] * s.momentum + change;
    } else {
      return change;
    }
  }
};

}  // namespace mxadamax
