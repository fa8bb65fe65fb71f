// SPDX-License-Identifier: Apache-2.0
// 16-bit and 8-bit storage, random bits, and what is found out about gradients.
#include <algorithm>
#include <limits>

#include "check.h"

namespace mxadamax::tests {
namespace {

using cpu::Codec;

float bit_cast_to_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// What 16 bits stand for, by their definition.
double value_of(std::uint16_t bits, bool bfloat) {
  const int mantissa_bits = bfloat ? 7 : 10, bias = bfloat ? 127 : 15;
  const int most = bfloat ? 255 : 31;
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x8000) ? -1 : 1;
  if (exponent == most) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

std::vector<std::uint16_t> encoded(const Codec& codec, const std::vector<float>& numbers) {
  Guarded<std::uint16_t> bits(numbers.size(), 1);
  codec.encode(numbers.data(), bits.data(), static_cast<std::int64_t>(numbers.size()));
  CHECK(bits.guards_stand(), numbers.size());
  return {bits.data(), bits.data() + bits.size()};
}

std::vector<std::uint16_t> encoded_at_random(Codec::StochasticEncode encode,
                                             const std::vector<float>& numbers,
                                             std::uint32_t random, int shift) {
  const std::vector<std::uint32_t> bits(numbers.size(), random);
  Guarded<std::uint16_t> found(numbers.size(), 1);
  encode(numbers.data(), bits.data(), shift, found.data(),
         static_cast<std::int64_t>(numbers.size()));
  CHECK(found.guards_stand(), numbers.size());
  return {found.data(), found.data() + found.size()};
}

void test_16_bits(const Codec& codec, bool bfloat) {
  std::vector<std::uint16_t> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  std::vector<float> values(all.size());
  codec.decode(all.data(), values.data(), 65536);
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHECK(same(values[i], static_cast<float>(value_of(all[i], bfloat))), i << ": " << values[i]);
  }
  const auto again = encoded(codec, values);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool nan = values[i] != values[i];
    CHECK(nan ? std::isnan(value_of(again[i], bfloat)) : again[i] == all[i], i << ": " << again[i]);
  }

  // Between two neighbours: below the middle, in the middle (which goes to the even one), above.
  const std::uint32_t infinite = bfloat ? 0x7f80 : 0x7c00;
  for (const float sign : {1.0f, -1.0f}) {
    std::vector<float> numbers;
    for (std::uint32_t i = 0; i < infinite; ++i) {
      const double low = value_of(static_cast<std::uint16_t>(i), bfloat);
      // Beyond the largest, infinity counts as where the next number would be.
      const double high = i + 1 < infinite
                              ? value_of(static_cast<std::uint16_t>(i + 1), bfloat)
                              : 2 * low - value_of(static_cast<std::uint16_t>(i - 1), bfloat);
      const auto middle = static_cast<float>((low + high) / 2);
      for (const float x :
           {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, INFINITY)}) {
        numbers.push_back(sign * x);
      }
    }
    const auto found = encoded(codec, numbers);
    const std::uint32_t signs = sign < 0 ? 0x8000 : 0;
    for (std::uint32_t i = 0; i < infinite; ++i) {
      CHECK(found[3 * i] == (signs | i), i << " below the middle: " << found[3 * i]);
      CHECK(found[3 * i + 1] == (signs | (i + (i & 1))), i << " in the middle");
      CHECK(found[3 * i + 2] == (signs | (i + 1)), i << " above the middle");
    }
  }

  // At random: what fits stays; what does not goes to a neighbour; infinity and NaN stay.
  std::vector<float> some;
  for (std::uint64_t i = 0; i < 1u << 17; ++i) {
    some.push_back(bit_cast_to_float(static_cast<std::uint32_t>(i * 32749)));
  }
  for (const std::uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7f800001u, 0x7f800000u, 0xff800000u,
                                   0x00000001u, 0x80000000u, 0x7f7fffffu, 0xff7fffffu}) {
    some.push_back(bit_cast_to_float(bits));
  }
  for (const std::uint32_t random : {0u, 0xffffffffu, 0x7fff8000u}) {
    for (const int shift : {0, 16}) {
      const auto kept = encoded_at_random(codec.encode_stochastic, values, random, shift);
      for (std::size_t i = 0; i < all.size(); ++i) {
        const bool nan = values[i] != values[i];
        CHECK(nan ? std::isnan(value_of(kept[i], bfloat)) : kept[i] == all[i], i);
      }
      const auto found = encoded_at_random(codec.encode_stochastic, some, random, shift);
      for (std::size_t i = 0; i < some.size(); ++i) {
        const double x = some[i], y = value_of(found[i], bfloat);
        if (x != x) {
          CHECK(y != y, i);
          continue;
        }
        if (std::isinf(x)) {
          CHECK(x == y, i);
          continue;
        }
        CHECK(std::isfinite(y), x << " became " << y);
        const auto magnitude = static_cast<std::uint16_t>(found[i] & 0x7fff);
        const double below = magnitude > 0 ? std::fabs(value_of(magnitude - 1, bfloat)) : 0;
        const double above = std::fabs(value_of(magnitude + 1, bfloat));
        const bool largest = magnitude + 1u == infinite;
        CHECK(std::fabs(x) >= below && (largest || std::fabs(x) <= above), x << " became " << y);
        CHECK(random != 0 || std::fabs(y) <= std::fabs(x), x << " became " << y);
      }
      const auto denominators =
          encoded_at_random(codec.encode_denominator_stochastic, some, random, shift);
      for (std::size_t i = 0; i < some.size(); ++i) {
        if (some[i] > 0) CHECK(value_of(denominators[i], bfloat) > 0, some[i]);
      }
    }
  }
}

