// SPDX-License-Identifier: Apache-2.0
// 16-bit and 8-bit storage, rounding at random, and what is found out about gradients.
#include <algorithm>
#include <limits>

#include "check.h"
#include "common/low_precision.h"

namespace mxadamax::tests {
namespace {

using cpu::Codec;
using cpu::Int8State;

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

// Lengths that a codec may be given: those around whole vectors and whole blocks.
std::vector<std::size_t> lengths() {
  std::vector<std::size_t> found;
  for (std::size_t n = 0; n <= 200; ++n) found.push_back(n);
  for (std::size_t n = 256; n <= 512; n += 64) {
    found.insert(found.end(), {n - 1, n});
    if (n < 512) found.push_back(n + 1);
  }
  return found;
}

RngLine random_line(std::mt19937& source) {
  const auto offset = static_cast<std::uint32_t>(source() & 0xffff);
  const RngLine line{offset, static_cast<std::uint32_t>(source() & 0xffff)};
  // From another element of a block on, an offset has more bits.
  return source() % 2 == 0 ? line : advanced(line, source() % 512);
}

// Lines of one random number for all elements: the ends, the middle and some between.
std::vector<RngLine> constant_lines() {
  std::vector<RngLine> lines;
  for (std::uint32_t random = 0; random < 0x10000; random += 0x1111) lines.push_back({random, 0});
  for (const std::uint32_t random : {1u, 7u, 8u, 0x7fffu, 0x8000u, 0xfff7u, 0xfffeu}) {
    lines.push_back({random, 0});
  }
  return lines;
}

// Of arrays of any length, from the same line on in each part.
std::vector<std::uint16_t> encoded_at_random(Codec::StochasticEncode encode,
                                             const std::vector<float>& numbers, RngLine line) {
  std::vector<std::uint16_t> all;
  for (std::size_t first = 0; first < numbers.size(); first += 512) {
    const std::size_t count = std::min<std::size_t>(512, numbers.size() - first);
    Guarded<std::uint16_t> found(count, 1);
    encode(numbers.data() + first, line, found.data(), static_cast<std::int64_t>(count));
    CHECK(found.guards_stand(), count);
    all.insert(all.end(), found.data(), found.data() + count);
  }
  return all;
}

// What low_precision.h makes of one number.
std::uint16_t model_of_16_bits(bool bfloat, bool denominator, float x, std::int32_t random) {
  return static_cast<std::uint16_t>(
      bfloat ? (denominator ? encode_bfloat16_stochastic<true>(x, random)
                            : encode_bfloat16_stochastic<false>(x, random))
             : (denominator ? encode_float16_stochastic<true>(x, random)
                            : encode_float16_stochastic<false>(x, random)));
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
}

// Numbers of all exponents, with their signs, and hostile ones.
std::vector<float> numbers_of_all_kinds() {
  std::vector<float> some;
  for (std::uint64_t i = 0; i < 1u << 17; ++i) {
    some.push_back(bit_cast_to_float(static_cast<std::uint32_t>(i * 32749)));
  }
  for (const std::uint32_t bits :
       {0x7fffffffu, 0xffffffffu, 0x7fc00001u, 0x7f800000u, 0xff800000u, 0x00000001u,
        0x80000000u, 0x7f7fffffu, 0xff7fffffu, 0x0000ffffu, 0x00010000u, 0x00010001u,
        0x007fffffu, 0x00800000u, 0x387fffffu, 0x38800000u, 0x33800000u, 0x337fffffu,
        0x477fe000u, 0x477fefffu, 0x477fffffu, 0x47800000u, 0x7f7f0000u, 0x7f7f0001u}) {
    some.push_back(bit_cast_to_float(bits));
  }
  return some;
}

// At random: what fits stays; what does not goes to a neighbour; infinity and NaN stay.
void test_stochastic_16_bits(const Codec& codec, bool bfloat) {
  std::vector<std::uint16_t> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  std::vector<float> values(all.size());
  codec.decode(all.data(), values.data(), 65536);
  const std::uint16_t infinite = bfloat ? 0x7f80 : 0x7c00;
  const std::vector<float> some = numbers_of_all_kinds();
  // The magnitude next towards zero, as a code.
  std::vector<double> magnitudes;
  for (int i = 0; i < infinite; ++i) {
    magnitudes.push_back(value_of(static_cast<std::uint16_t>(i), bfloat));
  }
  std::vector<int> floor_of;
  for (const float x : some) {
    const auto above = std::upper_bound(magnitudes.begin(), magnitudes.end(), std::fabs(x));
    floor_of.push_back(static_cast<int>(above - magnitudes.begin()) - 1);
  }
  for (const bool denominator : {false, true}) {
    const Codec::StochasticEncode encode = codec.encode_stochastic[denominator ? 1 : 0];
    for (const RngLine line : constant_lines()) {
      const auto kept = encoded_at_random(encode, values, line);
      for (std::size_t i = 0; i < all.size(); ++i) {
        // No denominator is negative; but -0 may come up, and NaN.
        const bool negative = denominator && (all[i] & 0x8000) != 0 && (all[i] & 0x7fff) != 0;
        const bool quiet = values[i] == values[i] || (bit_cast_to_integer(values[i]) & 0x400000);
        if ((negative && values[i] == values[i]) || !quiet) continue;
        const bool nan = values[i] != values[i];
        CHECK(nan ? std::isnan(value_of(kept[i], bfloat)) : kept[i] == all[i], i);
      }
      const auto found = encoded_at_random(encode, some, line);
      for (std::size_t i = 0; i < some.size(); ++i) {
        const double x = some[i], y = value_of(found[i], bfloat);
        const std::int32_t random = random_at(line, 0);
        CHECK(found[i] == model_of_16_bits(bfloat, denominator, some[i], random),
              x << " became " << y);
        if (x != x) {
          const bool quiet = (bit_cast_to_integer(some[i]) & 0x400000) != 0;
          CHECK(!quiet || y != y, i);
          continue;
        }
        if (denominator && x < 0) continue;
        CHECK(std::signbit(x) == std::signbit(y), x << " became " << y);
        if (std::isinf(x)) {
          CHECK(x == y, i);
          continue;
        }
        if (denominator) CHECK((x == 0) == (y == 0), x << " became " << y);
        const int floor = floor_of[i], code = found[i] & 0x7fff;
        // The noise of the largest floats is a sum beyond them.
        const bool overflows = !bfloat && std::fabs(x) >= 0x1.ffcp127;
        if (!bfloat && !overflows) CHECK(std::isfinite(y), x << " became " << y);
        CHECK(code == floor || code == floor + 1 || overflows, x << " became " << y);
        const bool raised = denominator && floor == 0 && x > 0;
        if (random == 0 && !raised) CHECK(code == floor, x << " became " << y);
      }
    }
    // Each element by its own random number, at any length.
    std::mt19937 source(8);
    for (const std::size_t n : lengths()) {
      for (std::size_t misaligned = 0; misaligned < 2; ++misaligned) {
        std::vector<float> numbers(n);
        for (float& x : numbers) {
          x = source() % 4 == 0 ? some[source() % some.size()] : random_number<float>(source);
          if (denominator && source() % 8 != 0) x = std::fabs(x);
        }
        const RngLine line = random_line(source);
        Guarded<std::uint16_t> found(n, misaligned);
        encode(numbers.data(), line, found.data(), static_cast<std::int64_t>(n));
        CHECK(found.guards_stand(), n);
        for (std::size_t i = 0; i < n; ++i) {
          const std::int32_t random = random_at(line, static_cast<std::uint32_t>(i));
          CHECK(found[i] == model_of_16_bits(bfloat, denominator, numbers[i], random),
                numbers[i] << ", " << i << " of " << n);
        }
        Guarded<float> again(n, misaligned);
        codec.decode(found.data(), again.data(), static_cast<std::int64_t>(n));
        CHECK(again.guards_stand(), n);
        for (std::size_t i = 0; i < n; ++i) {
          CHECK(same(again[i], static_cast<float>(value_of(found[i], bfloat))), i << " of " << n);
        }
      }
    }
    // The mean over all random numbers is the number itself.
    for (const float x : {1.0f, 1.0009765f, 3.14159265f, 0.0123456f, 60000.7f}) {
      double sum = 0;
      const std::vector<float> numbers(512, x);
      for (std::uint32_t first = 0; first < 0x10000; first += 512) {
        std::vector<std::uint16_t> found(512);
        encode(numbers.data(), {first, 1}, found.data(), 512);
        for (const std::uint16_t code : found) sum += value_of(code, bfloat);
      }
      CHECK(std::fabs(sum / 65536 - x) <= 1e-7 * x, x << " became " << sum / 65536);
    }
  }
}

struct Int8Codes {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
};

float range_of(const float* numbers, std::size_t count) {
  float largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(numbers[i]);
    // NaN passes through.
    if (!(magnitude <= largest)) largest = largest != largest ? largest : magnitude;
  }
  return largest;
}

std::int32_t model_code(Int8State state, float x, float scale, std::int32_t random) {
  switch (state) {
    case Int8State::ratio:
      return ratio_level(x, ratio_units(scale), random);
    case Int8State::signed_alone:
      return signed_level(x, signed_units(scale), random);
    default:
      return denominator_code(x, scale, random);
  }
}

float model_value(Int8State state, std::uint8_t code, float scale) {
  switch (state) {
    case Int8State::ratio:
      return ratio_at(static_cast<std::int32_t>(static_cast<std::int8_t>(code)),
                      ratio_level_size(scale));
    case Int8State::signed_alone:
      return signed_at(static_cast<std::int32_t>(static_cast<std::int8_t>(code)),
                       signed_unit_size(scale));
    default:
      return denominator_at(static_cast<std::int32_t>(code), scale);
  }
}

float model_scale(Int8State state, float range) {
  if (!(range < INFINITY)) return NAN;
  if (state == Int8State::denominator) return denominator_base(range);
  return range > 0 ? bounded_below(range) : 0;
}

// What low_precision.h makes of numbers, one after another.
Int8Codes model_of_8_bits(Int8State state, const std::vector<float>& from, RngLine line) {
  Int8Codes found;
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (i % 64 == 0) {
      const std::size_t count = std::min<std::size_t>(64, from.size() - i);
      found.scales.push_back(model_scale(state, range_of(from.data() + i, count)));
    }
    const float scale = found.scales.back();
    const std::int32_t random = random_at(line, static_cast<std::uint32_t>(i));
    found.codes.push_back(
        scale != scale ? 0 : static_cast<std::uint8_t>(model_code(state, from[i], scale, random)));
  }
  return found;
}

