// SPDX-License-Identifier: Apache-2.0
// FTML, Follow the Moving Leader (Zheng & Kwok, "Follow the Moving Leader in Deep Learning", ICML
// 2017, algorithm 1).
#pragma once

#include "rule.h"

namespace mxadamax {

struct Ftml : Rule {
  static constexpr const char* name = "ftml";

  // d, which steps are divided by; second moment v; z, whose negative is the weight times d.
  static constexpr int states = 3;
  static constexpr StateKind kinds[3] = {StateKind::non_negative, StateKind::second_moment,
                                         StateKind::with_sign};
  static constexpr bool gives_weight = true;
  // Noise of d and z would be noise of the weight.
  static constexpr bool supports_low_precision_state = false;

  // `d_factor` is (1 - beta1^t) / lr.
  template <class T>
  struct Scalars {
    T beta1, one_minus_beta1, beta2, one_minus_beta2, correction2, epsilon, d_factor;
  };
  static constexpr const char* scalars[] = {
      "beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "correction2", "epsilon", "d_factor"};

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T* state) {
    T& d = state[0];
    T& v = state[1];
    T& z = state[2];
    v = s.beta2 * v + s.one_minus_beta2 * square(g);
    const T kept = s.beta1 * d;
    d = (square_root(v / s.correction2) + s.epsilon) * s.d_factor;
    z = s.beta1 * z + s.one_minus_beta1 * g - (d - kept) * weight;
    return -z / d;
  }
};

// MXNet's operator `ftml_update`. It takes powers of the decay rates in the type that it computes
// in, so that there are two of what follows from them.
template <int series>
struct FtmlOfMxnet : Rule {
  static constexpr const char* name = series == 1 ? "ftml_mxnet1" : "ftml_mxnet2";
  static constexpr int states = 3;
  static constexpr StateKind kinds[3] = {StateKind::non_negative, StateKind::second_moment,
                                         StateKind::with_sign};
  static constexpr bool clip_after_wd = series == 1;
  static constexpr bool gives_weight = true;
  static constexpr bool supports_low_precision_state = false;

  template <class T>
  struct Scalars {
    T lr, beta1, beta2, epsilon, correction1, correction2, double_correction1, double_correction2;
  };
  static constexpr const char* scalars[] = {"lr",
                                            "beta1",
                                            "beta2",
                                            "epsilon",
                                            "correction1",
                                            "correction2",
                                            "double_correction1",
                                            "double_correction2"};

  template <class T>
  MXADAMAX_RULE static T new_weight(const Scalars<T>& s, T g, T weight, T* state) {
    T& d = state[0];
    T& v = state[1];
    T& z = state[2];
    constexpr bool is_double = sizeof(T) == sizeof(double);
    const T correction1 = is_double ? s.double_correction1 : s.correction1;
    const T correction2 = is_double ? s.double_correction2 : s.correction2;
    v = s.beta2 * v + (1 - s.beta2) * square(g);
    const T kept = s.beta1 * d;
    d = correction1 / s.lr * (square_root(v / correction2) + s.epsilon);
    z = s.beta1 * z + (1 - s.beta1) * g - (d - kept) * weight;
    return -z / d;
  }
};

}  // namespace mxadamax
