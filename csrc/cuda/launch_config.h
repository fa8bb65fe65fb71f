// SPDX-License-Identifier: Apache-2.0
// How the work on many tensors is cut and laid out for a GPU: plain arithmetic, without CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/chunks.h"
#include "common/dtype.h"

namespace mxadamax::cuda {

constexpr int threads_per_block = 256;
// What a thread reads or writes at once, which is the most that a GPU does.
constexpr int vector_bytes = 16;

// Consecutive elements of one tensor: the work of one block of threads, until it takes the next.
struct Tile {
  std::int64_t first;
  std::int32_t count;
  std::int32_t tensor;
};

// Short, so that the last parts leave no processor idle for long; long enough for every thread to
// have a few vectors.
constexpr std::int64_t part_length = 4096;

// Adds the parts of one tensor; of one without elements there are none.
inline void add_parts(std::int32_t tensor, std::int64_t size, std::vector<Tile>& parts) {
  for (std::int64_t first = 0; first < size; first += part_length) {
    parts.push_back(
        {first, static_cast<std::int32_t>(std::min(part_length, size - first)), tensor});
  }
}

// How many elements a thread takes at once: the smallest of them fill a vector.
constexpr int elements_at_once(std::int64_t smallest) {
  return static_cast<int>(vector_bytes / smallest);
}

struct Alignment {
  std::uintptr_t address;
  std::int64_t element_size;
};

// How many elements come before the first with which a vector begins in every array; -1 where there
// is none, and elements have to go one by one.
inline int vector_head(const Alignment* arrays, int count, int at_once) {
  for (int head = 0; head < at_once; ++head) {
    const auto is_aligned = [&](const Alignment& array) {
      return (array.address + static_cast<std::uintptr_t>(head * array.element_size)) %
                 vector_bytes ==
             0;
    };
    if (std::all_of(arrays, arrays + count, is_aligned)) return head;
  }
  return -1;
}

// A part of a tensor: what comes before its vectors, how many these are, and where the rest begins.
// Everything goes one by one where there is no head.
struct Split {
  std::int32_t head, vectors, tail;
};
MXADAMAX_RULE Split split(std::int32_t count, int head, int at_once) {
  if (head < 0 || head >= count) return {count, 0, count};
  const std::int32_t vectors = (count - head) / at_once;
  return {head, vectors, head + vectors * at_once};
}

// How many blocks to start: as many as there is work for, and no more than run at a time, which
// take further work by themselves.
inline unsigned grid_size(std::int64_t work, int processors, int blocks_per_processor) {
  const std::int64_t at_a_time =
      std::max<std::int64_t>(1, std::int64_t{processors} * blocks_per_processor);
  return static_cast<unsigned>(std::min(work, at_a_time));
}

// More than a processor holds of small kernels; what is left over waits its turn.
constexpr int small_blocks_per_processor = 8;

// Consecutive elements of one gradient whose sum is one number of a chunk. That is made of
// segments, one unless numbers are converted; each leaves a sum for each lane, from `first_segment`
// on.
struct SumTile {
  std::int64_t first;
  std::int64_t first_segment;
  std::int32_t count;
  std::int32_t tensor;
};

MXADAMAX_RULE constexpr std::int64_t segment_length(bool converted) {
  return converted ? converted_block : Chunks::length;
}
MXADAMAX_RULE std::int64_t segments_of(std::int64_t count, std::int64_t length) {
  return (count + length - 1) / length;
}

// The chunks that the processor's kernels sum, so that the sum is theirs to the last bit.
struct Sums {
  std::vector<SumTile> parts;
  // Where the parts of each chunk begin, and at last where they end.
  std::vector<std::int64_t> chunks;
  std::int64_t segments = 0;
  // How many threads share a part.
  int threads = sum_lanes;
};

// `converted` tells for each tensor whether its gradient is.
inline Sums sums_of(const std::vector<std::int64_t>& sizes, const std::vector<bool>& converted) {
  Sums sums;
  const Chunks chunks(sizes);
  for (std::int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
    sums.chunks.push_back(static_cast<std::int64_t>(sums.parts.size()));
    chunks.visit(chunk, [&](std::size_t tensor, std::int64_t first, std::int64_t count) {
      sums.parts.push_back({first, sums.segments, static_cast<std::int32_t>(count),
                            static_cast<std::int32_t>(tensor)});
      const std::int64_t segments = segments_of(count, segment_length(converted[tensor]));
      sums.segments += segments;
      if (segments > 1) sums.threads = sum_lanes * (Chunks::length / converted_block);
    });
  }
  sums.chunks.push_back(static_cast<std::int64_t>(sums.parts.size()));
  return sums;
}

}  // namespace mxadamax::cuda
