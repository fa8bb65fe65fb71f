// SPDX-License-Identifier: Apache-2.0
// The base of all rules: the transform of gradient and weight before a rule's own formula, and the
// functions that rules use.
//
// The C++ compiler and nvcc both compile the headers in this folder. They contain code without
// state for a number, or a vector of them: selections, but no branches on data, and constants by
// `constant`. They keep the order of operations of MXNet's own `step` methods: with this order, and
// without contraction of a * b + c, results are equal bit for bit.
//
// A rule is a struct with
//   name          its name in the rest of the package,
//   states        the number of arrays of the weight's shape that it keeps from step to step,
//   kinds         the kind of each of these,
//   Scalars<T>    the scalars of its formula, all of type T, and `scalars`, their names,
//   delta(...)    returns the change of one element, from the transformed gradient and the weight,
//                 and replaces the states by the new ones,
//   finished(...) optional: maps the weight with its delta to the weight to store.
//
// A rule whose formula gives the new weight in other operations than an addition has
//   gives_weight  true, and
//   new_weight(...) in the place of `delta`.
//
// Where MXNet's built-in optimizer of a series computes something else in the last bits, the rule
// of its default path ends in `_mxnet1` or `_mxnet2`. It is written as MXNet's source is, with
// scalars as MXNet's operator has them: `1 - beta` is taken in the type that is computed in.
//
// A rule that needs norms of the whole tensor also has
//   sums              the number of sums over the elements, in each stage,
//   stages            the number of stages; each knows what the one before has found,
//   scales            how many numbers it finds from the sums: see `Scales`,
//   Total<T>          the type of the sums,
//   add_terms<stage>  adds the terms of one element, with its raw gradient, to the sums; none is
//                     negative, except those of scaled norms; `shown` is the weight or, with
//                     `sums_copy`, its float16 copy,
//   find_scales<stage>(...) finds numbers from the sums of a stage,
//   scaled_delta(...) in the place of `delta`, with these numbers.
// Its kernels read a tensor once for each stage, without writing, then to update.
#pragma once

#include "vector.h"

namespace mxadamax {

// The kind of a state, which selects its low-precision storage: a signed number; a non-negative
// denominator; or a second moment, with its root as the denominator. A state that holds an earlier
// weight starts as a copy of the weight; all others start as zeros.
enum class StateKind { with_sign, non_negative, second_moment, earlier_weight };

// The defaults of all rules.
struct Rule {
  // Whether its states tolerate the noise of low precision.
  static constexpr bool supports_low_precision_state = true;
  // Whether a state is the largest that a denominator has been. Rounded at random, it would become
  // larger and larger: the coarser, the faster.
  static constexpr bool keeps_largest = false;
  // Whether `clip_gradient` bounds the gradient plus weight decay, instead of the gradient.
  static constexpr bool clip_after_wd = false;
  // Whether the state is a tuple with None, in the place of a momentum, before the arrays.
  static constexpr bool none_first = false;
  // The number of sums over a tensor in each stage.
  static constexpr int sums = 0;
  static constexpr int stages = 1;
  // How many numbers follow from them.
  static constexpr int scales = 1;
  // What sums are added up in, as if one after another; or in any order.
  template <class T>
  using Total = T;
  static constexpr bool sums_in_any_order = false;
  // Whether a norm of the weight is that of its float16 copy where it has one.
  static constexpr bool sums_copy = false;
  // How many sums have squares that are then rounded to float16.
  static constexpr int half_squares = 0;
  // Whether sums are norms, taken as MXNet's operator `norm` does: terms are numbers to be squared.
  // Scales are then found in double precision, and read by another operator.
  static constexpr bool scaled_norms = false;
  // Whether its formula also takes vectors of single precision.
  static constexpr bool in_vectors = true;
  // Whether it has `new_weight` in the place of `delta`.
  static constexpr bool gives_weight = false;
  // Whether the change of the weight is, but for rounding, -lr times the ratio of the first state
  // to the sum of the last, or its root, and epsilon.
  static constexpr bool steps_by_ratio = false;

  template <class Scalars, class T>
  MXADAMAX_RULE static T finished(const Scalars&, T weight) {
    return weight;
  }
};

// The scalars of every update, for any rule.
template <class T>
struct GradientTransform {
  T rescale_grad, clip_gradient, wd, decay_factor;
};
constexpr const char* gradient_transform_scalars[] = {"rescale_grad", "clip_gradient", "wd",
                                                      "decay_factor"};

// Clips x to [-bound, bound]. NaN passes through; an infinite bound clips nothing. Written like the
// processor's minimum and maximum instructions, which return their second operand if one is NaN.
template <class T>
MXADAMAX_RULE T clipped(T x, T bound) {
  const T below = bound < x ? bound : x;
  return -bound > below ? -bound : below;
}

template <class T>
MXADAMAX_RULE T clipped_gradient(const GradientTransform<T>& s, T g) {
  return clipped(g, s.clip_gradient);
}

// Weight decay as an L2 term. A negative `wd` means no L2 term, unlike 0: 0 times an infinite
// weight is NaN.
template <class T>
MXADAMAX_RULE T with_penalty(const GradientTransform<T>& s, T g, T weight) {
  const T decay = s.wd * weight;
  const auto penalty = !(s.wd < 0);
  return penalty ? g + decay : g;
}

// Returns the weight for the rule. `decay_factor` is 1 without decoupled weight decay.
template <class T>
MXADAMAX_RULE T decayed_weight(const GradientTransform<T>& s, T weight) {
  return s.decay_factor * weight;
}

// Returns the gradient for the rule: rescaled, clipped, with weight decay. What has functions of
// the three names above can take the place of GradientTransform.
template <class R, class Transform, class T>
MXADAMAX_RULE T prepared_gradient(const Transform& s, T grad, T weight) {
  const T g = grad * s.rescale_grad;
  if (R::clip_after_wd) return clipped_gradient(s, with_penalty(s, g, weight));
  return with_penalty(s, clipped_gradient(s, g), weight);
}

// What a rule finds from its sums over a tensor.
template <class R, class T>
struct Scales {
  T found[R::scales];
};

// Returns the new weight of one element and updates its states. `w - x` and `w + -x` are the same
// bits. Only rules with sums use `scales`.
template <class R, class Transform, class Scalars, class T>
MXADAMAX_RULE T updated_weight(const Transform& transform, const Scalars& s,
                               const Scales<R, T>& scales, T grad, T weight, T* state) {
  const T g = prepared_gradient<R>(transform, grad, weight);
  const T decayed = decayed_weight(transform, weight);
  if constexpr (R::gives_weight) {
    return R::finished(s, R::new_weight(s, g, decayed, state));
  } else if constexpr (R::sums > 0) {
    return R::finished(s, decayed + R::scaled_delta(s, scales.found, g, decayed, state));
  } else {
    return R::finished(s, decayed + R::delta(s, g, decayed, state));
  }
}

// Returns the larger of two; NaN if either is NaN.
template <class T>
MXADAMAX_RULE T maximum(T a, T b) {
  return a != a ? a : (a > b ? a : b);
}

// Returns -1, 0 or 1; NaN for NaN.
template <class T>
MXADAMAX_RULE T sign(T a) {
  const T unit = a < 0 ? constant<T>(-1) : constant<T>(1);
  return a != 0 && a == a ? unit : a + 0;
}

template <class T>
MXADAMAX_RULE T square(T a) {
  return a * a;
}

}  // namespace mxadamax