// Encodes and decodes again, each state by itself between those of others: scales lie `states`
// apart, and those of others stay. Decoded numbers come back in `numbers`.
Int8Codes through_8_bits(const cpu::Int8Codec& codec, std::vector<float>& numbers, RngLine line,
                         std::size_t states, std::size_t own) {
  const std::size_t n = numbers.size(), blocks = (n + 63) / 64;
  const auto count = static_cast<std::int64_t>(n);
  Guarded<float> from(n, own), again(n, own + 1), scales(states * blocks, own);
  Guarded<std::uint8_t> codes(n, 2 * own + 1);
  std::copy(numbers.begin(), numbers.end(), from.data());
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = -1.0f - static_cast<float>(i);
  // Without blocks there is no scale to point to.
  float* const own_scales = scales.data() + (blocks > 0 ? own : 0);
  codec.encode(from.data(), line, codes.data(), own_scales, static_cast<int>(states), count);
  CHECK(codes.guards_stand() && scales.guards_stand(), n);
  Int8Codes found;
  for (std::size_t i = 0; i < scales.size(); ++i) {
    if (i % states == own) {
      found.scales.push_back(scales[i]);
    } else {
      CHECK(scales[i] == -1.0f - static_cast<float>(i), n << ": the scale of another state");
    }
  }
  for (std::size_t i = 0; i < n; ++i) CHECK(same(from[i], numbers[i]), n << ": wrote its input");
  found.codes.assign(codes.data(), codes.data() + n);
  codec.decode(codes.data(), own_scales, static_cast<int>(states), again.data(), count);
  CHECK(again.guards_stand() && codes.guards_stand() && scales.guards_stand(), n);
  CHECK(std::equal(found.codes.begin(), found.codes.end(), codes.data()), n);
  numbers.assign(again.data(), again.data() + n);
  return found;
}

