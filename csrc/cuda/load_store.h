// SPDX-License-Identifier: Apache-2.0
// Load numbers from device memory as the op-math type, and store them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/dtype.h"
#include "common/half.h"
#include "launch_config.h"
#include "runtime.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace mxadamax::cuda {

// Numbers stored in the op-math type.
template <class T>
struct Plain {
  using Bits = T;
  MXADAMAX_RULE static T decode(T bits) { return bits; }
  MXADAMAX_RULE static T encode(T number) { return number; }
};

struct Float16 {
  using Bits = std::uint16_t;
  MXADAMAX_RULE static float decode(Bits bits) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(bits));
#else
    return decode_float16(bits);
#endif
  }
  MXADAMAX_RULE static Bits encode(float number) {
#if defined(__CUDA_ARCH__)
    return __half_as_ushort(__float2half_rn(number));
#else
    return encode_float16(number);
#endif
  }
};

struct Bfloat16 {
  using Bits = std::uint16_t;
  MXADAMAX_RULE static float decode(Bits bits) { return decode_bfloat16(bits); }
  MXADAMAX_RULE static Bits encode(float number) { return encode_bfloat16(number); }
};

// The unit of one load or store instruction.
template <class Bits>
struct alignas(vector_bytes) Vector {
  static constexpr int count = vector_bytes / sizeof(Bits);
  Bits numbers[count];
};

#if defined(MXADAMAX_CUDA_ON_HOST)
// A GPU would fail with a misaligned address.
inline void check_alignment(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    throw std::runtime_error("a kernel accesses memory at an address that is not aligned");
  }
}
template <class Value>
Value read(const void* address) {
  check_alignment(address, alignof(Value));
  Value value;
  std::memcpy(&value, address, sizeof value);
  return value;
}
template <class Value>
void write(void* address, const Value& value) {
  check_alignment(address, alignof(Value));
  std::memcpy(address, &value, sizeof value);
}
#else
// All arrays are in global memory, for which accesses have instructions of their own. The compiler
// does not always see it.
MXADAMAX_RULE void assume_global([[maybe_unused]] const void* address) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(address));
#endif
}
template <class Value>
MXADAMAX_RULE Value read(const void* address) {
  assume_global(address);
  return *static_cast<const Value*>(address);
}
template <class Value>
MXADAMAX_RULE void write(void* address, const Value& value) {
  assume_global(address);
  *static_cast<Value*>(address) = value;
}
#endif

// Loads `count` numbers from element `first` on: one, or whole vectors.
template <class Number, int count, class T>
MXADAMAX_RULE void load(const void* array, std::int64_t first, T* numbers) {
  using Bits = typename Number::Bits;
  const Bits* const from = static_cast<const Bits*>(array) + first;
  if constexpr (count == 1) {
    numbers[0] = Number::decode(read<Bits>(from));
  } else {
    constexpr int each = Vector<Bits>::count;
    static_assert(count % each == 0, "whole vectors");
#pragma unroll
    for (int k = 0; k < count; k += each) {
      const auto vector = read<Vector<Bits>>(from + k);
#pragma unroll
      for (int i = 0; i < each; ++i) numbers[k + i] = Number::decode(vector.numbers[i]);
    }
  }
}

template <class Number, int count, class T>
MXADAMAX_RULE void store(void* array, std::int64_t first, const T* numbers) {
  using Bits = typename Number::Bits;
  Bits* const to = static_cast<Bits*>(array) + first;
  if constexpr (count == 1) {
    write<Bits>(to, Number::encode(numbers[0]));
  } else {
    constexpr int each = Vector<Bits>::count;
#pragma unroll
    for (int k = 0; k < count; k += each) {
      Vector<Bits> vector;
#pragma unroll
      for (int i = 0; i < each; ++i) vector.numbers[i] = Number::encode(numbers[k + i]);
      write(to + k, vector);
    }
  }
}

// The bits of 16-bit numbers. Their dtype may be known only at run time, and a conversion waits for
// its load: so all loads come first.
using Halves = Plain<std::uint16_t>;

// Calls use(number) with the number type of a 16-bit dtype.
template <class Use>
MXADAMAX_RULE void with_half(DType type, Use&& use) {
  if (type == DType::float16) {
    use(Float16{});
  } else {
    use(Bfloat16{});
  }
}

template <int count>
MXADAMAX_RULE void decode_halves(DType type, const std::uint16_t* bits, float* numbers) {
  with_half(type, [&](auto number) {
#pragma unroll
    for (int i = 0; i < count; ++i) numbers[i] = number.decode(bits[i]);
  });
}

template <int count>
MXADAMAX_RULE void encode_halves(DType type, const float* numbers, std::uint16_t* bits) {
  with_half(type, [&](auto number) {
#pragma unroll
    for (int i = 0; i < count; ++i) bits[i] = number.encode(numbers[i]);
  });
}

}  // namespace mxadamax::cuda
