// SPDX-License-Identifier: Apache-2.0
// Cuts many tensors of any sizes into chunks of equal work.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mxadamax {

// Lays all tensors one after another and cuts the whole at fixed distances, so that a thousand
// small tensors share a chunk and one large tensor spans thousands. The cut depends on the sizes
// alone, never on the number of threads.
//
// Each tensor takes a multiple of `grain` places: a cut inside a tensor then falls on a multiple of
// `grain` elements from its start, on a cache line of its own for arrays that begin on one.
class Chunks {
 public:
  static constexpr std::int64_t grain = 64;
  static constexpr std::int64_t length = 16384;

  explicit Chunks(const std::vector<std::int64_t>& sizes) : sizes_(sizes) {
    starts_.reserve(sizes.size() + 1);
    std::int64_t start = 0;
    for (const std::int64_t size : sizes) {
      starts_.push_back(start);
      start += (size + grain - 1) / grain * grain;
    }
    starts_.push_back(start);
  }

  std::int64_t count() const { return (starts_.back() + length - 1) / length; }

  // Calls visit(tensor, first element, number of elements) for what lies in a chunk. Tensors
  // without elements are never visited.
  template <class Visit>
  void visit(std::int64_t chunk, Visit&& visit) const {
    const std::int64_t begin = chunk * length;
    const std::int64_t end = std::min(begin + length, starts_.back());
    const auto after = std::upper_bound(starts_.begin(), starts_.end(), begin);
    for (std::size_t tensor = after - starts_.begin() - 1; tensor < sizes_.size(); ++tensor) {
      if (starts_[tensor] >= end) break;
      const std::int64_t first = std::max(begin - starts_[tensor], std::int64_t{0});
      const std::int64_t last = std::min(end - starts_[tensor], sizes_[tensor]);
      if (first < last) visit(tensor, first, last - first);
    }
  }

 private:
  std::vector<std::int64_t> sizes_;
  std::vector<std::int64_t> starts_;
};

}  // namespace mxadamax