void test_int8(const cpu::SharedKernels& shared, const cpu::SharedKernels& plainest) {
  std::mt19937 source(3);
  for (std::int64_t size = 0; size <= 3 * rng_block + 1; size += size < 200 ? 1 : 61) {
    const auto n = static_cast<std::size_t>(size);
    const std::size_t blocks = (n + block_size - 1) / block_size;
    std::vector<float> plain(n), denominator(n);
    for (std::size_t i = 0; i < n; ++i) {
      plain[i] = random_number<float>(source);
      denominator[i] = std::abs(random_number<float>(source));
    }
    const std::vector<std::uint32_t> random(n / rng_block + 1, source());
    const auto encode = [&](const cpu::SharedKernels& kernels, auto& ratios, auto& denominators,
                            auto& scales) {
      const float* const from[] = {plain.data(), denominator.data()};
      void* const to[] = {ratios.data(), denominators.data()};
      kernels.int8_codecs[1].encode(from, random.data(), to, scales.data(), size);
      CHECK(ratios.guards_stand() && denominators.guards_stand() && scales.guards_stand(), size);
    };
    Guarded<std::int8_t> ratios(n, 1), expected_ratios(n);
    Guarded<std::uint8_t> denominators(n, 3), expected_denominators(n);
    Guarded<float> scales(2 * blocks, 1), expected_scales(2 * blocks);
    encode(shared, ratios, denominators, scales);
    encode(plainest, expected_ratios, expected_denominators, expected_scales);
    Guarded<float> plain_again(n, 1), denominator_again(n, 1);
    const void* const stored[] = {ratios.data(), denominators.data()};
    float* const again[] = {plain_again.data(), denominator_again.data()};
    shared.int8_codecs[1].decode(stored, scales.data(), again, size);
    CHECK(plain_again.guards_stand() && denominator_again.guards_stand(), size);
    for (std::size_t i = 0; i < n; ++i) {
      CHECK(ratios[i] == expected_ratios[i] && denominators[i] == expected_denominators[i], size);
      const float largest_ratio = scales[i / 64 * 2], largest = scales[i / 64 * 2 + 1];
      // No further than the next level, of which those of denominators lie like squares.
      const float levels = std::sqrt(denominator[i] / largest) * 255;
      CHECK(std::fabs(denominator_again[i] - denominator[i]) <= largest * (2 * levels + 2) / 65025,
            denominator[i] << " became " << denominator_again[i]);
      CHECK((denominator[i] == 0) == (denominator_again[i] == 0), denominator[i]);
      const float ratio = plain[i] / denominator[i],
                  ratio_again = plain_again[i] / denominator_again[i];
      CHECK(std::fabs(ratio_again - ratio) <= largest_ratio * 1.01f / 127,
            ratio << " became " << ratio_again);
    }
  }

  // Hostile blocks: nothing finite may come out where something was not.
  for (const float special :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN(), bit_cast_to_float(0x7fffffff),
        bit_cast_to_float(0xffffffff), std::numeric_limits<float>::max(), 1e-45f, 0.0f}) {
    for (const bool first : {true, false}) {
      std::vector<float> plain(64, 0.5f), denominator(64, 0.25f);
      (first ? plain : denominator)[17] = special;
      const std::uint32_t random = 0xffffffff;
      std::int8_t ratios[64];
      std::uint8_t denominators[64];
      float scales[2];
      float* const states[] = {plain.data(), denominator.data()};
      void* const stored[] = {ratios, denominators};
      shared.int8_codecs[1].encode(states, &random, stored, scales, 64);
      shared.int8_codecs[1].decode(stored, scales, states, 64);
      if (std::isfinite(special)) continue;
      for (int i = 0; i < 64; ++i) CHECK(!std::isfinite(plain[i] + denominator[i]), special);
    }
  }
}

