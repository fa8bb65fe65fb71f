// SPDX-License-Identifier: Apache-2.0
// Updates weights with low-precision states.
//
// This is arithmetic of one core against the memory, of which less than half is moved: every
// operation counts. A processor holds the results of some hundred operations that have not ended,
// and those of a rule wait for one another for long, for roots and quotients: the fewer operations
// an element takes, the more elements are under way at a time.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

#include "codec.h"
#include "common/low_precision.h"
#include "int8_codec.h"
#include "kernel.h"
#include "read_scalars.h"

namespace mxadamax::cpu {
namespace {

// What happens to gradient and weight before a rule, without what changes nothing: the longer a
// vector takes, the fewer are under way.
template <class T>
struct ShortTransform : GradientTransform<T> {
  explicit ShortTransform(const double*& scalars) {
    const double* own = scalars;
    const auto given = read_scalars<GradientTransform<double>, double>(own);
    clips = given.clip_gradient < __builtin_inf();
    has_penalty = !(given.wd < 0);
    shrinks = given.decay_factor != 1;
    static_cast<GradientTransform<T>&>(*this) = read_scalars<GradientTransform<T>, T>(scalars);
  }
  bool clips, has_penalty, shrinks;
};
template <class T>
MXADAMAX_RULE T clipped_gradient(const ShortTransform<T>& s, T g) {
  return s.clips ? clipped(g, s.clip_gradient) : g;
}
template <class T>
MXADAMAX_RULE T with_penalty(const ShortTransform<T>& s, T g, T weight) {
  return s.has_penalty ? g + s.wd * weight : g;
}
template <class T>
MXADAMAX_RULE T decayed_weight(const ShortTransform<T>& s, T weight) {
  return s.shrinks ? s.decay_factor * weight : weight;
}

// A rule with its scalars, for vectors.
template <class R, bool by_ratio>
class VectorRule {
 public:
  VectorRule(const double* scalars, const double* scales)
      : transform_(scalars),
        scalars_(read_scalars<typename R::template Scalars<T>, T>(scalars)),
        scales_(read_scales<R, T>(scales)) {}

  // Returns the new weights, and replaces states. Second moments are their roots; with `by_ratio` a
  // signed state is its ratio.
  Floats updated(Floats grad, Floats weight, Floats* state) const {
    if constexpr (R::in_vectors) {
      return updated_number(grad, weight, state);
    } else {
      float g[lanes], w[lanes], numbers[R::states][lanes];
      store(g, grad);
      store(w, weight);
      for (int k = 0; k < R::states; ++k) store(numbers[k], state[k]);
      for (int i = 0; i < lanes; ++i) {
        float own[R::states];
        for (int k = 0; k < R::states; ++k) own[k] = numbers[k][i];
        w[i] = updated_number(g[i], w[i], own);
        for (int k = 0; k < R::states; ++k) numbers[k][i] = own[k];
      }
      for (int k = 0; k < R::states; ++k) state[k] = load<Floats>(numbers[k]);
      return load<Floats>(w);
    }
  }

 private:
  using T = std::conditional_t<R::in_vectors, Floats, float>;

  T updated_number(T grad, T weight, T* state) const {
    if constexpr (by_ratio) {
      return updated_weight_by_ratio<R>(transform_, scalars_, scales_, grad, weight, state);
    } else {
      return updated_weight_by_roots<R>(transform_, scalars_, scales_, grad, weight, state);
    }
  }

