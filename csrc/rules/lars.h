// SPDX-License-Identifier: Apache-2.0
// LARS (You et al., arXiv 1708.03888): stochastic gradient descent with a learning rate for each
// parameter, which depends on the norms of the parameter and of its gradient.
#pragma once

#include <type_traits>

#include "rule.h"

namespace mxadamax {

// `adapts` is 0 for a parameter whose learning rate is left as it is, and otherwise the sign of
// `rescale_grad`, by which MXNet's operators multiply a norm. `grad_scale` is as that of
// SgdOfMxnet1.
template <class T>
struct LarsScalars {
  T lr, momentum, weight_decay, grad_scale, eta, epsilon, adapts;
};

template <bool has_momentum>
struct LarsBase : Rule {
  // The last change of the weight.
  static constexpr int states = has_momentum ? 1 : 0;
  static constexpr StateKind kinds[1] = {StateKind::with_sign};

  template <class T>
  using Scalars = LarsScalars<T>;
  static constexpr const char* scalars[] = {"lr",  "momentum", "weight_decay", "grad_scale",
                                            "eta", "epsilon",  "adapts"};

  // The squared norms of weight and gradient.
  static constexpr int sums = 2;
  // The learning rate of the parameter is all that follows from them.
  static constexpr int scales = 1;
};

// As the `step` of MXNet 2 computes it, and both series where they update one array at a time: with
// norms that are those of MXNet 2's operator, or in double precision, rounded to single.
template <bool has_momentum, bool of_built_in>
struct LarsRule : LarsBase<has_momentum> {
  static constexpr const char* names[2][2] = {{"lars", "lars_momentum"},
                                              {"lars_alone_mxnet2", "lars_momentum_alone_mxnet2"}};
  static constexpr const char* name = names[of_built_in][has_momentum];

  template <class>
  using Total = std::conditional_t<of_built_in, float, double>;
  static constexpr bool sums_in_any_order = !of_built_in;
  static constexpr bool sums_copy = of_built_in;
  static constexpr bool scaled_norms = of_built_in;

  template <int, class T, class Sum>
  MXADAMAX_RULE static void add_terms(const GradientTransform<T>& transform, const LarsScalars<T>&,
                                      const T*, T grad, T, T shown, T*, Sum* sum) {
    const auto w = static_cast<float>(decayed_weight(transform, shown));
    const float g = static_cast<float>(grad) * static_cast<float>(transform.rescale_grad);
    if constexpr (scaled_norms) {
      sum[0] += w;
      sum[1] += g;
    } else {
      sum[0] += square(static_cast<double>(w));
      sum[1] += square(static_cast<double>(g));
    }
  }

  template <int, class T, class S, class Sum, class Found>
  MXADAMAX_RULE static void find_scales(const GradientTransform<T>& transform,
                                        const LarsScalars<S>& s, const Sum* sum, Found* scale) {
    const auto weight_norm = static_cast<float>(scaled_norms ? sum[0] : square_root(sum[0]));
    const auto grad_norm = static_cast<float>(scaled_norms ? sum[1] : square_root(sum[1]));
    const float ratio = weight_norm / grad_norm;
    // Neither zero, infinite nor NaN.
    const bool has_ratio = ratio / ratio == 1;
    const auto wd = static_cast<float>(transform.wd < 0 ? 0 : transform.wd);
    const float factor = static_cast<float>(s.eta) * weight_norm /
                         (grad_norm + wd * weight_norm + static_cast<float>(s.epsilon));
    scale[0] = s.adapts != 0 && has_ratio
                   ? static_cast<Found>(static_cast<double>(s.lr) * static_cast<double>(factor))
                   : static_cast<Found>(s.lr);
  }

  template <class T>
  MXADAMAX_RULE static T scaled_delta(const LarsScalars<T>& s, const T* scale, T g, T, T* state) {
    if constexpr (has_momentum) {
      T& change = state[0];
      change = s.momentum * change - scale[0] * g;
      return change;
    } else {
      return -(scale[0] * g);
    }
  }
};

// As MXNet's operators `multi_sum_sq`, `multi_lars` and `preloaded_multi_sgd_update` or
// `preloaded_multi_sgd_mom_update`: sums, learning rates and weight decay are in single precision
// for arrays of any type.
template <int series, bool has_momentum>
struct LarsOfMxnet : LarsBase<has_momentum> {
  static constexpr const char* names[2][2] = {{"lars_mxnet1", "lars_momentum_mxnet1"},
                                              {"lars_mxnet2", "lars_momentum_mxnet2"}};
  static constexpr const char* name = names[series - 1][has_momentum];

  template <class>
  using Total = float;
  static constexpr bool sums_copy = true;
  static constexpr int half_squares = series == 1 ? 2 : 0;

  // MXNet 1 squares in the type of the array.
  template <int, class T>
  MXADAMAX_RULE static void add_terms(const GradientTransform<T>& transform, const LarsScalars<T>&,
                                      const T*, T grad, T, T shown, T*, T* sum) {
    const T decayed = decayed_weight(transform, shown);
    if constexpr (series == 1) {
      sum[0] += square(decayed);
      sum[1] += square(grad);
    } else {
      sum[0] += square(static_cast<float>(decayed));
      sum[1] += square(static_cast<float>(grad));
    }
  }

  template <int, class T>
  MXADAMAX_RULE static void find_scales(const GradientTransform<T>& transform,
                                        const LarsScalars<T>& s, const float* sum, T* scale) {
    const float weight_norm = square_root(sum[0]);
    const bool has_ratio = weight_norm > 0 && sum[1] > 0;
    const auto lr = static_cast<float>(s.lr);
    // One of the two is 1.
    const float rescale_grad = static_cast<float>(s.adapts) *
                               absolute(static_cast<float>(transform.rescale_grad * s.grad_scale));
    const float denominator = square_root(sum[1]) * rescale_grad +
                              static_cast<float>(s.weight_decay) * weight_norm +
                              static_cast<float>(s.epsilon);
    scale[0] = s.adapts != 0 && has_ratio
                   ? lr * static_cast<float>(s.eta) * weight_norm / denominator
                   : lr;
  }

  template <class T>
  MXADAMAX_RULE static T scaled_delta(const LarsScalars<T>& s, const T* scale, T g, T weight,
                                      T* state) {
    const auto decay = to_single(scale[0]) * to_single(s.weight_decay);
    const T kept = has_momentum ? s.momentum * state[0] : constant<T>(0);
    const T change = kept - decay * weight - scale[0] * s.grad_scale * g;
    if constexpr (has_momentum) state[0] = change;
    return change;
  }
};

}  // namespace mxadamax
