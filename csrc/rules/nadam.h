// SPDX-License-Identifier: Apache-2.0
// Nadam, Adam with Nesterov momentum (Dozat, "Incorporating Nesterov Momentum into Adam", ICLR
// workshop 2016).
#pragma once

#include "rule.h"

namespace mxadamax {

// MXNet 1 and 2 compute in other orders.
template <bool of_mxnet1>
struct NadamRule : Rule {
  static constexpr const char* name = of_mxnet1 ? "nadam_mxnet1" : "nadam";

  // First moment m, second moment v.
  static constexpr int states = 2;
  static constexpr StateKind kinds[2] = {StateKind::with_sign, StateKind::second_moment};
  static constexpr bool clip_after_wd = of_mxnet1;

  // `momentum` and `next_momentum` are the schedule's values for this step and the next. The
  // divisors are one minus the product of all momenta up to this step (grad_divisor) and up to the
  // next (m_divisor), and one minus beta2^t (v_divisor).
  template <class T>
  struct Scalars {
    T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon;
    T one_minus_momentum, next_momentum, grad_divisor, m_divisor, v_divisor;
  };
  static constexpr const char* scalars[] = {"lr",
                                            "beta1",
                                            "one_minus_beta1",
                                            "beta2",
                                            "one_minus_beta2",
                                            "epsilon",
                                            "one_minus_momentum",
                                            "next_momentum",
                                            "grad_divisor",
                                            "m_divisor",
                                            "v_divisor"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& m = state[0];
    T& v = state[1];
    m = s.beta1 * m + s.one_minus_beta1 * g;
    v = s.beta2 * v + (of_mxnet1 ? s.one_minus_beta2 * g * g : s.one_minus_beta2 * square(g));
    const T ahead =
        s.next_momentum * (m / s.m_divisor) + s.one_minus_momentum * (g / s.grad_divisor);
    const T divisor = square_root(v / s.v_divisor) + s.epsilon;
    return of_mxnet1 ? -(s.lr * ahead / divisor) : -(s.lr * (ahead / divisor));
  }
};

using Nadam = NadamRule<false>;
using NadamOfMxnet1 = NadamRule<true>;

}  // namespace mxadamax
