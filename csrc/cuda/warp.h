// SPDX-License-Identifier: Apache-2.0
// Reduce over the threads of a warp.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "runtime.h"

namespace mxadamax::cuda {

constexpr std::int32_t warp_size = 32;

// The absmax of several kinds of numbers; infinite or NaN if one number is. The bits of magnitudes
// are ordered like the magnitudes.
template <int count>
struct AbsMax {
  std::uint32_t bits[count] = {};

  MXADAMAX_RULE void add(int k, float x) { add_bits(k, bit_cast_to_integer(x) & 0x7fffffffu); }
  MXADAMAX_RULE void add_bits(int k, std::uint32_t a) { bits[k] = bits[k] > a ? bits[k] : a; }
};

// Calls read(lane, share, largest) for each thread of a warp, which fills the thread's share and
// its absmax; then write(lane, share, largest) for each, with the absmax of the warp. All threads
// of a warp must call this. On the host, the first thread does the work of all.
template <class Share, int count, class Read, class Write>
MXADAMAX_RULE void warp_reduce(std::int32_t lane, Read&& read, Write&& write) {
#if defined(MXADAMAX_CUDA_ON_HOST)
  if (lane != 0) return;
  Share shares[warp_size];
  AbsMax<count> largest;
  for (std::int32_t k = 0; k < warp_size; ++k) read(k, shares[k], largest);
  for (std::int32_t k = 0; k < warp_size; ++k) write(k, shares[k], largest);
#else
  Share share;
  AbsMax<count> largest;
  read(lane, share, largest);
#if defined(__CUDA_ARCH__)
  constexpr unsigned all = 0xffffffffu;
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      largest.add_bits(k, __shfl_xor_sync(all, largest.bits[k], distance));
    }
  }
  // All threads read before any writes.
  __syncwarp();
#endif
  write(lane, share, largest);
#endif
}

// Calls add(lane, sums) for each thread of a warp, which adds to the thread's sums; then
// write(sums) in one thread, with the sums of the warp, added in a fixed order. All threads of a
// warp must call this. On the host, the first thread does the work of all.
template <int count, class Add, class Write>
MXADAMAX_RULE void warp_sum(std::int32_t lane, Add&& add, Write&& write) {
#if defined(MXADAMAX_CUDA_ON_HOST)
  if (lane != 0) return;
  double sums[warp_size][count] = {};
  for (std::int32_t k = 0; k < warp_size; ++k) add(k, sums[k]);
  for (std::int32_t distance = warp_size / 2; distance > 0; distance /= 2) {
    for (std::int32_t k = 0; k < distance; ++k) {
      for (int i = 0; i < count; ++i) sums[k][i] += sums[k + distance][i];
    }
  }
  write(sums[0]);
#else
  double sums[count] = {};
  add(lane, sums);
#if defined(__CUDA_ARCH__)
  constexpr unsigned all = 0xffffffffu;
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < count; ++i) sums[i] += __shfl_xor_sync(all, sums[i], distance);
  }
#endif
  if (lane == 0) write(sums);
#endif
}

}  // namespace mxadamax::cuda
