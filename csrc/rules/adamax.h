// AdaMax (Kingma & Ba, arXiv 1412.6980, section 7.1, algorithm 2).
#pragma once

#include "gradient.h"

namespace mxadamax {

struct Adamax {
  static constexpr const char* name = "adamax";

  // First moment m, exponentially weighted infinity norm u.
  static constexpr int states = 2;

  // `lr` comes with the bias correction in it: lr / (1 - beta1^t).
  template <class T>
  struct Scalars {
    T rescale_grad, clip_gradient, wd, lr, beta1, one_minus_beta1, beta2, epsilon;
  };
  static constexpr const char* scalars[] = {"rescale_grad", "clip_gradient",   "wd",    "lr",
                                            "beta1",        "one_minus_beta1", "beta2", "epsilon"};

  template <class T>
  MXADAMAX_RULE static void update(const Scalars<T>& s, T grad, T& weight, T (&state)[states]) {
    T& m = state[0];
    T& u = state[1];
    const T g = prepared_gradient(s, grad, weight);
    m = s.beta1 * m + s.one_minus_beta1 * g;
    u = maximum(s.beta2 * u, absolute(g));
    weight = weight - s.lr * (m / (u + s.epsilon));
  }
};

}  // namespace mxadamax
