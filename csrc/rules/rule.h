// SPDX-License-Identifier: Apache-2.0
// What every rule stands on: what is done to a gradient and a weight before a rule's own
// mathematics begins, and the few functions that rules are written in.
//
// Headers in this folder are compiled by the C++ compiler and by nvcc alike. They hold scalar code
// without state, branches on data only where the compiler can turn them into selections, and keep
// the order of operations of MXNet's own `step` methods: that order, with no contraction of
// a * b + c, is what makes the results equal to the last bit.
//
// A rule is a struct with
//   name          what the rest of the package calls it,
//   states        how many arrays of the weight's shape it keeps from step to step,
//   kinds         what each of these is to it,
//   Scalars<T>    the numbers that its formula needs, all of type T, and `scalars`, their names,
//   delta(...)    what is added to the weight of one element, from the prepared gradient and the
//                 weight; it leaves the new states where the old ones were,
//   finished(...) where it has one: the weight as it is kept, from the weight with its delta.
//
// A rule whose formula gives the new weight in other operations than an addition has
//   gives_weight  true, and
//   new_weight(...) in the place of `delta`.
//
// Where MXNet's built-in optimizer of a series computes something else in the last bits, the rule
// of its default path ends in `_mxnet1` or `_mxnet2`. It is written as MXNet's source is, with
// scalars as MXNet's operator has them: `1 - beta` is taken in the type that is computed in.
//
// A rule whose step depends on norms of the whole tensor has
//   sums              how many sums over the elements it needs in a stage,
//   stages            how many stages there are, each of which knows what the last one found,
//   scales            how many numbers it finds from the sums: see `Scales`,
//   Total<T>          the type that sums are added up in,
//   add_terms<stage>  what an element, with its gradient as it comes, adds to each of them,
//   find_scales<stage>(...) the numbers that follow from the sums of a stage,
//   scaled_delta(...) in the place of `delta`, with these numbers.
// Its kernels go over a tensor once for each stage, with nothing written, then to update.
#pragma once

// Always inlined: one header is compiled for several instruction sets into one library, and an
// out-of-line copy made for the widest of them must never be what the linker keeps for all.
#if defined(__CUDACC__)
#define MXADAMAX_RULE __host__ __device__ __forceinline__
#else
#define MXADAMAX_RULE inline __attribute__((always_inline))
#endif

namespace mxadamax {

// What a state is, which decides how it is stored in low precision: a number of either sign; or one
// that is never negative and that steps are divided by, itself or its root.
enum class StateKind { with_sign, non_negative, second_moment };

// What all rules inherit.
struct Rule {
  // Whether its states bear the noise of being stored in low precision.
  static constexpr bool supports_low_precision_state = true;
  // Whether `clip_gradient` bounds the sum of gradient and weight decay, instead of the gradient.
  static constexpr bool clip_after_wd = false;
  // How many sums over a tensor it needs in each of its stages.
  static constexpr int sums = 0;
  static constexpr int stages = 1;
  // How many numbers follow from them.
  static constexpr int scales = 1;
  // What sums are added up in, one after another; or in any order, in lanes.
  template <class T>
  using Total = T;
  static constexpr bool sums_in_any_order = false;
  // Whether it has `new_weight` in the place of `delta`.
  static constexpr bool gives_weight = false;

  template <class Scalars, class T>
  MXADAMAX_RULE static T finished(const Scalars&, T weight) {
    return weight;
  }
};

// The scalars that every update has, whatever its rule.
template <class T>
struct GradientTransform {
  T rescale_grad, clip_gradient, wd, decay_factor;
};
constexpr const char* gradient_transform_scalars[] = {"rescale_grad", "clip_gradient", "wd",
                                                      "decay_factor"};

// x within [-bound, bound]. NaN passes; an infinite bound lets all pass. In the very form of the
// processor's minimum and maximum, which pass their second operand where one is NaN.
template <class T>
MXADAMAX_RULE T clipped(T x, T bound) {
  const T below = bound < x ? bound : x;
  return -bound > below ? -bound : below;
}

// The gradient that a rule sees: rescaled, clipped, with weight decay as an L2 penalty. A negative
// `wd` is none at all, which is not the same as 0: 0 times an infinite weight is NaN.
template <class R, class T>
MXADAMAX_RULE T prepared_gradient(const GradientTransform<T>& s, T grad, T weight) {
  const T g = grad * s.rescale_grad;
  const T decay = s.wd * weight;
  const bool penalty = !(s.wd < 0);
  if (R::clip_after_wd) return clipped(penalty ? g + decay : g, s.clip_gradient);
  const T bounded = clipped(g, s.clip_gradient);
  return penalty ? bounded + decay : bounded;
}

// The weight that a rule sees. `decay_factor` is 1, or what decoupled weight decay leaves of it.
template <class T>
MXADAMAX_RULE T decayed_weight(const GradientTransform<T>& s, T weight) {
  return s.decay_factor * weight;
}

// What a rule finds from its sums over a tensor.
template <class R, class T>
struct Scales {
  T found[R::scales];
};

// The new weight of one element, whose states become new. `w - x` and `w + -x` are the same bits.
// `scales` count for rules that sum.
template <class R, class Scalars, class T>
MXADAMAX_RULE T updated_weight(const GradientTransform<T>& transform, const Scalars& s,
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

// The larger of two; NaN if either is.
template <class T>
MXADAMAX_RULE T maximum(T a, T b) {
  return a != a ? a : (a > b ? a : b);
}

// -1, 0 or 1; NaN for NaN.
template <class T>
MXADAMAX_RULE T sign(T a) {
  const T unit = a < 0 ? T{-1} : T{1};
  return a != 0 && a == a ? unit : a + 0;
}

template <class T>
MXADAMAX_RULE T square(T a) {
  return a * a;
}

MXADAMAX_RULE double absolute(double a) { return __builtin_fabs(a); }
MXADAMAX_RULE float absolute(float a) { return __builtin_fabsf(a); }

MXADAMAX_RULE double square_root(double a) { return __builtin_sqrt(a); }
MXADAMAX_RULE float square_root(float a) { return __builtin_sqrtf(a); }

}  // namespace mxadamax
