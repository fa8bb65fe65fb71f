// SPDX-License-Identifier: Apache-2.0
// The value that an MXNet operator computes with when Python gives it a number.
//
// MXNet's front end writes scalars as text (Python's repr) and its operators read them back with a
// reader of its own, which is fast but does not round correctly: about one double in eight comes
// out one unit in the last place off. To equal MXNet's operators to the last bit, our scalars take
// the same way.
#pragma once

#include <Python.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <new>

namespace mxadamax::engine {

// Reads what repr wrote, in the arithmetic of T: the integer part, then the fraction's digits
// divided by their power of ten, then the exponent as a product of powers of ten.
template <class T>
T read_as_mxnet_does(const char* text) {
  constexpr int most_fraction_digits = 19;
  const char* p = text;
  const bool negative = *p == '-';
  if (negative) ++p;

  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  std::uint64_t whole = 0;
  for (; is_digit(*p); ++p) whole = whole * 10 + static_cast<std::uint64_t>(*p - '0');
  T value = static_cast<T>(whole);

  if (*p == '.') {
    std::uint64_t digits = 0;
    std::uint64_t power = 1;
    int count = 0;
    for (++p; is_digit(*p); ++p, ++count) {
      if (count >= most_fraction_digits) continue;
      digits = digits * 10 + static_cast<std::uint64_t>(*p - '0');
      power *= 10;
    }
    value += static_cast<T>(static_cast<double>(digits) / static_cast<double>(power));
  }

  if (*p == 'e') {
    ++p;
    const bool fraction = *p == '-';
    ++p;  // repr always writes the exponent's sign
    int exponent = 0;
    for (; is_digit(*p); ++p) exponent = exponent * 10 + (*p - '0');
    T scale = 1;
    for (; exponent >= 8; exponent -= 8) scale *= static_cast<T>(1e8f);
    for (; exponent > 0; --exponent) scale *= static_cast<T>(10.0f);
    value = fraction ? value / scale : value * scale;
  }
  return negative ? -value : value;
}

// Needs the GIL.
template <class T>
T as_mxnet_reads(double value) {
  if (!std::isfinite(value)) return static_cast<T>(value);
  const std::unique_ptr<char, void (*)(void*)> text(
      PyOS_double_to_string(value, 'r', 0, Py_DTSF_ADD_DOT_0, nullptr), PyMem_Free);
  if (text == nullptr) throw std::bad_alloc();
  return read_as_mxnet_does<T>(text.get());
}

}  // namespace mxadamax::engine