void test_signed_int8(const cpu::SharedKernels& shared, const cpu::SharedKernels& plainest) {
  std::mt19937 source(4);
  for (std::int64_t size = 0; size <= 3 * rng_block + 1; size += size < 200 ? 1 : 61) {
    const auto n = static_cast<std::size_t>(size);
    const std::size_t blocks = (n + block_size - 1) / block_size;
    std::vector<float> state(n);
    for (float& x : state) x = random_number<float>(source);
    const std::vector<std::uint32_t> random(n / rng_block + 1, source());
    const float* const from[] = {state.data()};
    Guarded<std::int8_t> levels(n, 1), expected(n);
    Guarded<float> scales(blocks, 1), expected_scales(blocks), again(n, 1);
    void* const to[] = {levels.data()};
    void* const to_expected[] = {expected.data()};
    shared.int8_codecs[0].encode(from, random.data(), to, scales.data(), size);
    plainest.int8_codecs[0].encode(from, random.data(), to_expected, expected_scales.data(), size);
    CHECK(levels.guards_stand() && scales.guards_stand(), size);
    const void* const stored[] = {levels.data()};
    float* const decoded[] = {again.data()};
    shared.int8_codecs[0].decode(stored, scales.data(), decoded, size);
    CHECK(again.guards_stand(), size);
    for (std::size_t i = 0; i < n; ++i) {
      CHECK(levels[i] == expected[i] && scales[i / 64] == expected_scales[i / 64], size);
      // No further than the next level.
      const float root = std::sqrt(std::fabs(state[i]) / scales[i / 64]) * 127;
      CHECK(std::fabs(again[i] - state[i]) <= scales[i / 64] * (2 * root + 2) / 16129,
            state[i] << " became " << again[i]);
      CHECK(again[i] * state[i] >= 0 && (state[i] != 0 || again[i] == 0), state[i]);
    }
  }
  for (const float special : {INFINITY, -INFINITY, NAN, bit_cast_to_float(0xffffffff)}) {
    std::vector<float> state(64, 0.5f);
    state[17] = special;
    const std::uint32_t random = 0xffffffff;
    std::int8_t levels[64];
    float scale;
    float* const states[] = {state.data()};
    void* const stored[] = {levels};
    shared.int8_codecs[0].encode(states, &random, stored, &scale, 64);
    shared.int8_codecs[0].decode(stored, &scale, states, 64);
    for (int i = 0; i < 64; ++i) CHECK(std::isnan(state[i]), special);
  }
}

