// SPDX-License-Identifier: Apache-2.0
// What the tests of the driver share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/update.h"

// Ends the process unless `condition` holds; what follows is streamed into the message.
#define CHECK(condition, ...)                                                \
  do {                                                                       \
    if (!(condition)) {                                                      \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " << #condition << ": " \
                << (std::ostringstream() << __VA_ARGS__).str() << std::endl; \
      std::exit(1);                                                          \
    }                                                                        \
  } while (false)

namespace mxadamax::tests {

// An array at any distance from the alignment of a vector, with bytes before and behind that must
// stay. The bytes beyond are the allocator's, which AddressSanitizer watches.
template <class T>
class Guarded {
 public:
  static constexpr std::size_t guard = 64;

  explicit Guarded(std::size_t size, std::size_t misaligned = 0)
      : size_(size), before_(guard + misaligned * sizeof(T)) {
    bytes_.assign(before_ + size * sizeof(T) + guard, mark);
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data() + before_); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + before_); }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  std::size_t size() const { return size_; }

  bool guards_stand() const {
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      const bool inside = i >= before_ && i < before_ + size_ * sizeof(T);
      if (!inside && bytes_[i] != mark) return false;
    }
    return true;
  }

 private:
  static constexpr unsigned char mark = 0xa5;
  std::size_t size_;
  std::size_t before_;
  std::vector<unsigned char> bytes_;
};

// The same bits, or NaN in both: which NaN is the processor's choice.
template <class T>
bool same(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

// Random numbers of many magnitudes and both signs.
template <class T>
T random_number(std::mt19937& source) {
  std::uniform_real_distribution<double> exponent(-6, 2);
  std::normal_distribution<double> number;
  return static_cast<T>(number(source) * std::pow(10.0, exponent(source)));
}

// A row of scalars for a rule, all of them such that each shows in the result.
std::vector<double> row_of(const cpu::RuleKernels& rule);

// Finds the scales of a tensor that is computed in place, from at most so many elements at a time;
// of a master, from its copy too, in the type of the master.
void find_scales_in_place(const cpu::RuleKernels& rule, const cpu::Tensor& tensor,
                          std::int64_t most, double* scales, const void* copy = nullptr);

void test_rules();
void test_kernels();
void test_codecs();
void test_sums();
void test_update();

}  // namespace mxadamax::tests
