// SPDX-License-Identifier: Apache-2.0
// Gradients that hold some of the rows of their weight, one after another.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "rules/rule.h"

namespace mxadamax {

// Which rows a gradient holds: their numbers, ascending, once each.
struct SparseRows {
  const std::int64_t* numbers;
  std::int64_t count;
  // How many elements a row has; 0 where the gradient holds all, like any other array.
  std::int64_t length;
  // Whether rows that are not held are left alone; else they are updated with a gradient of zero.
  bool lazy;
};

inline bool operator==(const SparseRows& a, const SparseRows& b) {
  return std::tie(a.numbers, a.count, a.length, a.lazy) ==
         std::tie(b.numbers, b.count, b.length, b.lazy);
}

// How many elements a gradient holds, of a weight with `size`.
inline std::int64_t held_elements(const SparseRows& rows, std::int64_t size) {
  return rows.length > 0 ? rows.count * rows.length : size;
}

// Whether the row at this place is none of a weight with `total` of them, or does not ascend.
MXADAMAX_RULE bool is_wrong_row(const std::int64_t* numbers, std::int64_t place,
                                std::int64_t total) {
  const std::int64_t row = numbers[place];
  return row < 0 || row >= total || (place > 0 && row <= numbers[place - 1]);
}

// Refuses the first such row.
inline void check_rows(const std::int64_t* numbers, std::int64_t count, std::int64_t total) {
  for (std::int64_t place = 0; place < count; ++place) {
    if (!is_wrong_row(numbers, place, total)) continue;
    const std::int64_t row = numbers[place];
    throw std::runtime_error("a row_sparse gradient names row " + std::to_string(row) +
                             (row < 0 || row >= total ? " of " + std::to_string(total)
                                                      : " not in ascending order, once each"));
  }
}

// Where among the rows that are held this one is; -1 where it is not.
MXADAMAX_RULE std::int64_t index_of_row(const SparseRows& rows, std::int64_t row) {
  std::int64_t first = 0;
  std::int64_t last = rows.count;
  while (first < last) {
    const std::int64_t middle = first + (last - first) / 2;
    if (rows.numbers[middle] < row) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first < rows.count && rows.numbers[first] == row ? first : -1;
}

// An element by its row, and its place in that.
struct Cell {
  std::int64_t row, column;
};

// The element so many after another. A division of 64 bits, which takes a GPU long, is for neither.
MXADAMAX_RULE Cell cell_after(Cell from, std::int32_t elements, std::int64_t length) {
  constexpr std::int64_t largest = 0x7fffffff;
  const std::int64_t column = from.column + elements;
  if (column < length) return {from.row, column};
  if (length > largest) return {from.row + 1, column - length};
  const auto short_column = static_cast<std::uint32_t>(column);
  const auto short_length = static_cast<std::uint32_t>(length);
  return {from.row + short_column / short_length, short_column % short_length};
}

}  // namespace mxadamax
