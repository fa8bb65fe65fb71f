// SPDX-License-Identifier: Apache-2.0
// RMSProp: plain (Tieleman & Hinton, lecture 6.5 of "Neural Networks for Machine Learning", 2012)
// and centered, with momentum (Graves, arXiv 1308.0850, equations 38 to 45).
#pragma once

#include "rule.h"

namespace mxadamax {

// Clips the new weight.
struct ClipsWeights : Rule {
  template <class Scalars, class T>
  MXADAMAX_RULE static T finished(const Scalars& s, T weight) {
    return clipped(weight, s.clip_weights);
  }
};

struct Rmsprop : ClipsWeights {
  static constexpr const char* name = "rmsprop";

  // Second moment v.
  static constexpr int states = 1;
  static constexpr StateKind kinds[] = {StateKind::second_moment};

  template <class T>
  struct Scalars {
    T lr, rho, one_minus_rho, epsilon, clip_weights;
  };
  static constexpr const char* scalars[] = {"lr", "rho", "one_minus_rho", "epsilon",
                                            "clip_weights"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& v = state[0];
    v = s.rho * v + s.one_minus_rho * square(g);
    return -(s.lr * (g / (square_root(v) + s.epsilon)));
  }
};

struct CenteredRmsprop : ClipsWeights {
  static constexpr const char* name = "rmsprop_centered";

  // First moment m, second moment v, the last change of the weight.
  static constexpr int states = 3;
  static constexpr StateKind kinds[] = {StateKind::with_sign, StateKind::second_moment,
                                        StateKind::with_sign};
  // v - m * m would be as noisy as its terms, and could be negative.
  static constexpr bool supports_low_precision_state = false;

  template <class T>
  struct Scalars {
    T lr, rho, one_minus_rho, momentum, epsilon, clip_weights;
  };
  static constexpr const char* scalars[] = {"lr",       "rho",     "one_minus_rho",
                                            "momentum", "epsilon", "clip_weights"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& m = state[0];
    T& v = state[1];
    T& change = state[2];
    m = s.rho * m + s.one_minus_rho * g;
    v = s.rho * v + s.one_minus_rho * square(g);
    change = s.momentum * change - s.lr * g / square_root(v - square(m) + s.epsilon);
    return change;
  }
};

// MXNet's operator `rmsprop_update`. MXNet 1 adds `epsilon` under the root.
template <int series>
struct RmspropOfMxnet : ClipsWeights {
  static constexpr const char* name = series == 1 ? "rmsprop_mxnet1" : "rmsprop_mxnet2";
  static constexpr int states = 1;
  static constexpr StateKind kinds[1] = {StateKind::second_moment};
  static constexpr bool clip_after_wd = series == 1;

  template <class T>
  struct Scalars {
    T lr, rho, epsilon, clip_weights;
  };
  static constexpr const char* scalars[] = {"lr", "rho", "epsilon", "clip_weights"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& v = state[0];
    v = (1 - s.rho) * square(g) + s.rho * v;
    if (series == 1) return -(s.lr * (g / square_root(v + s.epsilon)));
    return -(s.lr * g / (square_root(v) + s.epsilon));
  }
};

// MXNet's operator `rmspropalex_update`. MXNet 1 keeps the second moment first.
template <int series>
struct CenteredRmspropOfMxnet : ClipsWeights {
  static constexpr const char* name =
      series == 1 ? "rmsprop_centered_mxnet1" : "rmsprop_centered_mxnet2";
  static constexpr int states = 3;
  static constexpr int of_m = series == 1 ? 1 : 0;
  static constexpr int of_v = 1 - of_m;
  static constexpr StateKind kinds[3] = {
      of_m == 0 ? StateKind::with_sign : StateKind::second_moment,
      of_m == 0 ? StateKind::second_moment : StateKind::with_sign, StateKind::with_sign};
  static constexpr bool clip_after_wd = series == 1;
  static constexpr bool supports_low_precision_state = false;

  template <class T>
  struct Scalars {
    T lr, rho, momentum, epsilon, clip_weights;
  };
  static constexpr const char* scalars[] = {"lr", "rho", "momentum", "epsilon", "clip_weights"};

  template <class T>
  MXADAMAX_RULE static T delta(const Scalars<T>& s, T g, T, T* state) {
    T& m = state[of_m];
    T& v = state[of_v];
    T& change = state[2];
    const T unseen = 1 - s.rho;
    v = (series == 1 ? unseen * g * g : unseen * square(g)) + s.rho * v;
    m = unseen * g + s.rho * m;
    change = s.momentum * change - s.lr * g / square_root(v - square(m) + s.epsilon);
    return change;
  }
};

}  // namespace mxadamax
