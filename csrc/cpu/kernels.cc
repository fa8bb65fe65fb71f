// SPDX-License-Identifier: Apache-2.0
// The loops over the rules. This file is compiled once per instruction set, with
// MXADAMAX_KERNELS naming the function that hands out the result.
//
// Everything but that function has internal linkage, so that code made for one instruction set is
// never picked by the linker for another.
#include <cstring>
#include <type_traits>

#include "codec.h"
#include "common/low_precision.h"
#include "ema.h"
#include "int8_codec.h"
#include "kernel.h"
#include "reductions.h"
#include "rules/all.h"

#if defined(__clang__)
#define MXADAMAX_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define MXADAMAX_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

namespace mxadamax::cpu {
namespace {

// Rounds the next scalars of a row to the type that the kernel computes in.
template <class Scalars, class T>
Scalars read_scalars(const double*& row) {
  constexpr int n = sizeof(Scalars) / sizeof(T);
  T rounded[n];
  for (int k = 0; k < n; ++k) rounded[k] = static_cast<T>(row[k]);
  row += n;
  Scalars scalars;
  std::memcpy(&scalars, rounded, sizeof scalars);
  return scalars;
}

template <class R>
constexpr int state_slots = R::states > 0 ? R::states : 1;

template <class R, class T>
Scales<R, T> read_scales(const double* scales) {
  static_assert(R::scales <= max_scales, "raise max_scales");
  Scales<R, T> rounded{};
  if constexpr (R::sums > 0) {
    for (int k = 0; k < R::scales; ++k) rounded.found[k] = static_cast<T>(scales[k]);
  }
  return rounded;
}

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

// The sum of numbers, added in lanes.
template <class T>
T added_up_in_lanes(T total, const T* terms, std::int64_t count) {
  constexpr int lanes = 16;
  T sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (int k = 0; k < lanes; ++k) sums[k] += terms[i + k];
  }
  for (int k = 0; i + k < count; ++k) sums[k] += terms[i + k];
  for (const T sum : sums) total += sum;
  return total;
}

// Terms are computed for many elements at once, and then added up.
template <class R, class T, int stage>
void add_to_sums(const double* scalars, const double* scales, const void* grad, const void* weight,
                 const void* const* states, std::int64_t count, double* sums) noexcept {
  static_assert(R::sums <= max_sums, "raise max_sums");
  using Total = typename R::template Total<T>;
  using Term = std::common_type_t<T, Total>;
  const auto transform = read_scalars<GradientTransform<T>, T>(scalars);
  const auto s = read_scalars<typename R::template Scalars<T>, T>(scalars);
  const Scales<R, T> scale = read_scales<R, T>(scales);

  const T* const g = static_cast<const T*>(grad);
  const T* const w = static_cast<const T*>(weight);
  const T* st[state_slots<R>];
  for (int k = 0; k < R::states; ++k) st[k] = static_cast<const T*>(states[k]);
  Total total[R::sums];
  for (int k = 0; k < R::sums; ++k) total[k] = static_cast<Total>(sums[k]);

  constexpr std::int64_t block = 256;
  alignas(64) Term terms[R::sums][block];
  for (std::int64_t first = 0; first < count; first += block) {
    const std::int64_t here = count - first < block ? count - first : block;
    MXADAMAX_INDEPENDENT_ITERATIONS
    for (std::int64_t i = 0; i < here; ++i) {
      T state[state_slots<R>];
      for (int k = 0; k < R::states; ++k) state[k] = st[k][first + i];
      Term term[R::sums] = {};
      R::template add_terms<stage>(transform, s, scale.found, g[first + i], w[first + i], state,
                                   term);
      for (int k = 0; k < R::sums; ++k) terms[k][i] = term[k];
    }
    if constexpr (R::sums_in_any_order) {
      for (int k = 0; k < R::sums; ++k) total[k] = added_up_in_lanes(total[k], terms[k], here);
    } else {
      for (std::int64_t i = 0; i < here; ++i) {
        for (int k = 0; k < R::sums; ++k) total[k] = static_cast<Total>(total[k] + terms[k][i]);
      }
    }
  }
  for (int k = 0; k < R::sums; ++k) sums[k] = total[k];
}

template <class R, class T, int stage>
void find_scales(const double* scalars, const double* sums, double* scales) noexcept {
  using Total = typename R::template Total<T>;
  const auto transform = read_scalars<GradientTransform<T>, T>(scalars);
  const auto s = read_scalars<typename R::template Scalars<T>, T>(scalars);
  Total total[R::sums];
  for (int k = 0; k < R::sums; ++k) total[k] = static_cast<Total>(sums[k]);
  Scales<R, T> found = read_scales<R, T>(scales);
  R::template find_scales<stage>(transform, s, total, found.found);
  for (int k = 0; k < R::scales; ++k) scales[k] = found.found[k];
}

template <class R, class T, int stage>
constexpr SumKernels sum_kernels_of() {
  if constexpr (R::sums > 0 && stage < R::stages) {
    return {add_to_sums<R, T, stage>, find_scales<R, T, stage>};
  } else {
    return {};
  }
}

template <class Type>
constexpr Codec codec = {decode<Type>, encode<Type>, encode_stochastic<Type, false>,
                         encode_stochastic<Type, true>};

void random_bits(RngKey key, std::uint32_t first, std::uint32_t* bits,
                 std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i) {
    bits[i] = random_bits_at(key, first + static_cast<std::uint32_t>(i));
  }
}

void square_all(float* numbers, std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i) numbers[i] = square(numbers[i]);
}

void square_root_all(float* numbers, std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i) numbers[i] = square_root(numbers[i]);
}

template <class Format>
constexpr Int8Codec int8_codec = {decode_int8<Format>, encode_int8<Format>};

constexpr SharedKernels shared_kernels = {{codec<Float16>, codec<Bfloat16>},
                                          {int8_codec<SignedState>, int8_codec<RatioState>},
                                          random_bits,
                                          square_all,
                                          square_root_all,
                                          {sum_of_squares<float>, sum_of_squares<double>},
                                          {nonfinite_probe<float>, nonfinite_probe<double>},
                                          {average<float>, average<double>}};

template <class R>
constexpr RuleKernels describe() {
  const auto& names = ScalarNames<R>::names;
  return {R::name,
          R::states,
          R::kinds,
          R::supports_low_precision_state,
          supports_int8_state<R>,
          R::none_first,
          names.data(),
          static_cast<int>(names.size()),
          {run<R, float>, run<R, double>},
          R::sums,
          R::stages,
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
