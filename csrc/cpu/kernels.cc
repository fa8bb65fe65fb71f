// SPDX-License-Identifier: Apache-2.0
// The loops over the rules. This file is compiled once per instruction set, with
// MXADAMAX_KERNELS naming the function that hands out the result.
//
// Everything but that function has internal linkage or is always inlined, so that code made for one
// instruction set is never picked by the linker for another. tests/kernels/test_native_driver.py
// looks for what is not.
#include <cstring>
#include <type_traits>

#include "codec.h"
#include "common/low_precision.h"
#include "ema.h"
#include "int8_codec.h"
#include "kernel.h"
#include "low_precision_update.h"
#include "ordered_sum.h"
#include "read_scalars.h"
#include "reductions.h"
#include "rules/all.h"

#if defined(__clang__)
#define MXADAMAX_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define MXADAMAX_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

namespace mxadamax::cpu {
namespace {

template <class R>
constexpr int state_slots = R::states > 0 ? R::states : 1;

template <class R, class T>
void run(const double* scalars, const double* scales, const void* grad, void* weight,
         void* const* states, std::int64_t count) noexcept {
  static_assert(R::states <= max_states, "raise max_states");
  const auto transform = read_scalars<GradientTransform<T>, T>(scalars);
  const auto s = read_scalars<typename R::template Scalars<T>, T>(scalars);
  const Scales<R, T> scale = read_scales<R, T>(scales);

  const T* const g = static_cast<const T*>(grad);
  T* const w = static_cast<T*>(weight);
  T* st[state_slots<R>];
  for (int k = 0; k < R::states; ++k) st[k] = static_cast<T*>(states[k]);

  MXADAMAX_INDEPENDENT_ITERATIONS
  for (std::int64_t i = 0; i < count; ++i) {
    T state[state_slots<R>];
    for (int k = 0; k < R::states; ++k) state[k] = st[k][i];
    const T x = updated_weight<R>(transform, s, scale, g[i], w[i], state);
    for (int k = 0; k < R::states; ++k) st[k][i] = state[k];
    w[i] = x;
  }
}

template <class R>
constexpr LowPrecisionKernel kernel_in_8_bits() {
  if constexpr (supports_int8_state<R>) return update_in_8_bits<R>;
  return nullptr;
}

template <class R, class Type>
constexpr LowPrecisionKernel kernel_in_16_bits() {
  if constexpr (R::supports_low_precision_state && R::states > 0) {
    return update_in_16_bits<R, Type>;
  }
  return nullptr;
}

// A term, of a rule's sums over elements that are computed in T.
template <class R, class T>
using Term = std::common_type_t<T, typename R::template Total<T>>;

// Rounds numbers to float16.
[[maybe_unused]] void round_to_half(float* numbers, std::int64_t count) {
  std::uint16_t halves[sum_block] = {};
  encode<Float16>(numbers, halves, count);
  decode<Float16>(halves, numbers, count);
}

// Replaces numbers by the squares of their ratios to `scale`, the largest so far, and the sum of
// the squares before them accordingly. Zeros count for nothing.
template <class Term>
void scale_terms(Term* terms, std::int64_t count, double& sum, double& scale) {
  auto largest = static_cast<float>(scale);
  int larger = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    larger |= static_cast<int>(largest < absolute(static_cast<float>(terms[i])));
  }
  if (larger == 0) {
    for (std::int64_t i = 0; i < count; ++i) {
      const float ratio = absolute(static_cast<float>(terms[i])) / largest;
      terms[i] = terms[i] != 0 ? square(ratio) : 0;
    }
    return;
  }
  auto total = static_cast<float>(sum);
  for (std::int64_t i = 0; i < count; ++i) {
    const float x = absolute(static_cast<float>(terms[i]));
    terms[i] = 0;
    if (x == 0) continue;
    if (largest < x) {
      total = 1 + total * (largest / x) * (largest / x);
      largest = x;
    } else {
      total += square(x / largest);
    }
  }
  sum = total;
  scale = largest;
}

template <class R, class T, int stage>
void find_terms(const double* scalars, const double* scales, const SumBlock& elements, Sums& sums,
                Terms& room) noexcept {
  static_assert(R::sums <= max_sums, "raise max_sums");
  const auto transform = read_scalars<GradientTransform<T>, T>(scalars);
  const auto s = read_scalars<typename R::template Scalars<T>, T>(scalars);
  const Scales<R, T> scale = read_scales<R, T>(scales);

  const T* const g = static_cast<const T*>(elements.grad);
  const T* const w = static_cast<const T*>(elements.weight);
  const T* const shown = elements.copy == nullptr ? w : static_cast<const T*>(elements.copy);
  const T* st[state_slots<R>];
  for (int k = 0; k < R::states; ++k) st[k] = static_cast<const T*>(elements.states[k]);
  Term<R, T>* terms[R::sums];
  for (int k = 0; k < R::sums; ++k) terms[k] = reinterpret_cast<Term<R, T>*>(room.room[k]);

  const std::int64_t count = elements.count;
  MXADAMAX_INDEPENDENT_ITERATIONS
  for (std::int64_t i = 0; i < count; ++i) {
    T state[state_slots<R>];
    for (int k = 0; k < R::states; ++k) state[k] = st[k][i];
    Term<R, T> term[R::sums] = {};
    R::template add_terms<stage>(transform, s, scale.found, g[i], w[i], shown[i], state, term);
    for (int k = 0; k < R::sums; ++k) terms[k][i] = term[k];
  }
  if constexpr (R::half_squares > 0 && std::is_same_v<T, float>) {
    for (int k = 0; k < R::half_squares && elements.copy != nullptr; ++k) {
      round_to_half(terms[k], count);
    }
  }
  for (int k = 0; k < R::sums; ++k) {
    if constexpr (R::scaled_norms) scale_terms(terms[k], count, sums[k], sums[R::sums + k]);
    for (std::int64_t i = count; i < sum_block; ++i) terms[k][i] = 0;
  }
}

// Adds numbers in any order.
template <class T>
T added_in_any_order(T total, const T* terms, std::int64_t length) {
  constexpr int lanes = 16;
  T sums[lanes] = {};
  for (std::int64_t i = 0; i < length; i += lanes) {
    for (int k = 0; k < lanes; ++k) sums[k] += terms[i + k];
  }
  for (const T sum : sums) total += sum;
  return total;
}

// Adds numbers to `count` totals, each in order: in lanes where that can be done, else one by one,
// the totals side by side. What keeps a sum from being added in lanes is in few places of it.
template <int count, class Total, class Term>
void add_in_order(Total* totals, const Term* const* terms, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t shortest = 2 * ordered_lanes<Total>;
  if constexpr (std::is_same_v<Total, Term>) {
    Total added[count];
    bool all = true;
    for (int k = 0; k < count && all; ++k) {
      added[k] = totals[k];
      all = add_in_lanes(added[k], terms[k] + begin, end - begin);
    }
    if (all) {
      for (int k = 0; k < count; ++k) totals[k] = added[k];
      return;
    }
    if (end - begin > shortest) {
      const std::int64_t middle = begin + (end - begin) / shortest / 2 * shortest;
      add_in_order<count>(totals, terms, begin, middle);
      add_in_order<count>(totals, terms, middle, end);
      return;
    }
  }
  for (std::int64_t i = begin; i < end; ++i) {
    for (int k = 0; k < count; ++k) totals[k] = static_cast<Total>(totals[k] + terms[k][i]);
  }
}

template <class R, class T, int tensors>
void add_side_by_side(const Terms* room, Sums* sums, std::int64_t length) {
  using Total = typename R::template Total<T>;
  constexpr int count = tensors * R::sums;
  const Term<R, T>* terms[count];
  Total total[count];
  for (int k = 0; k < count; ++k) {
    terms[k] = reinterpret_cast<const Term<R, T>*>(room[k / R::sums].room[k % R::sums]);
    total[k] = static_cast<Total>(sums[k / R::sums][k % R::sums]);
  }
  if constexpr (R::sums_in_any_order) {
    for (int k = 0; k < count; ++k) total[k] = added_in_any_order(total[k], terms[k], length);
  } else {
    add_in_order<count>(total, terms, 0, length);
  }
  for (int k = 0; k < count; ++k) sums[k / R::sums][k % R::sums] = total[k];
}

template <class R, class T>
void add_to_sums(const Terms* room, Sums* sums, int tensors, std::int64_t length) noexcept {
  constexpr std::int64_t lanes = 2 * ordered_lanes<float>;
  length = (length + lanes - 1) / lanes * lanes;
  static_assert(summed_together == 4, "a case for each number");
  switch (tensors) {
    case 1:
      return add_side_by_side<R, T, 1>(room, sums, length);
    case 2:
      return add_side_by_side<R, T, 2>(room, sums, length);
    case 3:
      return add_side_by_side<R, T, 3>(room, sums, length);
    default:
      return add_side_by_side<R, T, 4>(room, sums, length);
  }
}

// The norm that follows from sums of scaled squares over parts of a tensor.
template <class R>
float scaled_norm(const Sums* sums, int parts, int which) {
  float total = 0;
  float scale = 0;
  for (int part = 0; part < parts; ++part) {
    const auto more = static_cast<float>(sums[part][which]);
    const auto its_scale = static_cast<float>(sums[part][R::sums + which]);
    if (scale != 0 && scale >= its_scale) {
      total = total + more * (its_scale / scale) * (its_scale / scale);
    } else if (its_scale != 0 && scale < its_scale) {
      total = more + total * (scale / its_scale) * (scale / its_scale);
      scale = its_scale;
    }
  }
  return scale * square_root(total);
}

template <class R, class T, int stage>
void find_scales(const double* scalars, const Sums* sums, [[maybe_unused]] int parts,
                 double* scales) noexcept {
  // What they are found in.
  using S = std::conditional_t<R::scaled_norms, double, T>;
  using Total = typename R::template Total<T>;
  const auto transform = read_scalars<GradientTransform<T>, T>(scalars);
  const auto s = read_scalars<typename R::template Scalars<S>, S>(scalars);
  Total total[R::sums];
  Scales<R, S> found = read_scales<R, S>(scales);
  for (int k = 0; k < R::sums; ++k) {
    if constexpr (R::scaled_norms) {
      total[k] = scaled_norm<R>(sums, parts, k);
    } else {
      total[k] = static_cast<Total>(sums[0][k]);
    }
  }
  R::template find_scales<stage>(transform, s, total, found.found);
  for (int k = 0; k < R::scales; ++k) {
    scales[k] = R::scaled_norms ? as_scalar_is_read(found.found[k]) : found.found[k];
  }
}

template <class R, class T, int stage>
constexpr SumKernels sum_kernels_of() {
  if constexpr (R::sums > 0 && stage < R::stages) {
    return {find_terms<R, T, stage>, add_to_sums<R, T>, find_scales<R, T, stage>};
  } else {
    return {};
  }
}

template <class Type>
constexpr Codec codec = {
    decode<Type>, encode<Type>, {encode_along<Type, false>, encode_along<Type, true>}};

template <class State>
constexpr Int8Codec int8_codec = {decode_int8_along<State>, encode_int8_along<State>};

void square_all(float* numbers, std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i) numbers[i] = square(numbers[i]);
}