void test_random_bits(const cpu::SharedKernels& shared, const cpu::SharedKernels& plainest) {
  const RngKey key{0xfffffff0u, 0x12345678u};
  std::vector<std::uint32_t> all(300), expected(300);
  shared.random_bits(key, 0xffffff80u, all.data(), 300);
  plainest.random_bits(key, 0xffffff80u, expected.data(), 300);
  CHECK(all == expected, "random bits differ between instruction sets");
  for (std::uint32_t first = 0; first < 300; ++first) {
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{300 - first}}) {
      Guarded<std::uint32_t> part(count);
      shared.random_bits(key, 0xffffff80u + first, part.data(), static_cast<std::int64_t>(count));
      CHECK(part.guards_stand() && std::equal(part.data(), part.data() + count, &all[first]),
            first);
    }
  }
  double ones = 0;
  for (const std::uint32_t x : all) ones += __builtin_popcount(x);
  CHECK(std::fabs(ones / 300 - 16) < 1, ones / 300 << " of 32 bits are set");
}

template <class T>
void test_reductions(const cpu::SharedKernels& shared, const cpu::SharedKernels& plainest) {
  constexpr int compute = sizeof(T) == 8;
  std::mt19937 source(5);
  for (std::size_t size = 0; size < 70; ++size) {
    const auto count = static_cast<std::int64_t>(size);
    Guarded<T> numbers(size, 1), average(size, 1);
    long double sum = 0;
    for (std::size_t i = 0; i < size; ++i) {
      numbers[i] = random_number<T>(source);
      average[i] = 1;
      sum += static_cast<long double>(numbers[i]) * numbers[i];
    }
    const double found = shared.sum_of_squares[compute](numbers.data(), count);
    CHECK(std::fabs(found - sum) <= 1e-14L * sum, size << ": " << found << " for " << sum);
    CHECK(found == plainest.sum_of_squares[compute](numbers.data(), count), size);
    CHECK(shared.nonfinite_probe[compute](numbers.data(), count) == 0, size);
    shared.average[compute](numbers.data(), 0.25, average.data(), count);
    CHECK(average.guards_stand(), size);
    for (std::size_t i = 0; i < size; ++i) {
      CHECK(average[i] == T(0.75) + T(0.25) * numbers[i], size << ", " << i);
      for (const double special : {static_cast<double>(INFINITY), static_cast<double>(NAN)}) {
        const T kept = numbers[i];
        numbers[i] = static_cast<T>(special);
        CHECK(shared.nonfinite_probe[compute](numbers.data(), count) != 0, size << ", " << i);
        numbers[i] = kept;
      }
    }
  }
}

}  // namespace

void test_codecs() {
  const auto& plainest = *cpu::instruction_sets()[0].table.rules[0].shared;
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    const cpu::SharedKernels& shared = *set.table.rules[0].shared;
    test_16_bits(shared.codecs[0], false);
    test_16_bits(shared.codecs[1], true);
    test_int8(shared, plainest);
    test_signed_int8(shared, plainest);
    test_random_bits(shared, plainest);
    test_reductions<float>(shared, plainest);
    test_reductions<double>(shared, plainest);
    for (std::size_t size = 0; size < 70; ++size) {
      Guarded<float> numbers(size, 1);
      for (std::size_t i = 0; i < size; ++i) numbers[i] = static_cast<float>(i);
      shared.square(numbers.data(), static_cast<std::int64_t>(size));
      for (std::size_t i = 0; i < size; ++i) CHECK(numbers[i] == static_cast<float>(i * i), i);
      shared.square_root(numbers.data(), static_cast<std::int64_t>(size));
      for (std::size_t i = 0; i < size; ++i) CHECK(numbers[i] == static_cast<float>(i), i);
      CHECK(numbers.guards_stand(), size);
    }
  }
}

}  // namespace mxadamax::tests
