// SPDX-License-Identifier: Apache-2.0
// Random bits that depend on nothing but a key and the position of an element, so that any thread
// can make them for any part of an array.
//
// Compiled once per instruction set, inside kernels.cc, hence internal linkage.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace mxadamax::cpu {
namespace {

// A permutation of 32 bits with good avalanche (the constants are C. Wellons's "lowbias32"), keyed
// before and between its rounds: arrays whose positions overlap after the first key part ways at
// the second.
void random_bits(RandomKey key, std::uint32_t first, std::uint32_t* bits,
                 std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint32_t x = first + static_cast<std::uint32_t>(i) + key.first;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15 ^ key.second;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    bits[i] = x;
  }
}

}  // namespace
}  // namespace mxadamax::cpu
