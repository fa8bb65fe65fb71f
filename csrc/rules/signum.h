// SPDX-License-Identifier: Apache-2.0
// Signum and signSGD (Bernstein, Wang, Azizzadenesheli & Anandkumar, "signSGD: Compressed
// Optimisation for Non-Convex Problems", arXiv 1802.04434, algorithms 2 and 1).
#pragma once

#include "rule.h"

namespace mxadamax {

// -1, 0 or 1; 0 for NaN.
template <class T>
MXADAMAX_RULE T sign_or_zero(T a) {
  const T not_positive = a < 0 ? constant<T>(-1) : constant<T>(0);
  return a > 0 ? constant<T>(1) : not_positive;
}

struct Signum : Rule {
  static constexpr const char* name = "signum";

  // The momentum: an average of the gradients, with the other sign.
  static constexpr int states = 1;
  static constexpr StateKind kinds[] = {StateKind::with_sign};

  template <class T>
  struct Scalars {
    T lr, momentum, one_minus_momentum;
  };
  static constexpr const char* scalars[] = {"lr", "momentum", "one_minus_momentum"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& m = state[0];
    m = s.momentum * m - s.one_minus_momentum * g;
    return s.lr * sign_or_zero(m);
  }
};

struct Signsgd : Rule {
  static constexpr const char* name = "signsgd";
  static constexpr int states = 0;
  static constexpr StateKind kinds[] = {StateKind::with_sign};

  template <class T>
  struct Scalars {
    T lr;
  };
  static constexpr const char* scalars[] = {"lr"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T*) {
    return -(s.lr * sign_or_zero(g));
  }
};

// MXNet 2's operator `signum_update`.
struct SignumOfMxnet2 : Rule {
  static constexpr const char* name = "signum_mxnet2";
  static constexpr int states = 1;
  static constexpr StateKind kinds[] = {StateKind::with_sign};
  static constexpr bool gives_weight = true;

  template <class T>
  struct Scalars {
    T lr, momentum, wd_lh;
  };
  static constexpr const char* scalars[] = {"lr", "momentum", "wd_lh"};

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T* state) {
    T& m = state[0];
    m = s.momentum * m - (1 - s.momentum) * g;
    return (1 - s.lr * s.wd_lh) * weight + s.lr * sign_or_zero(m);
  }
};

// MXNet 1's, which multiplies the weight by `weight_decay` last. `grad_scale` is `rescale_grad`
// where nothing is clipped; the gradient has not been multiplied by it then.
struct SignumOfMxnet1 : Rule {
  static constexpr const char* name = "signum_mxnet1";
  static constexpr int states = 1;
  static constexpr StateKind kinds[] = {StateKind::with_sign};
  static constexpr bool gives_weight = true;

  template <class T>
  struct Scalars {
    T lr, momentum, weight_decay, wd_lh, grad_scale;
  };
  static constexpr const char* scalars[] = {"lr", "momentum", "weight_decay", "wd_lh",
                                            "grad_scale"};

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T* state) {
    T& m = state[0];
    const T unseen = 1 - s.momentum;
    m = s.momentum * m - unseen * s.weight_decay * weight - unseen * s.grad_scale * g;
    return (1 - s.lr * s.wd_lh) * weight + s.lr * sign_or_zero(m);
  }
};

// The operator `signsgd_update` of both.
struct SignsgdOfMxnet : Rule {
  static constexpr const char* name = "signsgd_mxnet";
  static constexpr int states = 0;
  static constexpr StateKind kinds[] = {StateKind::with_sign};
  static constexpr bool gives_weight = true;

  template <class T>
  struct Scalars {
    T lr, weight_decay;
  };
  static constexpr const char* scalars[] = {"lr", "weight_decay"};

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T*) {
    return (1 - s.lr * s.weight_decay) * weight - s.lr * sign_or_zero(g);
  }
};

}  // namespace mxadamax
