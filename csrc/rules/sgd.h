// SPDX-License-Identifier: Apache-2.0
// Stochastic gradient descent, plain and with momentum (Polyak, "Some methods of speeding up the
// convergence of iteration methods", 1964).
#pragma once

#include "rule.h"

namespace mxadamax {

struct Sgd : Rule {
  static constexpr const char* name = "sgd";
  static constexpr int states = 0;
  static constexpr StateKind kinds[] = {StateKind::with_sign};

  template <class T>
  struct Scalars {
    T lr;
  };
  static constexpr const char* scalars[] = {"lr"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T*) {
    return -(s.lr * g);
  }
};

struct SgdMomentum : Rule {
  static constexpr const char* name = "sgd_momentum";

  // The last change of the weight.
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
    return change;
  }
};

// MXNet 1's operators `multi_sgd_update` and `multi_sgd_mom_update`, which multiply the weight by
// the learning rate and `weight_decay` first. `grad_scale` is `rescale_grad` where nothing is
// clipped; the gradient has not been multiplied by it then.
template <class T>
struct SgdScalarsOfMxnet1 {
  T lr, weight_decay, grad_scale;
};

struct SgdOfMxnet1 : Rule {
  static constexpr const char* name = "sgd_mxnet1";
  static constexpr int states = 0;
  static constexpr StateKind kinds[] = {StateKind::with_sign};

  template <class T>
  using Scalars = SgdScalarsOfMxnet1<T>;
  static constexpr const char* scalars[] = {"lr", "weight_decay", "grad_scale"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T weight, T*) {
    return 0 - s.lr * s.weight_decay * weight - s.lr * s.grad_scale * g;
  }
};

// MXNet 1's operator `sgd_update`, which its optimizers use for one array at a time.
struct SingleSgdOfMxnet1 : Rule {
  static constexpr const char* name = "single_sgd_mxnet1";
  static constexpr int states = 0;
  static constexpr StateKind kinds[] = {StateKind::with_sign};
  static constexpr bool gives_weight = true;

  template <class T>
  using Scalars = SgdScalarsOfMxnet1<T>;
  static constexpr const char* scalars[] = {"lr", "weight_decay", "grad_scale"};

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T*) {
    return (1 - s.lr * s.weight_decay) * weight - s.lr * s.grad_scale * g;
  }
};

struct SgdMomentumOfMxnet1 : Rule {
  static constexpr const char* name = "sgd_momentum_mxnet1";
  static constexpr int states = 1;
  static constexpr StateKind kinds[] = {StateKind::with_sign};

  template <class T>
  struct Scalars {
    T lr, momentum, weight_decay, grad_scale;
  };
  static constexpr const char* scalars[] = {"lr", "momentum", "weight_decay", "grad_scale"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T weight, T* state) {
    T& change = state[0];
    change = s.momentum * change - s.lr * s.weight_decay * weight - s.lr * s.grad_scale * g;
    return change;
  }
};

}  // namespace mxadamax
