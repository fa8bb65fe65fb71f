// SPDX-License-Identifier: Apache-2.0
// Low-precision states: what they are rounded to, and by which random bits.
//
// Rounding is at random, so that the mean of many roundings is the number itself: steps that are
// too small to change a rounded state do so now and then. In 16 bits each state is rounded by
// itself; in 8 bits a signed state goes alone or with the one that it is divided by.
//
// Where there are two, steps are a signed state divided by the other (itself or its root, which is
// what comes in here). In 8 bits neither survives alone: a denominator rounded towards zero under a
// first moment that was not makes a step without bounds. So the first is kept as a ratio to the
// second, in equal levels of both signs, which is the size of the step itself; whatever rounding
// does to the denominator, the step is right. The denominator, which has no sign, is a float of 4
// bits of exponent and 4 of mantissa: fine near 0, and nothing but 0 becomes 0. Each block of
// elements has its own ranges.
//
// A signed state alone has 127 levels of either sign, spaced like squares: a rule that takes no
// more than the sign of it (Lion) moves small elements of a block like large ones.
//
// No branches, so that loops of these are vectorised.
#pragma once

#include <cstdint>
#include <type_traits>

#include "half.h"
#include "rules/rule.h"

namespace mxadamax {

// Elements that share the scales of their 8-bit states, one for each state.
constexpr std::int64_t block_size = 64;
// Elements that share the random bits of their 8-bit states.
constexpr std::int64_t rng_block = 512;

// How many blocks an array has, of which the last may be shorter.
constexpr std::int64_t blocks_of(std::int64_t size) { return (size + block_size - 1) / block_size; }

// Whether the states of a rule can be kept in 8 bits: denominators, and before them a signed state
// or none.
template <class R>
constexpr bool supports_int8_state = [] {
  for (int k = 0; k < R::states; ++k) {
    const bool is_signed = R::kinds[k] == StateKind::with_sign;
    if (R::kinds[k] == StateKind::earlier_weight || (is_signed && k > 0)) return false;
  }
  return R::supports_low_precision_state && R::states > 0 && !R::keeps_largest;
}();

// Whether in 8 bits the first state is kept as its ratio to the last.
template <class R>
constexpr bool has_ratio_state =
    supports_int8_state<R> && R::states > 1 && R::kinds[0] == StateKind::with_sign;

// Which states of a rule are of a kind, a bit for each: an array would be none of a device's.
template <class R, StateKind kind>
constexpr unsigned states_of_kind = [] {
  unsigned found = 0;
  for (int k = 0; k < R::states; ++k) found |= (R::kinds[k] == kind ? 1u : 0u) << k;
  return found;
}();

// Second moments from their roots, and back.
template <class R, class T>
MXADAMAX_RULE void square_moments(T* state) {
  for (int k = 0; k < R::states; ++k) {
    if (states_of_kind<R, StateKind::second_moment> >> k & 1u) state[k] = square(state[k]);
  }
}
template <class R, class T>
MXADAMAX_RULE void take_roots(T* state) {
  for (int k = 0; k < R::states; ++k) {
    if (states_of_kind<R, StateKind::second_moment> >> k & 1u) state[k] = square_root(state[k]);
  }
}

// As updated_weight, with second moments as their roots.
template <class R, class Transform, class Scalars, class T>
MXADAMAX_RULE T updated_weight_by_roots(const Transform& transform, const Scalars& s,
                                        const Scales<R, T>& scales, T grad, T weight, T* state) {
  square_moments<R>(state);
  const T found = updated_weight<R>(transform, s, scales, grad, weight, state);
  take_roots<R>(state);
  return found;
}

// The same, with the first state as its ratio to the last, with epsilon, as the rule divides by it.
// Divided by infinity, what is finite becomes 0, and what is not, NaN.
template <class R, class Transform, class Scalars, class T>
MXADAMAX_RULE T updated_weight_by_ratio(const Transform& transform, Scalars s,
                                        const Scales<R, T>& scales, T grad, T weight, T* state) {
  constexpr int last = R::states - 1;
  state[0] = state[0] * (state[last] + s.epsilon);
  if constexpr (R::steps_by_ratio) {
    // The rule has divided already. Where `lr` is too small to divide the step by, one of 1 is
    // taken and multiplied afterwards.
    const auto tiny = !(absolute(s.lr) > 0x1p-100f);
    const T one = constant<T>(1);
    const T taken = tiny ? s.lr : one;
    s.lr = tiny ? one : s.lr;
    const T ratio_per_step = -1 / s.lr;
    square_moments<R>(state);
    const T g = prepared_gradient<R>(transform, grad, weight);
    const T decayed = decayed_weight(transform, weight);
    const T step = R::delta(s, g, decayed, state);
    take_roots<R>(state);
    state[0] = step * ratio_per_step;
    return R::finished(s, decayed + step * taken);
  } else {
    const T found = updated_weight_by_roots<R>(transform, s, scales, grad, weight, state);
    const T divisor = state[last] + s.epsilon;
    state[0] = state[0] / (divisor <= 0 ? constant<T>(__builtin_inff()) : divisor);
    return found;
  }
}

// A good mix of 64 bits (Steele, Lea & Flood, "Fast splittable pseudorandom number generators").
MXADAMAX_RULE std::uint64_t splitmix64(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// What all random bits of one update of a parameter depend on.
MXADAMAX_RULE std::uint64_t rng_seed(std::uint64_t rng_stream, std::uint64_t step) {
  return splitmix64(splitmix64(rng_stream) ^ step);
}

// Random numbers of 16 bits for a block of elements and one of a rule's states: that of element i
// is offset + slope * i, modulo 2^16. Both are random, and so are the numbers of different blocks
// and states. Those of two elements of a block are independent but for the last bits, by as many as
// the distance of the elements can be halved (Dietzfelbinger, "Universal hashing and k-wise
// independent random variables via integer arithmetic without primes"). Along a block they cost one
// addition.
struct RngLine {
  std::uint32_t offset, slope;
};

// That of a state, for the block with an element of a parameter.
MXADAMAX_RULE RngLine rng_line(std::uint64_t seed, int state, std::int64_t element) {
  const std::uint64_t counter = static_cast<std::uint64_t>(element / rng_block) * 2;
  const std::uint64_t word = splitmix64(seed + counter + static_cast<unsigned>(state / 2));
  const auto own = static_cast<std::uint32_t>(state % 2 == 0 ? word : word >> 32);
  return {own & 0xffffu, own >> 16};
}

// The line from another element of its block on.
MXADAMAX_RULE RngLine advanced(RngLine line, std::uint32_t elements) {
  return {line.offset + line.slope * elements, line.slope};
}

MXADAMAX_RULE std::int32_t random_at(RngLine line, std::uint32_t element) {
  return static_cast<std::int32_t>((line.offset + line.slope * element) & 0xffffu);
}

constexpr std::int32_t sign_bit = -0x7fffffff - 1;

// Below, F is a float or a vector of them. `random` are 16 random bits for each.

// The bits of a float that is the least bfloat16.
constexpr std::int32_t least_bfloat16 = 0x10000;

// A sum of which the upper 16 bits are the bfloat16: what they cut off is added at random before.
// Beyond the largest bfloat16 lies infinity, as where the nearest number is taken. NaN stays what
// it is, if it comes from arithmetic.
//
// Of numbers that steps are divided by, what is not 0 does not become 0, which would make a step
// without bounds of it.
template <bool denominator, class F>
MXADAMAX_RULE IntegerOf_t<F> bfloat16_sum(F x, IntegerOf_t<F> random) {
  using I = IntegerOf_t<F>;
  const I bits = bits_of(x);
  if constexpr (denominator) random = bits < least_bfloat16 ? constant<I>(0xffff) : random;
  return wrapping_sum(bits, x == x ? random : I{});
}

// A sum that becomes the float16 where it is cut off: `noise` is less than the distance to the next
// float16, or beyond those, to the next number of as many bits.
template <class F>
MXADAMAX_RULE F float16_sum(F x, IntegerOf_t<F> random) {
  using I = IntegerOf_t<F>;
  const I least_normal = constant<I>(113 << 23);
  const I exponent = bits_of(x) & 0x7f800000;
  const I spacing = exponent > least_normal ? exponent : least_normal;
  const F noise = to_float(shifted_right(random, 3)) * float_of(spacing - (23 << 23));
  return x + float_of(bits_of(noise) | (bits_of(x) & sign_bit));
}

// The float16 that is next towards zero: of finite numbers a finite one.
template <class F>
MXADAMAX_RULE IntegerOf_t<F> truncated_float16(F x) {
  using I = IntegerOf_t<F>;
  const I magnitude = bits_of(x) & 0x7fffffff;
  const auto is_small = magnitude < (113 << 23);
  const I subnormal = to_integer(float_of(is_small ? magnitude : I{}) * 0x1p24f);
  const I finite = is_small ? subnormal : (magnitude - (112 << 23)) >> 13;
  const I bounded = finite < 0x7bff ? finite : constant<I>(0x7bff);
  const I nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
  const I special = magnitude > 0x7f800000 ? nan : constant<I>(0x7c00);
  return (shifted_right(bits_of(x), 16) & 0x8000) | (magnitude >= 0x7f800000 ? special : bounded);
}

// The least code of a denominator.
template <class F>
MXADAMAX_RULE IntegerOf_t<F> least_code(F denominator) {
  using I = IntegerOf_t<F>;
  const I bits = bits_of(denominator);
  return bits < 1 ? bits : constant<I>(1);
}

template <bool denominator, class F>
MXADAMAX_RULE IntegerOf_t<F> encode_bfloat16_stochastic(F x, IntegerOf_t<F> random) {
  return shifted_right(bfloat16_sum<denominator>(x, random), 16);
}
template <bool denominator, class F>
MXADAMAX_RULE IntegerOf_t<F> encode_float16_stochastic(F x, IntegerOf_t<F> random) {
  const IntegerOf_t<F> code = truncated_float16(float16_sum(x, random));
  if constexpr (!denominator) return code;
  return code > least_code(x) ? code : least_code(x);
}

constexpr float ratio_levels = 127;
constexpr float signed_levels = 127;

// What a range is divided by stays far from where quotients overflow.
MXADAMAX_RULE float bounded_below(float range) { return range > 0x1p-100f ? range : 0x1p-100f; }

// Units for each 1, of ratios and signed states whose largest is `range`.
MXADAMAX_RULE float ratio_units(float range) {
  return 0x1p15f * ratio_levels / bounded_below(range);
}
MXADAMAX_RULE float signed_units(float range) {
  return signed_levels * signed_levels / bounded_below(range);
}

// The other way round: how much the distance of two levels of ratios is, and a unit of signed
// states.
MXADAMAX_RULE float ratio_level_size(float range) { return range / ratio_levels; }
MXADAMAX_RULE float signed_unit_size(float range) {
  return range / (signed_levels * signed_levels);
}

// Of the level of a ratio, the lowest 8 bits count: it is found from 256 levels below 0 on, so that
// what is cut off is below. The largest of a block comes out as 127 levels to the unit: what it may
// be off by is less than half of one, and this sum rounds to whole ones.
template <class F>
MXADAMAX_RULE IntegerOf_t<F> ratio_level(F ratio, float units_per_one, IntegerOf_t<F> random) {
  const IntegerOf_t<F> units = to_integer(ratio * units_per_one + 0x1p23f);
  return (units + shifted_right(random, 1)) >> 15;
}
template <class I>
MXADAMAX_RULE auto ratio_at(I level, float level_size) {
  return level_size * to_float(level);
}

// Level q of a signed state stands for q^2 units. One goes from q to the next where, of the 2 q + 1
// units between them, there are more than a share of 1 - threshold. Solved for q, that is this,
// where `variance` is threshold - threshold^2.
template <class F>
MXADAMAX_RULE IntegerOf_t<F> signed_level(F state, float units_per_one, IntegerOf_t<F> random) {
  using I = IntegerOf_t<F>;
  // From 0 to 1: the fraction of a number from 1 to 2, half a unit off, so that none is 0.
  const F threshold = float_of((random << 7) | (0x3f800000 + (1 << 6))) - 1;
  const F units = absolute(state) * units_per_one - (threshold - threshold * threshold);
  const F root = square_root(float_of(bits_of(units) > 0 ? bits_of(units) : I{}));
  const I found = to_integer(root + threshold);
  const I level = found < 127 ? found : constant<I>(127);
  return bits_of(state) < 0 ? -level : level;
}
template <class I>
MXADAMAX_RULE auto signed_at(I level, float unit_size) {
  const auto root = to_float(level);
  return unit_size * (root * absolute(root));
}

// Denominators lie relative to a base, a power of two. A denominator plus the base is a float whose
// exponent and first 4 bits of mantissa, counted from those of the base on, are its code: 16 codes
// for each doubling of the sum, which near 0 lie evenly. Code 0 stands for 0 alone.
//
// The base is such that the largest of a block has one of 256 codes, also when rounded up.
MXADAMAX_RULE float denominator_base(float range) {
  constexpr std::int32_t mantissa_step = 1 << 19, sum_with_base = 1 << 8;
  const std::int32_t above = bits_of(bounded_below(range)) + mantissa_step + sum_with_base;
  return float_of((above & 0x7f800000) - (15 << 23));
}
template <class F>
MXADAMAX_RULE IntegerOf_t<F> denominator_code(F denominator, float base, IntegerOf_t<F> random) {
  using I = IntegerOf_t<F>;
  const I distance = bits_of(base + denominator) - bits_of(base);
  const I code = (distance + (random << 3)) >> 19;
  return code > least_code(denominator) ? code : least_code(denominator);
}
template <class I>
MXADAMAX_RULE auto denominator_at(I code, float base) {
  return float_of((code << 19) + bits_of(base)) - base;
}

// What is stored of a block whose largest magnitude is `range`. If that is not finite, nothing in
// the block means anything any more, as its next step will show; codes are then 0.
template <class State>
MXADAMAX_RULE float scale_of_block(float range) {
  return range < __builtin_inff() ? State::scale_of(range) : __builtin_nanf("");
}

// How one state is kept in 8 bits: what is stored for a block, what numbers are encoded and decoded
// by, and both for a number or a vector.

struct StateWithSign {
  static constexpr bool has_sign = true;
  MXADAMAX_RULE static float scale_of(float range) {
    return range > 0 ? bounded_below(range) : range;
  }
};

// A signed state relative to its denominator.
struct RatioState : StateWithSign {
  MXADAMAX_RULE static float encoding_of(float scale) { return ratio_units(scale); }
  MXADAMAX_RULE static float decoding_of(float scale) { return ratio_level_size(scale); }
  template <class F>
  MXADAMAX_RULE static IntegerOf_t<F> code(F x, float units, IntegerOf_t<F> random) {
    return ratio_level(x, units, random);
  }
  template <class I>
  MXADAMAX_RULE static auto at(I code, float size) {
    return ratio_at(code, size);
  }
};

// A signed state alone.
struct SignedState : StateWithSign {
  MXADAMAX_RULE static float encoding_of(float scale) { return signed_units(scale); }
  MXADAMAX_RULE static float decoding_of(float scale) { return signed_unit_size(scale); }
  template <class F>
  MXADAMAX_RULE static IntegerOf_t<F> code(F x, float units, IntegerOf_t<F> random) {
    return signed_level(x, units, random);
  }
  template <class I>
  MXADAMAX_RULE static auto at(I code, float size) {
    return signed_at(code, size);
  }
};

struct DenominatorState {
  static constexpr bool has_sign = false;
  MXADAMAX_RULE static float scale_of(float range) { return denominator_base(range); }
  MXADAMAX_RULE static float encoding_of(float base) { return base; }
  MXADAMAX_RULE static float decoding_of(float base) { return base; }
  template <class F>
  MXADAMAX_RULE static IntegerOf_t<F> code(F x, float base, IntegerOf_t<F> random) {
    return denominator_code(x, base, random);
  }
  template <class I>
  MXADAMAX_RULE static auto at(I code, float base) {
    return denominator_at(code, base);
  }
};

// That of state k of a rule.
template <class R, int k>
using Int8StateOf =
    std::conditional_t<(states_of_kind<R, StateKind::with_sign> >> k & 1u) == 0, DenominatorState,
                       std::conditional_t<has_ratio_state<R>, RatioState, SignedState>>;

// The number of a state, as a constant. Unlike std::integral_constant, no code of it is shared
// between instruction sets, and devices have it.
template <int k>
struct StateIndex {
  // NOLINTNEXTLINE(*-explicit-constructor): it stands for the number.
  MXADAMAX_RULE constexpr operator int() const { return k; }
};

// Calls use(StateIndex<k>) for each state of a rule.
template <class R, int k = 0, class Use>
MXADAMAX_RULE void for_each_state(Use&& use) {
  if constexpr (k < R::states) {
    use(StateIndex<k>{});
    for_each_state<R, k + 1>(use);
  }
}

}  // namespace mxadamax
