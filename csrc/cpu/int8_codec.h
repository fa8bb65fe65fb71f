// SPDX-License-Identifier: Apache-2.0
// States in 8 bits each, as low_precision.h says.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

#include "codec.h"
#include "common/low_precision.h"
#include "kernel.h"

namespace mxadamax::cpu {
namespace {

constexpr int vectors_of_block = block_size / lanes;

// 8-bit numbers, each in a lane of 32 bits.
template <bool has_sign>
Integers load_bytes(const std::uint8_t* from) {
#if defined(__AVX512BW__)
  const __m128i bytes = load<__m128i>(from);
  return reinterpret_cast<Integers>(has_sign ? _mm512_maskz_cvtepi8_epi32(0xffff, bytes)
                                             : _mm512_maskz_cvtepu8_epi32(0xffff, bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Integers>(has_sign ? _mm256_cvtepi8_epi32(bytes)
                                             : _mm256_cvtepu8_epi32(bytes));
#else
  Integers found;
  for (int i = 0; i < lanes; ++i) {
    found[i] = has_sign ? static_cast<std::int8_t>(from[i]) : static_cast<int>(from[i]);
  }
  return found;
#endif
}

// Stores the lowest bytes of a block's lanes.
void store_bytes(std::uint8_t* to, const Integers* from) {
#if defined(__AVX512BW__)
  for (int i = 0; i < vectors_of_block; ++i) {
    store(to + i * lanes, _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(from[i])));
  }
#elif defined(__AVX2__)
  const __m256i lowest = _mm256_set1_epi32(0xff);
  // In each half of a register, four bytes of each of four vectors.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int i = 0; i < vectors_of_block; i += 4) {
    __m256i part[4];
    for (int k = 0; k < 4; ++k) {
      part[k] = _mm256_and_si256(reinterpret_cast<__m256i>(from[i + k]), lowest);
    }
    const __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(part[0], part[1]),
                                               _mm256_packus_epi32(part[2], part[3]));
    store(to + i * lanes, _mm256_permutevar8x32_epi32(packed, order));
  }
#else
  for (int i = 0; i < block_size; ++i) {
    to[i] = static_cast<std::uint8_t>(from[i / lanes][i % lanes]);
  }
#endif
}

// The largest magnitude of a block, whose lanes have had their own largest found as integers, which
// are ordered alike; infinite or NaN if one is.
float largest_of_lanes(Integers largest) {
  std::int32_t found[lanes];
  store(found, largest);
  for (int n = lanes / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) found[i] = found[i] > found[i + n] ? found[i] : found[i + n];
  }
  return float_of(found[0]);
}
Integers larger_magnitude(Integers largest, Floats x) {
  const Integers magnitude = bits_of(x) & 0x7fffffff;
  return magnitude > largest ? magnitude : largest;
}

// `random` begins at the block, and goes to its end.
template <class State>
void encode_block(const float* from, RandomNumbers& random, float scale, std::uint8_t* to) {
  if (scale != scale) {
    for (int i = 0; i < vectors_of_block; ++i) random.advance();
    std::memset(to, 0, block_size);
    return;
  }
  const float encoding = State::encoding_of(scale);
  Integers codes[vectors_of_block];
  for (int i = 0; i < vectors_of_block; ++i) {
    codes[i] = State::code(load<Floats>(from + i * lanes), encoding, random.numbers);
    random.advance();
  }
  store_bytes(to, codes);
}

template <class State>
void decode_block(const std::uint8_t* from, float scale, float* to) {
  const float decoding = State::decoding_of(scale);
  for (int i = 0; i < block_size; i += lanes) {
    store(to + i, State::at(load_bytes<State::has_sign>(from + i), decoding));
  }
}

// Of an array that begins where a block does, into one with room for whole blocks.
template <class State>
void decode_blocks(const std::uint8_t* from, const float* scales, int states, float* to,
                   std::int64_t count) {
  std::int64_t i = 0;
  for (; i + block_size <= count; i += block_size, scales += states) {
    decode_block<State>(from + i, *scales, to + i);
  }
  if (i == count) return;
  std::uint8_t padded[block_size] = {};
  std::memcpy(padded, from + i, static_cast<std::size_t>(count - i));
  decode_block<State>(padded, *scales, to + i);
}

// The largest magnitude of a block; infinite or NaN if one is.
float largest_of_block(const float* from) {
  Integers largest{};
  for (int i = 0; i < block_size; i += lanes) {
    largest = larger_magnitude(largest, load<Floats>(from + i));
  }
  return largest_of_lanes(largest);
}

// Arrays begin where a block does. Only the last block may be shorter. Between the scales of two
// blocks are those of the other states.
//
// The scales of all blocks come first: else the processor waits for each.
template <class State>
void encode_int8(const float* from, RandomNumbers random, std::uint8_t* to, float* scales,
                 int states, std::int64_t count) {
  const std::int64_t whole = count / block_size;
  float own[rng_block / block_size];
  for (std::int64_t b = 0; b < whole; ++b) {
    own[b] = scale_of_block<State>(largest_of_block(from + b * block_size));
  }
  for (std::int64_t b = 0; b < whole; ++b) {
    scales[b * states] = own[b];
    encode_block<State>(from + b * block_size, random, own[b], to + b * block_size);
  }
  const std::int64_t first = whole * block_size;
  if (first == count) return;
  const auto rest = static_cast<std::size_t>(count - first);
  float numbers[block_size] = {};
  std::uint8_t found[block_size];
  std::memcpy(numbers, from + first, rest * sizeof(float));
  scales[whole * states] = scale_of_block<State>(largest_of_block(numbers));
  encode_block<State>(numbers, random, scales[whole * states], found);
  std::memcpy(to + first, found, rest);
}

template <class State>
void encode_int8_along(const float* from, RngLine line, void* to, float* scales, int states,
                       std::int64_t count) noexcept {
  encode_int8<State>(from, RandomNumbers(line), static_cast<std::uint8_t*>(to), scales, states,
                     count);
}

// Of no more than one block of random numbers.
template <class State>
void decode_int8_along(const void* from, const float* scales, int states, float* to,
                       std::int64_t count) noexcept {
  float numbers[rng_block];
  decode_blocks<State>(static_cast<const std::uint8_t*>(from), scales, states, numbers, count);
  std::memcpy(to, numbers, static_cast<std::size_t>(count) * sizeof(float));
}

}  // namespace
}  // namespace mxadamax::cpu
