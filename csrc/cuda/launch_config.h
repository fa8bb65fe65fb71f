// SPDX-License-Identifier: Apache-2.0
// Split the work on many tensors for a GPU: plain arithmetic, without CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/chunks.h"
#include "common/dtype.h"

namespace mxadamax::cuda {

constexpr int threads_per_block = 256;
// Bytes that a thread reads or writes at once: the most that a GPU can.
constexpr int vector_bytes = 16;

// Consecutive elements of one tensor: a unit of work of a block of threads.
struct Tile {
  std::int64_t first;
  std::int32_t count;
  std::int32_t tensor;
};

// Short enough that the last tiles leave no processor idle for long; long enough that every thread
// has a few vectors.
constexpr std::int64_t tile_length = 4096;

// Appends the tiles of one tensor; none without elements.
inline void append_tiles(std::int32_t tensor, std::int64_t size, std::vector<Tile>& parts) {
  for (std::int64_t first = 0; first < size; first += tile_length) {
    parts.push_back(
        {first, static_cast<std::int32_t>(std::min(tile_length, size - first)), tensor});
  }
}

// Elements that a thread processes at once: enough of the smallest type to fill a vector.
constexpr int elements_at_once(std::int64_t smallest) {
  return static_cast<int>(vector_bytes / smallest);
}

struct Alignment {
  std::uintptr_t address;
  std::int64_t element_size;
};

// The head of a tensor whose elements go one by one.
constexpr int no_vectors = -1;

// Number of elements before the first one that is vector-aligned in every array; `no_vectors` if
// there is none.
inline int vector_head(const Alignment* arrays, int count, int at_once) {
  for (int head = 0; head < at_once; ++head) {
    const auto is_aligned = [&](const Alignment& array) {
      return (array.address + static_cast<std::uintptr_t>(head * array.element_size)) %
                 vector_bytes ==
             0;
    };
    if (std::all_of(arrays, arrays + count, is_aligned)) return head;
  }
  return no_vectors;
}

// Split of a tile: elements before the vectors, number of vectors, and start of the rest.
struct Split {
  std::int32_t head, vectors, tail;
};
MXADAMAX_RULE Split split(std::int32_t count, int head, int at_once) {
  if (head == no_vectors || head >= count) return {count, 0, count};
  const std::int32_t vectors = (count - head) / at_once;
  return {head, vectors, head + vectors * at_once};
}

// Number of blocks to launch: one per unit of work, but no more than can run at a time; those take
// further work in turn.
inline unsigned grid_size(std::int64_t work, int processors, int blocks_per_processor) {
  const std::int64_t at_a_time =
      std::max<std::int64_t>(1, std::int64_t{processors} * blocks_per_processor);
  return static_cast<unsigned>(std::min(work, at_a_time));
}

// More blocks of small kernels than a processor holds; the rest waits.
constexpr int small_blocks_per_processor = 8;

// Consecutive elements of one gradient within a chunk, summed together. A tile has one segment, or
// several if numbers are converted; each segment yields a sum for each lane, from `first_segment`
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

// The chunks of the CPU kernels' sums, so the result has the same bits.
struct Sums {
  std::vector<SumTile> parts;
  // The first part of each chunk, followed by the number of all parts.
  std::vector<std::int64_t> chunks;
  std::int64_t segments = 0;
  // Threads that share a part.
  int threads = sum_lanes;
};

// `converted` says for each tensor whether its gradient is converted to float32.
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