constexpr Int8State all_int8_states[] = {Int8State::ratio, Int8State::signed_alone,
                                         Int8State::denominator};

bool is_power_of_two(float x) {
  int exponent = 0;
  return std::frexp(x, &exponent) == 0.5f;
}

// Whether a number has become one of its two neighbours among what codes stand for.
void check_neighbours(Int8State state, float x, float y, float scale) {
  const double slack = 1e-6 * scale;
  if (scale == 0) {
    CHECK(x == 0 && y == 0, x << " became " << y);
    return;
  }
  if (state == Int8State::ratio) {
    CHECK(std::fabs(y - x) <= scale / 127 + slack, x << " became " << y);
    CHECK(x != 0 || y == 0, x << " became " << y);
    return;
  }
  if (state == Int8State::signed_alone) {
    const double unit = static_cast<double>(scale) / (127 * 127);
    const double level = std::floor(std::sqrt(std::fabs(x) / unit));
    const double low = level * level * unit, high = (level + 1) * (level + 1) * unit;
    CHECK(std::fabs(y) >= low - (2 * level + 1) * unit * 1e-3 - slack, x << " became " << y);
    CHECK(std::fabs(y) <= high + slack, x << " became " << y);
    CHECK(y == 0 || std::signbit(x) == std::signbit(y), x << " became " << y);
    CHECK(x != 0 || y == 0, x << " became " << y);
    return;
  }
  CHECK((x == 0) == (y == 0), x << " became " << y);
  int code = 0;
  while (code < 255 && model_value(state, static_cast<std::uint8_t>(code + 1), scale) <= x) ++code;
  const float low = model_value(state, static_cast<std::uint8_t>(code), scale);
  const float high = model_value(state, static_cast<std::uint8_t>(std::min(code + 1, 255)), scale);
  CHECK(y == low || y == high, x << " became " << y);
}

