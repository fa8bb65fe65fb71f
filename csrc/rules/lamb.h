// SPDX-License-Identifier: Apache-2.0
// LAMB (You et al., arXiv 1904.00962, algorithm 2), as MXNet's operator `multi_lamb_update`
// computes it.
#pragma once

#include <type_traits>

#include "rule.h"

namespace mxadamax {

// `correction1` and `correction2` are 1 - beta^t, or 1 without bias correction.
template <class T>
struct LambScalars {
  T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon, correction1, correction2,
      weight_decay, lower_bound, upper_bound;

  MXADAMAX_RULE T first_correction() const { return correction1; }
  MXADAMAX_RULE T second_correction() const { return correction2; }
};
struct LambBase : Rule {
  template <class T>
  using Scalars = LambScalars<T>;
  static constexpr const char* scalars[] = {
      "lr",          "beta1",       "one_minus_beta1", "beta2",       "one_minus_beta2", "epsilon",
      "correction1", "correction2", "weight_decay",    "lower_bound", "upper_bound"};
};

// With corrections in double precision, for float64 weights.
template <class T>
struct LambScalarsOfMxnet1 : LambScalars<T> {
  T double_correction1, double_correction2;

  MXADAMAX_RULE T first_correction() const {
    return sizeof(T) == 8 ? double_correction1 : this->correction1;
  }
  MXADAMAX_RULE T second_correction() const {
    return sizeof(T) == 8 ? double_correction2 : this->correction2;
  }
};
struct LambBaseOfMxnet1 : Rule {
  template <class T>
  using Scalars = LambScalarsOfMxnet1<T>;
  static constexpr const char* scalars[] = {"lr",
                                            "beta1",
                                            "one_minus_beta1",
                                            "beta2",
                                            "one_minus_beta2",
                                            "epsilon",
                                            "correction1",
                                            "correction2",
                                            "weight_decay",
                                            "lower_bound",
                                            "upper_bound",
                                            "double_correction1",
                                            "double_correction2"};
};

// MXNet 1 divides the moments in double precision. Its built-in corrects the bias of float64
// weights in double precision as well, but keeps deltas and norms in single precision for weights
// of any type. The norm of a 16-bit weight is its own, not that of the master, with squares in 16
// bits.
enum class LambArithmetic { plain, double_quotient, mxnet1 };

template <LambArithmetic arithmetic>
struct LambRule
    : std::conditional_t<arithmetic == LambArithmetic::mxnet1, LambBaseOfMxnet1, LambBase> {
  static constexpr bool of_mxnet1 = arithmetic == LambArithmetic::mxnet1;
  static constexpr const char* names[3] = {"lamb", "lamb_double_quotient", "lamb_mxnet1"};
  static constexpr const char* name = names[static_cast<int>(arithmetic)];

  // First moment m, second moment v.
  static constexpr int states = 2;
  static constexpr StateKind kinds[2] = {StateKind::with_sign, StateKind::second_moment};
  static constexpr bool in_vectors = arithmetic == LambArithmetic::plain;

  template <class T, class Scalars>
  MXADAMAX_RULE static T delta(const Scalars& s, T g, T weight, T* state) {
    T& m = state[0];
    T& v = state[1];
    m = s.beta1 * m + s.one_minus_beta1 * g;
    v = s.beta2 * v + s.one_minus_beta2 * g * g;
    const T corrected_m = m / s.first_correction();
    const T corrected_v = v / s.second_correction();
    const T decay = s.weight_decay * weight;
    if constexpr (arithmetic != LambArithmetic::plain) {
      const double root = square_root(static_cast<double>(corrected_v));
      const double found = corrected_m / (root + s.epsilon) + decay;
      return static_cast<std::conditional_t<of_mxnet1, float, T>>(found);
    }
    return corrected_m / (square_root(corrected_v) + s.epsilon) + decay;
  }

  // The squared norms of weight and delta. States become new, for nobody.
  static constexpr int sums = 2;
  static constexpr bool sums_copy = of_mxnet1;
  static constexpr int half_squares = of_mxnet1 ? 1 : 0;
  template <class T>
  using Total = std::conditional_t<of_mxnet1, float, T>;

  template <int, class T, class Scalars>
  MXADAMAX_RULE static void add_terms(const GradientTransform<T>& transform, const Scalars& s,
                                      const T*, T grad, T weight, T shown, T* state, T* sum) {
    const T g = prepared_gradient<LambRule>(transform, grad, weight);
    const T decayed = decayed_weight(transform, weight);
    sum[0] += square(decayed_weight(transform, shown));
    sum[1] += square(static_cast<Total<T>>(delta(s, g, decayed, state)));
  }
  // What deltas are multiplied by: the learning rate, times the trust ratio.
  template <int, class T, class Scalars>
  MXADAMAX_RULE static void find_scales(const GradientTransform<T>&, const Scalars& s,
                                        const Total<T>* sum, T* scale) {
    const auto lower_bound = static_cast<Total<T>>(s.lower_bound);
    const auto upper_bound = static_cast<Total<T>>(s.upper_bound);
    const Total<T> found = square_root(sum[0]);
    const Total<T> delta_norm = square_root(sum[1]);
    // NaN passes through.
    const Total<T> bounded_below = found < lower_bound ? lower_bound : found;
    const Total<T> weight_norm = upper_bound < bounded_below ? upper_bound : bounded_below;
    const bool has_ratio = weight_norm != 0 && delta_norm != 0;
    const Total<T> ratio = has_ratio ? weight_norm / delta_norm : 1;
    scale[0] = -(s.lr * ratio);
  }
  template <class T, class Scalars>
  MXADAMAX_RULE static T scaled_delta(const Scalars& s, const T* scale, T g, T weight, T* state) {
    return delta(s, g, weight, state) * scale[0];
  }
};

using Lamb = LambRule<LambArithmetic::plain>;
using LambOfDoubleQuotient = LambRule<LambArithmetic::double_quotient>;
using LambOfMxnet1 = LambRule<LambArithmetic::mxnet1>;

}  // namespace mxadamax