void multiply_ratios(float* ratios, const float* denominators, float epsilon,
                     std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i) ratios[i] *= denominators[i] + epsilon;
}

constexpr SharedKernels shared_kernels = {
    {codec<Float16>, codec<Bfloat16>},
    {int8_codec<RatioState>, int8_codec<SignedState>, int8_codec<DenominatorState>},
    square_all,
    multiply_ratios,
    {sum_of_squares<float>, sum_of_squares<double>},
    {nonfinite_probe<float>, nonfinite_probe<double>},
    {average<float>, average<double>}};

template <class Names>
constexpr int epsilon_scalar_of(const Names& names) {
  int found = -1;
  for (std::size_t k = 0; k < names.size(); ++k) {
    if (std::string_view(names[k]) == "epsilon") found = static_cast<int>(k);
  }
  return found;
}

template <class R>
constexpr RuleKernels describe() {
  const auto& names = ScalarNames<R>::names;
  return {
      R::name,
      R::states,
      R::kinds,
      R::supports_low_precision_state,
      supports_int8_state<R>,
      R::none_first,
      names.data(),
      static_cast<int>(names.size()),
      epsilon_scalar_of(names),
      {run<R, float>, run<R, double>},
      {kernel_in_16_bits<R, Float16>(), kernel_in_16_bits<R, Bfloat16>(), kernel_in_8_bits<R>()},
      R::sums,
      R::stages,
      R::sums_copy,
      R::scaled_norms,
      {{sum_kernels_of<R, float, 0>(), sum_kernels_of<R, double, 0>()},
       {sum_kernels_of<R, float, 1>(), sum_kernels_of<R, double, 1>()}},
      &shared_kernels};
}

template <class... Rules>
KernelTable table(RuleList<Rules...>) {
  static constexpr RuleKernels rules[] = {describe<Rules>()...};
  return {rules, static_cast<int>(sizeof...(Rules))};
}

}  // namespace

KernelTable MXADAMAX_KERNELS() { return table(AllRules{}); }

}  // namespace mxadamax::cpu
