// SPDX-License-Identifier: Apache-2.0
// Nesterov's accelerated gradient (Nesterov, "A method for solving the convex programming problem
// with convergence rate O(1/k^2)", 1983) in the form of Sutskever et al., ICML 2013.
#pragma once

#include "rule.h"

namespace mxadamax {

struct Nag : Rule {
  static constexpr const char* name = "nag";

  // The last change of the weight, without the look ahead.
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
    return s.momentum * change - s.lr * g;
  }
};

// MXNet 1's operator `nag_mom_update`. It has written the new weight when it takes the weight decay
// that goes into its state, but for row_sparse weights, which it updates in a copy.
template <bool of_rows>
struct NagOfMxnet1 : Rule {
  static constexpr const char* name = of_rows ? "nag_rows_mxnet1" : "nag_mxnet1";
  static constexpr int states = 1;
  static constexpr StateKind kinds[1] = {StateKind::with_sign};
  static constexpr bool gives_weight = true;

  template <class T>
  struct Scalars {
    T lr, momentum, weight_decay;
  };
  static constexpr const char* scalars[] = {"lr", "momentum", "weight_decay"};

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T* state) {
    const T kept = s.momentum * state[0];
    const T change = kept - s.lr * (g + s.weight_decay * weight);
    const T updated = weight - kept + (s.momentum + 1) * change;
    state[0] = of_rows ? change : kept - s.lr * (g + s.weight_decay * updated);
    return updated;
  }
};

// MXNet 2's operator `nag_mom_update`. Its `mp_nag_mom_update`, for masters, is `Nag`.
struct NagOfMxnet2 : Rule {
  static constexpr const char* name = "nag_mxnet2";
  static constexpr int states = 1;
  static constexpr StateKind kinds[] = {StateKind::with_sign};
  static constexpr bool gives_weight = true;

  template <class T>
  struct Scalars {
    T lr, momentum;
  };
  static constexpr const char* scalars[] = {"lr", "momentum"};

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T* state) {
    T& change = state[0];
    change = s.momentum * change - s.lr * g;
    return weight + s.momentum * change - s.lr * g;
  }
};

}  // namespace mxadamax