void test_8_bits(const cpu::SharedKernels& shared) {
  std::mt19937 source(3);
  for (const Int8State state : all_int8_states) {
    const cpu::Int8Codec& codec = shared.int8_codecs[static_cast<int>(state)];
    for (const std::size_t n : lengths()) {
      for (std::size_t states = 1; states <= 3; ++states) {
        std::vector<float> numbers(n);
        // In some blocks all are zeros.
        bool zeros = false;
        for (std::size_t i = 0; i < n; ++i) {
          if (i % 64 == 0) zeros = source() % 8 == 0;
          numbers[i] = zeros || source() % 16 == 0 ? 0 : random_number<float>(source);
          if (state == Int8State::denominator) numbers[i] = std::fabs(numbers[i]);
        }
        const std::vector<float> before = numbers;
        const RngLine line = random_line(source);
        const Int8Codes expected = model_of_8_bits(state, before, line);
        const Int8Codes found = through_8_bits(codec, numbers, line, states, source() % states);
        CHECK(found.scales == expected.scales, n);
        for (std::size_t i = 0; i < n; ++i) {
          const float scale = found.scales[i / 64];
          CHECK(found.codes[i] == expected.codes[i], before[i] << ", " << i << " of " << n);
          CHECK(same(numbers[i], model_value(state, found.codes[i], scale)), i << " of " << n);
          check_neighbours(state, before[i], numbers[i], scale);
          if (state == Int8State::denominator) CHECK(is_power_of_two(scale), scale);
        }
      }
    }
  }
}

// All that codes stand for stays, whatever the random numbers are.
void test_what_fits_8_bits(const cpu::SharedKernels& shared) {
  for (const Int8State state : all_int8_states) {
    const cpu::Int8Codec& codec = shared.int8_codecs[static_cast<int>(state)];
    const bool has_sign = state != Int8State::denominator;
    for (const float unit : {1.0f, 0x1p-40f, 0x1p60f}) {
      const float scale = state == Int8State::ratio          ? 127 * unit
                          : state == Int8State::signed_alone ? 127 * 127 * unit
                                                             : unit;
      // Each block has the largest. Code 255 is what numbers are rounded up to: its own is of the
      // next base.
      std::vector<float> numbers;
      for (int code = 0; code < 256; ++code) {
        if (numbers.size() % 64 == 0) {
          numbers.push_back(model_value(state, has_sign ? 127 : 254, scale));
        }
        if (code == (has_sign ? 128 : 255)) continue;
        numbers.push_back(model_value(state, static_cast<std::uint8_t>(code), scale));
      }
      for (std::uint32_t random = 0; random < 0x10000; random += random < 64 ? 1 : 251) {
        for (const std::uint32_t own : {random, 0xffff - random}) {
          std::vector<float> again = numbers;
          const Int8Codes found = through_8_bits(codec, again, {own, 0}, 1, 0);
          for (const float x : found.scales) CHECK(x == scale, x << " for " << scale);
          CHECK(again == numbers, "random numbers " << own);
        }
      }
    }
  }
}