  const ShortTransform<T> transform_;
  const typename R::template Scalars<T> scalars_;
  const Scales<R, T> scales_;
};

// In 16 bits: two vectors at a time go all the way in registers.
template <class R, class Type>
void update_in_16_bits(const double* scalars, const double* scales, const float* grad,
                       float* weight, const LowPrecisionStates& states,
                       std::int64_t count) noexcept {
  const VectorRule<R, false> rule(scalars, scales);
  for (std::int64_t begin = 0, end; begin < count; begin = end) {
    const std::int64_t position = states.position + begin;
    const auto place = static_cast<std::uint32_t>(position % rng_block);
    end = smaller(begin + rng_block - place, count);
    RandomNumbers random[R::states];
    std::uint16_t* stored[R::states];
    for (int k = 0; k < R::states; ++k) {
      random[k] = RandomNumbers(advanced(rng_line(states.seed, k, position), place));
      stored[k] = static_cast<std::uint16_t*>(states.stored[k]) + begin;
    }
    const auto step = [&](const float* g, float* w, std::uint16_t* const* codes) {
      typename Type::Rounded rounded[R::states][2];
      for (int half = 0; half < 2; ++half) {
        const int from = half * lanes;
        Floats state[R::states] = {};
        for (int k = 0; k < R::states; ++k) state[k] = Type::load_vector(codes[k] + from);
        store(w + from, rule.updated(load<Floats>(g + from), load<Floats>(w + from), state));
        for_each_state<R>([&](auto k) {
          constexpr bool is_signed = states_of_kind<R, StateKind::with_sign> >> k & 1u;
          rounded[k][half] =
              Type::template round_stochastic<!is_signed>(state[k], random[k].numbers);
          random[k].advance();
        });
      }
      for (int k = 0; k < R::states; ++k) {
        Type::store_vectors(codes[k], rounded[k][0], rounded[k][1]);
      }
    };
    std::int64_t i = begin;
    for (; i + step_length <= end; i += step_length) {
      step(grad + i, weight + i, stored);
      for (std::uint16_t*& own : stored) own += step_length;
    }
    if (i == end) continue;
    const auto rest = static_cast<std::size_t>(end - i);
    float g[step_length] = {}, w[step_length] = {};
    std::uint16_t codes[R::states][step_length] = {};
    std::uint16_t* padded[R::states];
    std::memcpy(g, grad + i, rest * sizeof *g);
    std::memcpy(w, weight + i, rest * sizeof *w);
    for (int k = 0; k < R::states; ++k) {
      padded[k] = codes[k];
      std::memcpy(padded[k], stored[k], rest * sizeof **padded);
    }
    step(g, w, padded);
    std::memcpy(weight + i, w, rest * sizeof *w);
    for (int k = 0; k < R::states; ++k) {
      std::memcpy(stored[k], padded[k], rest * sizeof **padded);
    }
  }
}

// Updates elements whose states are decoded, in arrays with room for whole vectors.
template <class R, class Rule>
void update_decoded(const Rule& rule, const float* grad, float* weight,
                    float (&numbers)[R::states][rng_block], std::int64_t count) {
  const auto update = [&](const float* g, float* w, std::int64_t i) {
    Floats state[R::states] = {};
    for (int k = 0; k < R::states; ++k) state[k] = load<Floats>(numbers[k] + i);
    store(w, rule.updated(load<Floats>(g), load<Floats>(w), state));
    for (int k = 0; k < R::states; ++k) store(numbers[k] + i, state[k]);
  };
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) update(grad + i, weight + i, i);
  if (i == count) return;
  const auto rest = static_cast<std::size_t>(count - i);
  float padded_grad[lanes] = {}, padded_weight[lanes] = {};
  std::memcpy(padded_grad, grad + i, rest * sizeof(float));
  std::memcpy(padded_weight, weight + i, rest * sizeof(float));
  update(padded_grad, padded_weight, i);
  std::memcpy(weight + i, padded_weight, rest * sizeof(float));
}

// In 8 bits: the largest of a block decides how the block is encoded. All elements that share
// random numbers go through each loop together.
template <class R>
void update_in_8_bits(const double* scalars, const double* scales, const float* grad, float* weight,
                      const LowPrecisionStates& states, std::int64_t count) noexcept {
  const VectorRule<R, has_ratio_state<R>> rule(scalars, scales);
  alignas(64) float numbers[R::states][rng_block];
  for (std::int64_t begin = 0, end; begin < count; begin = end) {
    const std::int64_t position = states.position + begin;
    const auto place = static_cast<std::uint32_t>(position % rng_block);
    end = smaller(begin + rng_block - place, count);
    float* const own_scales = states.scales + begin / block_size * R::states;
    const auto codes = [&](int k) { return static_cast<std::uint8_t*>(states.stored[k]) + begin; };
    for_each_state<R>([&](auto k) {
      decode_blocks<Int8StateOf<R, k>>(codes(k), own_scales + k, R::states, numbers[k],
                                       end - begin);
    });
    update_decoded<R>(rule, grad + begin, weight + begin, numbers, end - begin);
    for_each_state<R>([&](auto k) {
      const RandomNumbers random(advanced(rng_line(states.seed, k, position), place));
      encode_int8<Int8StateOf<R, k>>(numbers[k], random, codes(k), own_scales + k, R::states,
                                     end - begin);
    });
  }
}

}  // namespace
}  // namespace mxadamax::cpu
