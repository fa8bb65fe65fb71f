// SPDX-License-Identifier: Apache-2.0
// Update weights. This file is compiled once for each variant: MXADAMAX_VARIANT names the variant,
// and MXADAMAX_KERNELS the function that returns its kernels.
#include "load_store.h"
#include "rule_kernels.h"

namespace mxadamax::cuda {
namespace {

constexpr Variant variant = Variant::MXADAMAX_VARIANT;
// What is computed in, and what averages are stored as.
using T = std::conditional_t<variant == Variant::float64, double, float>;
constexpr int at_once = elements_at_once(variant == Variant::half ? 2 : sizeof(T));

template <class R>
using RowOf = Row<R, T>;

// What a rule updates, of `count` elements.
template <class R, int count, class Number = T>
struct Elements {
  static_assert(R::states <= max_states, "raise max_states");
  Number weight[count], states[R::states > 0 ? R::states : 1][count];
};

// Calls visit(array, numbers) for the weight and each state.
template <class R, int count, class Number, class Visit>
MXADAMAX_RULE void for_each_array(const TensorEntry& tensor, Elements<R, count, Number>& elements,
                                  Visit&& visit) {
  visit(tensor.weight, elements.weight);
#pragma unroll
  for (int k = 0; k < R::states; ++k) visit(tensor.states[k], elements.states[k]);
}

// Loads the elements from `first` on; their gradients are at `place`, or zero if that is negative,
// which is never so of vectors.
template <class R, int count>
MXADAMAX_RULE void load_elements(const TensorEntry& tensor, std::int64_t place, std::int64_t first,
                                 T* grad, Elements<R, count>& to) {
  const auto load_numbers = [&](const void* array, T* numbers) {
    load<Plain<T>, count>(array, first, numbers);
  };
  if constexpr (variant == Variant::half) {
    std::uint16_t grad_bits[count] = {};
    // Not asked of vectors, this makes the compiler use more registers.
    if (place >= 0) load<Halves, count>(tensor.grad, place, grad_bits);
    if (tensor.copy != nullptr) {
      for_each_array(tensor, to, load_numbers);
    } else {
      Elements<R, count, std::uint16_t> bits;
      for_each_array(tensor, bits, [&](const void* array, std::uint16_t* found) {
        load<Halves, count>(array, first, found);
      });
      decode_halves<count>(tensor.weight_type, bits.weight, to.weight);
#pragma unroll
      for (int k = 0; k < R::states; ++k) {
        decode_halves<count>(tensor.weight_type, bits.states[k], to.states[k]);
      }
    }
    decode_halves<count>(tensor.grad_type, grad_bits, grad);
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) grad[i] = 0;
    if (count > 1 || place >= 0) load<Plain<T>, count>(tensor.grad, place, grad);
    for_each_array(tensor, to, load_numbers);
  }
}

template <class R, int count>
MXADAMAX_RULE void store_elements(const TensorEntry& tensor, const RowOf<R>& row,
                                  std::int64_t first, Elements<R, count>& from) {
  const auto store_numbers = [&](void* array, const T* numbers) {
    store<Plain<T>, count>(array, first, numbers);
  };
  if constexpr (variant == Variant::half) {
    const auto store_halves = [&](DType type, void* array, const T* numbers) {
      std::uint16_t bits[count];
      encode_halves<count>(type, numbers, bits);
      store<Halves, count>(array, first, bits);
    };
    if (tensor.copy != nullptr) {
      for_each_array(tensor, from, store_numbers);
      store_halves(tensor.grad_type, tensor.copy, from.weight);
    } else {
      for_each_array(tensor, from, [&](void* array, const T* numbers) {
        store_halves(tensor.weight_type, array, numbers);
      });
    }
  } else {
    for_each_array(tensor, from, store_numbers);
  }
  if (tensor.average != nullptr) {
    T average[count];
    load<Plain<T>, count>(tensor.average, first, average);
#pragma unroll
    for (int i = 0; i < count; ++i) average[i] = new_average(row, average[i], from.weight[i]);
    store<Plain<T>, count>(tensor.average, first, average);
  }
}

// Updates `count` elements from `first` on, with the gradients at `place`.
template <class R, int count>
MXADAMAX_RULE void update_elements(const TensorEntry& tensor, const RowOf<R>& row,
                                   std::int64_t place, std::int64_t first) {
  T grad[count];
  Elements<R, count> elements;
  load_elements(tensor, place, first, grad, elements);
#pragma unroll
  for (int i = 0; i < count; ++i) {
    T state[R::states > 0 ? R::states : 1];
#pragma unroll
    for (int k = 0; k < R::states; ++k) state[k] = elements.states[k][i];
    run_rule(row, grad[i], &elements.weight[i], state);
#pragma unroll
    for (int k = 0; k < R::states; ++k) elements.states[k][i] = state[k];
  }
  store_elements(tensor, row, first, elements);
}

// The variant is a parameter so that the kernel's name contains it. With launch bounds of two
// blocks, the compiler uses the registers it needs, instead of spilling for a third block.
template <class R, Variant>
__global__ void __launch_bounds__(threads_per_block, 2) update(UpdateTable table) {
  for_each_part<RowOf<R>>(table, [](const Tile& part, const TensorEntry& tensor,
                                    const RowOf<R>& row, std::int64_t) {
    const Split cut = split(part.count, tensor.head, at_once);
    const auto thread = static_cast<std::int32_t>(threadIdx.x);
    const auto threads = static_cast<std::int32_t>(blockDim.x);
    for (std::int32_t i = thread; i < cut.vectors; i += threads) {
      const std::int64_t first = part.first + cut.head + i * at_once;
      update_elements<R, at_once>(tensor, row, first, first);
    }
    // With a row-sparse gradient there are no vectors.
    for_each_element(part, cut, tensor.rows, thread, [&](std::int64_t place, std::int64_t element) {
      update_elements<R, 1>(tensor, row, place, element);
    });
  });
}

template <class R>
struct KernelOf {
  static constexpr UpdateKernel update = started<cuda::update<R, variant>>;
};

}  // namespace

DeviceKernelTable MXADAMAX_KERNELS() { return table<KernelOf, T>(AllRules{}); }

}  // namespace mxadamax::cuda