// The mean over all random numbers is the number itself.
void test_mean_of_8_bits(const cpu::SharedKernels& shared) {
  for (const Int8State state : all_int8_states) {
    const cpu::Int8Codec& codec = shared.int8_codecs[static_cast<int>(state)];
    std::vector<float> numbers(512);
    // A ratio has 127 levels; the distance of denominators depends on them.
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      numbers[i] = i % 64 == 0 ? 1.0f : static_cast<float>(i) / 520;
    }
    std::vector<double> sum(numbers.size());
    for (std::uint32_t first = 0; first < 0x10000; ++first) {
      // Some of them, for time.
      if (first % 16 != 0) continue;
      std::vector<std::uint8_t> codes(512);
      std::vector<float> scales(8), again(512);
      codec.encode(numbers.data(), {first, 0}, codes.data(), scales.data(), 1, 512);
      codec.decode(codes.data(), scales.data(), 1, again.data(), 512);
      for (std::size_t i = 0; i < numbers.size(); ++i) sum[i] += again[i];
    }
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const double mean = sum[i] / 4096;
      CHECK(std::fabs(mean - numbers[i]) <= 1e-4, numbers[i] << " became " << mean);
    }
  }
}

// Hostile blocks: nothing finite may come out where something was not, and blocks beside them do
// not notice.
void test_hostile_8_bits(const cpu::SharedKernels& shared) {
  for (const Int8State state : all_int8_states) {
    const cpu::Int8Codec& codec = shared.int8_codecs[static_cast<int>(state)];
    for (const float special :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN(), bit_cast_to_float(0x7fffffff),
          bit_cast_to_float(0xffffffff), bit_cast_to_float(0x7f800001),
          std::numeric_limits<float>::max(), 1e-45f, 1e-38f, 0x1p-101f, 0x1p-100f, 0.0f}) {
      for (const float others : {0.0f, 1e-45f, 0.5f}) {
        for (std::size_t place = 0; place < 3 * 64 - 7; place += 13) {
          for (const RngLine line : {RngLine{0, 0}, RngLine{0xffff, 0}, RngLine{77, 12345}}) {
            std::vector<float> numbers(3 * 64 - 7, others);
            numbers[place] = special;
            if (std::signbit(special) && std::isfinite(special)) continue;
            const std::vector<float> before = numbers;
            const Int8Codes expected = model_of_8_bits(state, before, line);
            const Int8Codes found = through_8_bits(codec, numbers, line, 2, 1);
            CHECK(found.codes == expected.codes, special << " among " << others);
            for (std::size_t i = 0; i < numbers.size(); ++i) {
              const float scale = found.scales[i / 64];
              CHECK(same(scale, expected.scales[i / 64]), special << " among " << others);
              if (i / 64 == place / 64 && !std::isfinite(special)) {
                CHECK(std::isnan(scale) && std::isnan(numbers[i]), special);
                continue;
              }
              // Rounded up, the largest float is beyond.
              const bool overflows = before[i] == std::numeric_limits<float>::max();
              CHECK(overflows ? numbers[i] > 3e38f : std::isfinite(numbers[i]),
                    before[i] << " became " << numbers[i]);
              if (state == Int8State::denominator) {
                CHECK(is_power_of_two(scale), scale);
                CHECK((before[i] == 0) == (numbers[i] == 0), before[i]);
              }
            }
          }
        }
      }
    }
  }
}

