// SPDX-License-Identifier: Apache-2.0
// LANS (Zheng et al., arXiv 2006.13484, algorithm 2), as MXNet's operator `multi_lans_update`
// computes it.
#pragma once

#include "rule.h"

namespace mxadamax {

// The built-in takes the norm of the 16-bit weight, where there is one.
template <bool of_built_in>
struct LansRule : Rule {
  static constexpr const char* name = of_built_in ? "lans_mxnet2" : "lans";

  // First moment m, second moment v.
  static constexpr int states = 2;
  static constexpr StateKind kinds[2] = {StateKind::with_sign, StateKind::second_moment};

  // `correction1` and `correction2` are 1 - beta^t. `direction_bound` bounds the gradient after it
  // was divided by its norm.
  template <class T>
  struct Scalars {
    T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon, correction1, correction2,
        weight_decay, lower_bound, upper_bound, direction_bound;
  };
  static constexpr const char* scalars[] = {"lr",          "beta1",           "one_minus_beta1",
                                            "beta2",       "one_minus_beta2", "epsilon",
                                            "correction1", "correction2",     "weight_decay",
                                            "lower_bound", "upper_bound",     "direction_bound"};

  // The first stage finds the norms of weight and gradient, the second the lengths of two steps:
  // one along the first moment, one along the gradient.
  static constexpr int sums = 2;
  static constexpr bool sums_copy = of_built_in;
  static constexpr int stages = 2;
  static constexpr int scales = 3;
  enum Scale { grad_norm, moment_step, weight_norm, grad_step = weight_norm };

  template <class T>
  struct Directions {
    T moment, grad;
  };

  template <class T>
  MXADAMAX_RULE static Directions<T> directions(const Scalars<T>& s, T norm, T g, T weight,
                                                T* state) {
    T& m = state[0];
    T& v = state[1];
    const T scaled = clipped(g / norm, s.direction_bound);
    m = s.beta1 * m + s.one_minus_beta1 * scaled;
    v = s.beta2 * v + s.one_minus_beta2 * scaled * scaled;
    const T denominator = square_root(v / s.correction2) + s.epsilon;
    const T decay = s.weight_decay * weight;
    return {m / s.correction1 / denominator + decay, scaled / denominator + decay};
  }

  template <int stage, class T>
  MXADAMAX_RULE static void add_terms(const GradientTransform<T>& transform, const Scalars<T>& s,
                                      const T* scale, T grad, T weight, T shown, T* state, T* sum) {
    const T g = prepared_gradient<LansRule>(transform, grad, weight);
    if constexpr (stage == 0) {
      sum[0] += square(decayed_weight(transform, shown));
      sum[1] += square(g);
    } else {
      const T decayed = decayed_weight(transform, weight);
      const Directions<T> found = directions(s, scale[grad_norm], g, decayed, state);
      sum[0] += square(found.moment);
      sum[1] += square(found.grad);
    }
  }

  // NaN passes the bounds.
  template <int stage, class T>
  MXADAMAX_RULE static void find_scales(const GradientTransform<T>&, const Scalars<T>& s,
                                        const T* sum, T* scale) {
    if constexpr (stage == 0) {
      const T found = square_root(sum[0]);
      const T bounded_below = found < s.lower_bound ? s.lower_bound : found;
      scale[weight_norm] = s.upper_bound < bounded_below ? s.upper_bound : bounded_below;
      scale[grad_norm] = square_root(sum[1]);
    } else {
      const T norm = scale[weight_norm];
      const T share = ratio(norm, square_root(sum[0])) * s.beta1;
      // MXNet takes this difference, and the product, in double precision.
      const double others = 1.0 - static_cast<double>(s.beta1);
      const T other_share = static_cast<T>(ratio(norm, square_root(sum[1])) * others);
      scale[moment_step] = s.lr * share;
      scale[grad_step] = s.lr * other_share;
    }
  }

  template <class T>
  MXADAMAX_RULE static T scaled_delta(const Scalars<T>& s, const T* scale, T g, T weight,
                                      T* state) {
    const Directions<T> found = directions(s, scale[grad_norm], g, weight, state);
    return -(scale[moment_step] * found.moment + scale[grad_step] * found.grad);
  }

 private:
  template <class T>
  MXADAMAX_RULE static T ratio(T weight_norm, T norm) {
    return weight_norm != 0 && norm != 0 ? weight_norm / norm : T{1};
  }
};

using Lans = LansRule<false>;
using LansOfMxnet2 = LansRule<true>;

}  // namespace mxadamax
