// SPDX-License-Identifier: Apache-2.0
// How MXNet's operators read the scalars that its front end writes as text (Python's repr).
//
// Its reader is fast but does not round correctly: about one double in eight comes out one unit in
// the last place off.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace mxadamax {

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

// What an operator reads of a number, in single precision, without Python: its shortest text is
// written first, as repr does.
inline float as_operator_reads(double x) {
  if (!std::isfinite(x) || x == 0) return static_cast<float>(x);
  char text[64];
  int digits = 15;
  for (;; ++digits) {
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg): C++17 as GCC 10 has it writes no doubles.
    std::snprintf(text, sizeof text, "%.*e", digits - 1, x);
    if (digits == 17 || std::strtod(text, nullptr) == x) break;
  }
  char* const exponent = std::strchr(text, 'e') + 1;
  const auto power = static_cast<int>(std::strtol(exponent, nullptr, 10));
  if (power >= -4 && power < 16) {
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg)
    std::snprintf(text, sizeof text, "%.*f", std::max(digits - 1 - power, 0), x);
  }
  // Of some locales.
  std::replace(text, text + std::strlen(text), ',', '.');
  return read_as_mxnet_does<float>(text);
}

}  // namespace mxadamax