// Ranges near the numbers where a base doubles: the largest has one of 256 codes, however rounded.
void test_bases(const cpu::SharedKernels& shared) {
  const cpu::Int8Codec& codec = shared.int8_codecs[static_cast<int>(Int8State::denominator)];
  for (const int exponent : {-60, -1, 0, 90}) {
    for (std::int32_t step = 0; step <= 1 << 23; step += 1 << 15) {
      for (const std::int32_t off : {-600, -257, -256, -255, -2, -1, 0, 1, 2, 255, 256}) {
        const std::int32_t bits = bits_of(std::ldexp(1.0f, exponent)) + step + off;
        const float largest = float_of(bits);
        for (const std::uint32_t random : {0u, 0xffffu}) {
          const float from[] = {largest, largest / 2, 0};
          std::uint8_t codes[3];
          float scale = 0, again[3];
          codec.encode(from, {random, 0}, codes, &scale, 1, 3);
          codec.decode(codes, &scale, 1, again, 3);
          CHECK(is_power_of_two(scale), scale);
          CHECK(again[0] >= largest * 0.93f && again[0] <= largest * 1.07f,
                largest << " became " << again[0]);
          CHECK(again[0] >= again[1] && again[1] > 0 && again[2] == 0, largest);
        }
      }
    }
  }
}

// Random numbers by their definition: of a block, of a state, and from an element of a block on.
void test_random_numbers() {
  const std::uint64_t seed = rng_seed(7, 3);
  CHECK(seed != rng_seed(7, 4) && seed != rng_seed(8, 3) && rng_seed(3, 7) != seed, seed);
  std::vector<std::uint32_t> lines;
  double ones = 0;
  for (std::int64_t block = 0; block < 100; ++block) {
    for (int state = 0; state < max_states; ++state) {
      const RngLine line = rng_line(seed, state, block * rng_block);
      CHECK(line.offset < 0x10000 && line.slope < 0x10000, line.offset << ", " << line.slope);
      lines.push_back(line.offset << 16 | line.slope);
      ones += __builtin_popcount(lines.back());
      for (const std::int64_t place : {std::int64_t{1}, std::int64_t{300}, rng_block - 1}) {
        const RngLine later = rng_line(seed, state, block * rng_block + place);
        CHECK(later.offset == line.offset && later.slope == line.slope, place);
        const RngLine rest = advanced(line, static_cast<std::uint32_t>(place));
        for (std::uint32_t i = 0; i < 5; ++i) {
          const std::int32_t random = random_at(rest, i);
          const auto element = static_cast<std::uint32_t>(place) + i;
          CHECK(random == random_at(line, element), place);
          CHECK(random == static_cast<std::int32_t>((line.offset + line.slope * element) % 65536),
                place);
        }
      }
    }
  }
  std::sort(lines.begin(), lines.end());
  CHECK(std::unique(lines.begin(), lines.end()) == lines.end(), "two states share random numbers");
  const double mean = ones / static_cast<double>(lines.size());
  CHECK(std::fabs(mean - 16) < 0.6, mean << " of 32 bits are set");
}

void test_small_loops(const cpu::SharedKernels& shared) {
  for (std::size_t size = 0; size < 70; ++size) {
    Guarded<float> numbers(size, 1), denominators(size, 2);
    for (std::size_t i = 0; i < size; ++i) {
      numbers[i] = static_cast<float>(i);
      denominators[i] = static_cast<float>(2 * i + 1);
    }
    const auto count = static_cast<std::int64_t>(size);
    shared.square(numbers.data(), count);
    for (std::size_t i = 0; i < size; ++i) CHECK(numbers[i] == static_cast<float>(i * i), i);
    shared.multiply_ratios(numbers.data(), denominators.data(), 0.25f, count);
    for (std::size_t i = 0; i < size; ++i) {
      const auto x = static_cast<float>(i);
      CHECK(numbers[i] == x * x * ((2 * x + 1) + 0.25f), i);
      CHECK(denominators[i] == 2 * x + 1, i);
    }
    CHECK(numbers.guards_stand() && denominators.guards_stand(), size);
  }
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
  test_random_numbers();
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    const cpu::SharedKernels& shared = *set.table.rules[0].shared;
    for (const bool bfloat : {false, true}) {
      test_16_bits(shared.codecs[bfloat ? 1 : 0], bfloat);
      test_stochastic_16_bits(shared.codecs[bfloat ? 1 : 0], bfloat);
    }
    test_8_bits(shared);
    test_what_fits_8_bits(shared);
    test_mean_of_8_bits(shared);
    test_hostile_8_bits(shared);
    test_bases(shared);
    test_reductions<float>(shared, plainest);
    test_reductions<double>(shared, plainest);
    test_small_loops(shared);
  }
}

}  // namespace mxadamax::tests
