// SPDX-License-Identifier: Apache-2.0
// LAMB (You et al., arXiv 1904.00962, algorithm 2), as MXNet's operator `multi_lamb_update`
// computes it.
#pragma once

#include "rule.h"

namespace mxadamax {

// MXNet 1 divides the moments in double precision, MXNet 2 in the weight's type.
template <bool double_quotient>
struct LambRule : Rule {
  static constexpr const char* name = double_quotient ? "lamb_mxnet1" : "lamb";

  // First moment m, second moment v.
  static constexpr int states = 2;
  static constexpr StateKind kinds[2] = {StateKind::with_sign, StateKind::second_moment};

  // `correction1` and `correction2` are 1 - beta^t, or 1 without bias correction.
  template <class T>
  struct Scalars {
    T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon, correction1, correction2,
        weight_decay, lower_bound, upper_bound;
  };
  static constexpr const char* scalars[] = {
      "lr",          "beta1",       "one_minus_beta1", "beta2",       "one_minus_beta2", "epsilon",
      "correction1", "correction2", "weight_decay",    "lower_bound", "upper_bound"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T weight, T* state) {
    T& m = state[0];
    T& v = state[1];
    m = s.beta1 * m + s.one_minus_beta1 * g;
    v = s.beta2 * v + s.one_minus_beta2 * g * g;
    const T corrected_m = m / s.correction1;
    const T corrected_v = v / s.correction2;
    const T decay = s.weight_decay * weight;
    if constexpr (double_quotient) {
      const double root = square_root(static_cast<double>(corrected_v));
      return static_cast<T>(corrected_m / (root + s.epsilon) + decay);
    }
    return corrected_m / (square_root(corrected_v) + s.epsilon) + decay;
  }

  // The squared norms of weight and delta. States become new, for nobody.
  static constexpr int sums = 2;
  template <int, class T>
  MXADAMAX_RULE static void add_terms(const GradientTransform<T>& transform, const Scalars<T>& s,
                                      const T*, T grad, T weight, T* state, T* sum) {
    const T g = prepared_gradient<LambRule>(transform, grad, weight);
    const T decayed = decayed_weight(transform, weight);
    sum[0] += square(decayed);
    sum[1] += square(delta(s, g, decayed, state));
  }
  // What deltas are multiplied by: the learning rate, times the trust ratio.
  template <int, class T>
  MXADAMAX_RULE static void find_scales(const GradientTransform<T>&, const Scalars<T>& s,
                                        const T* sum, T* scale) {
    const T found = square_root(sum[0]);
    const T delta_norm = square_root(sum[1]);
    // NaN passes through.
    const T bounded_below = found < s.lower_bound ? s.lower_bound : found;
    const T weight_norm = s.upper_bound < bounded_below ? s.upper_bound : bounded_below;
    const bool has_ratio = weight_norm != 0 && delta_norm != 0;
    scale[0] = -(s.lr * (has_ratio ? weight_norm / delta_norm : 1));
  }
  template <class T>
  MXADAMAX_RULE static T scaled_delta(const Scalars<T>& s, const T* scale, T g, T weight,
                                      T* state) {
    return delta(s, g, weight, state) * scale[0];
  }
};

using Lamb = LambRule<false>;
using LambOfMxnet1 = LambRule<true>;

}  // namespace mxadamax
