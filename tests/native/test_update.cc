// SPDX-License-Identifier: Apache-2.0
// Many tensors, chunks, threads, every way to store, and the choice of an instruction set.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "common/chunks.h"
#include "common/low_precision.h"
#include "cpu/read_scalars.h"
#include "cpu/update.h"
#include "rules/all.h"

namespace mxadamax::tests {
namespace {

// How parameters are kept.
struct Kind {
  DType weight, state;
  DType copy = DType::float32;
  bool low_precision_state = false, average = false;
};

const Kind kinds[] = {
    {DType::float32, DType::float32},
    {DType::float64, DType::float64},
    {DType::float16, DType::float16},
    {DType::bfloat16, DType::bfloat16},
    {DType::float32, DType::float32, DType::float16},
    {DType::float32, DType::float32, DType::bfloat16, false, true},
    {DType::float64, DType::float64, DType::float32, false, true},
    {DType::float32, DType::float16, DType::float32, true},
    {DType::float32, DType::bfloat16, DType::float16, true, true},
    {DType::float32, DType::int8, DType::float32, true},
    {DType::bfloat16, DType::int8, DType::float32, true, true},
};

// Parameters of these sizes; allocated exactly, which AddressSanitizer watches.
class Model {
 public:
  Model(const cpu::RuleKernels& rule, const Kind& kind, const std::vector<std::int64_t>& sizes)
      : row_(row_of(rule)) {
    std::mt19937 source(11);
    // As a float16 of a gradient is that of its weight with a copy.
    const DType grad = kind.copy != DType::float32 ? kind.copy : kind.weight;
    for (const std::int64_t size : sizes) {
      cpu::Tensor tensor{};
      tensor.compute = kind.weight == DType::float64 ? OpMath::float64 : OpMath::float32;
      tensor.grad_type = grad;
      tensor.weight_type = kind.weight;
      tensor.state_type = kind.state;
      tensor.size = size;
      tensor.scalars = row_.data();
      tensor.grad = memory(size, grad, source, true);
      tensor.weight = memory(size, kind.weight, source, true);
      for (int k = 0; k < rule.states; ++k) {
        tensor.states[k] = memory(size, kind.state, source, false);
      }
      if (kind.copy != DType::float32) {
        tensor.copy = memory(size, kind.copy, source, false);
        tensor.copy_type = kind.copy;
      }
      const DType computed = tensor.compute == OpMath::float64 ? DType::float64 : DType::float32;
      if (kind.average) tensor.average = memory(size, computed, source, true);
      tensor.low_precision_state = kind.low_precision_state;
      if (kind.state == DType::int8) {
        const std::int64_t blocks = (size + block_size - 1) / block_size;
        tensor.scales =
            static_cast<float*>(memory(blocks * rule.states, DType::float32, source, false));
      }
      tensors.push_back(tensor);
    }
  }

  std::vector<std::vector<unsigned char>> bytes() const {
    std::vector<std::vector<unsigned char>> all;
    for (const auto& [size, data] : memory_) all.emplace_back(data.get(), data.get() + size);
    return all;
  }

  std::vector<cpu::Tensor> tensors;

 private:
  void* memory(std::int64_t size, DType type, std::mt19937& source, bool filled) {
    const auto bytes = static_cast<std::size_t>(size * dtype_size(type));
    memory_.emplace_back(bytes, std::make_unique<unsigned char[]>(bytes));
    unsigned char* const data = memory_.back().second.get();
    for (std::int64_t i = 0; filled && i < size; ++i) {
      const double number = random_number<double>(source);
      const auto single = static_cast<float>(number);
      // The upper half of a float32 is a bfloat16; as a float16 the same bits are some other
      // number.
      if (type == DType::float64) std::memcpy(data + 8 * i, &number, 8);
      if (type == DType::float32) std::memcpy(data + 4 * i, &single, 4);
      if (type == DType::bfloat16) {
        std::memcpy(data + 2 * i, reinterpret_cast<const char*>(&single) + 2, 2);
      }
      if (type == DType::float16) {
        const auto bits = static_cast<std::uint16_t>((source() & 0x8fff) | 0x3000);
        std::memcpy(data + 2 * i, &bits, 2);
      }
    }
    return data;
  }

  std::vector<double> row_;
  std::vector<std::pair<std::size_t, std::unique_ptr<unsigned char[]>>> memory_;
};

bool fits(const cpu::RuleKernels& rule, const Kind& kind) {
  if (!kind.low_precision_state) return true;
  return rule.states > 0 &&
         (kind.state == DType::int8 ? rule.supports_int8_state : rule.supports_low_precision_state);
}

constexpr std::int64_t chunk = Chunks::length;
const std::vector<std::int64_t> many_sizes = {0,   1,  63,        64,        65,    0, 511, 512,
                                              513, 17, chunk - 1, chunk + 1, 40000, 3, 0,   129};

void test_chunks() {
  std::mt19937 source(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::int64_t> sizes(source() % 40);
    for (std::int64_t& size : sizes) {
      const int kind = source() % 4;
      size = kind == 0   ? 0
             : kind == 1 ? source() % 200
             : kind == 2 ? source() % 3 * 64
                         : source() % 70000;
    }
    const Chunks chunks(sizes);
    std::vector<std::int64_t> next(sizes.size());
    for (std::int64_t c = 0; c < chunks.count(); ++c) {
      std::int64_t elements = 0;
      chunks.visit(c, [&](std::size_t tensor, std::int64_t first, std::int64_t count) {
        CHECK(count > 0 && first == next[tensor], "tensor " << tensor << " at " << first);
        CHECK(first % Chunks::grain == 0, "tensor " << tensor << " at " << first);
        next[tensor] += count;
        elements += count;
      });
      CHECK(elements <= chunk, elements);
    }
    CHECK(next == sizes, "an element is visited not once");
  }
}

// The same bytes whatever the number of threads, also where rounding is at random.
void test_threads(const cpu::RuleKernels& rule, const Kind& kind) {
  Model one(rule, kind, many_sizes);
  const auto before = one.bytes();
  for (int step = 0; step < 2; ++step) cpu::update(rule, one.tensors, 1);
  const auto expected = one.bytes();
  CHECK(expected != before, rule.rule << ": an update changed nothing");
  for (const int threads : {3}) {
    Model several(rule, kind, many_sizes);
    for (int step = 0; step < 2; ++step) cpu::update(rule, several.tensors, threads);
    // A scaled norm has as many parts as there are threads.
    CHECK((several.bytes() == expected) != rule.scaled_norms,
          rule.rule << " with " << threads << " threads");
  }
  // In parts; those of 8-bit states are whole parameters.
  if (kind.state == DType::int8) return;
  Model whole(rule, kind, {5000}), parted(rule, kind, {5000});
  cpu::update(rule, whole.tensors, 1);
  std::vector<cpu::Tensor> parts;
  const cpu::Tensor& tensor = parted.tensors[0];
  for (std::int64_t first = 0; first < 5000; first += 1000) {
    parts.push_back(
        cpu::part_of(tensor, first, 1000, cpu::advanced(tensor.grad, tensor.grad_type, first)));
    parts.back().continues_parameter = first > 0;
  }
  cpu::update(rule, parts, 2);
  CHECK(parted.bytes() == whole.bytes(), rule.rule << " in parts");
}

// What an update of one element is, with the first state as its ratio to the last, by
// low_precision.h: in numbers, and with all operations on gradient and weight.
using RatioUpdate = void (*)(const double* scalars, const double* scales, const float* grad,
                             float* weight, float* const* states, std::int64_t count);

template <class R>
void update_by_ratio(const double* scalars, const double* scales, const float* grad, float* weight,
                     float* const* states, std::int64_t count) {
  const auto transform = cpu::read_scalars<GradientTransform<float>, float>(scalars);
  const auto s = cpu::read_scalars<typename R::template Scalars<float>, float>(scalars);
  const auto scale = cpu::read_scales<R, float>(scales);
  for (std::int64_t i = 0; i < count; ++i) {
    float state[R::states];
    for (int k = 0; k < R::states; ++k) state[k] = states[k][i];
    weight[i] = updated_weight_by_ratio<R>(transform, s, scale, grad[i], weight[i], state);
    for (int k = 0; k < R::states; ++k) states[k][i] = state[k];
  }
}

struct RatioRule {
  const char* name;
  RatioUpdate update;
  bool steps_by_ratio;
};

template <class R>
RatioRule ratio_rule() {
  if constexpr (has_ratio_state<R>) {
    return {R::name, update_by_ratio<R>, R::steps_by_ratio};
  } else {
    return {R::name, nullptr, false};
  }
}
template <class... Rules>
std::vector<RatioRule> ratio_rules(RuleList<Rules...>) {
  return {ratio_rule<Rules>()...};
}

// One parameter, or a part of one, with low-precision states of random numbers.
struct LowPrecisionModel {
  LowPrecisionModel(const cpu::RuleKernels& rule, DType type, std::int64_t size,
                    std::int64_t offset, const std::vector<double>& row, std::uint32_t seed)
      : rule(rule), row(row) {
    const auto n = static_cast<std::size_t>(size);
    const std::size_t misaligned = seed % 4;
    std::mt19937 source(seed);
    for (auto* const array : {&grad, &weight}) {
      array->emplace_back(n, misaligned);
      for (std::size_t i = 0; i < n; ++i) (*array)[0][i] = random_number<float>(source);
    }
    const auto bytes = n * static_cast<std::size_t>(dtype_size(type));
    const auto blocks = static_cast<std::size_t>(blocks_of(size));
    scales.emplace_back(type == DType::int8 ? blocks * static_cast<std::size_t>(rule.states) : 0);
    for (int k = 0; k < rule.states; ++k) {
      // A whole number of elements off.
      stored.emplace_back(bytes, misaligned * static_cast<std::size_t>(dtype_size(type)));
    }
    tensor.grad_type = tensor.weight_type = DType::float32;
    tensor.state_type = type;
    tensor.low_precision_state = true;
    tensor.size = size;
    tensor.offset = offset;
    point();
    std::vector<std::vector<float>> states;
    for (int k = 0; k < rule.states; ++k) {
      auto& numbers = states.emplace_back(n);
      for (std::size_t i = 0; i < n; ++i) {
        const float x = random_number<float>(source);
        // Of some elements no step has been taken; some have a state of zero.
        const bool unseen = i % 7 == 3 || source() % 16 == 0;
        numbers[i] = unseen ? 0 : rule.kinds[k] == StateKind::with_sign ? x : std::fabs(x);
      }
    }
    encode(states);
  }

  // Copies point to arrays of their own.
  LowPrecisionModel(const LowPrecisionModel& other)
      : rule(other.rule),
        row(other.row),
        grad(other.grad),
        weight(other.weight),
        scales(other.scales),
        stored(other.stored),
        tensor(other.tensor) {
    point();
  }
  void point() {
    tensor.scalars = row.data();
    tensor.grad = grad[0].data();
    tensor.weight = weight[0].data();
    tensor.scales = tensor.state_type == DType::int8 ? scales[0].data() : nullptr;
    for (int k = 0; k < rule.states; ++k) {
      tensor.states[k] = stored[static_cast<std::size_t>(k)].data();
    }
  }

  bool is_int8() const { return tensor.state_type == DType::int8; }
  const cpu::Int8Codec& int8_codec(int k) const {
    return rule.shared->int8_codecs[static_cast<int>(cpu::int8_state_of(rule, k))];
  }

  // What is stored, decoded and encoded where random numbers begin anew; 8 bits in blocks too.
  template <class Use>
  void for_each_piece(Use&& use) const {
    for (std::int64_t first = 0, count; first < tensor.size; first += count) {
      const std::int64_t place = (tensor.offset + first) % rng_block;
      count = std::min(rng_block - place, tensor.size - first);
      use(first, count, static_cast<std::uint32_t>(place));
    }
  }
  std::vector<std::vector<float>> decoded() const {
    std::vector<std::vector<float>> states(static_cast<std::size_t>(rule.states));
    for (int k = 0; k < rule.states; ++k) {
      auto& numbers = states[static_cast<std::size_t>(k)];
      numbers.resize(static_cast<std::size_t>(tensor.size));
      for_each_piece([&](std::int64_t first, std::int64_t count, std::uint32_t) {
        const void* const from =
            cpu::advanced<const void*>(tensor.states[k], tensor.state_type, first);
        if (is_int8()) {
          int8_codec(k).decode(from, tensor.scales + first / 64 * rule.states + k, rule.states,
                               numbers.data() + first, count);
        } else {
          codec_of(*rule.shared, tensor.state_type).decode(from, numbers.data() + first, count);
        }
      });
    }
    return states;
  }
  void encode(const std::vector<std::vector<float>>& states) {
    const auto epilogue = cpu::epilogue_scalars_of(rule, row.data());
    const std::uint64_t seed = rng_seed(epilogue.rng_stream, epilogue.step);
    for (int k = 0; k < rule.states; ++k) {
      const auto& numbers = states[static_cast<std::size_t>(k)];
      for_each_piece([&](std::int64_t first, std::int64_t count, std::uint32_t place) {
        const RngLine line = advanced(rng_line(seed, k, tensor.offset + first), place);
        void* const to = cpu::advanced(tensor.states[k], tensor.state_type, first);
        if (is_int8()) {
          int8_codec(k).encode(numbers.data() + first, line, to,
                               tensor.scales + first / 64 * rule.states + k, rule.states, count);
        } else {
          const bool denominator = rule.kinds[k] != StateKind::with_sign;
          codec_of(*rule.shared, tensor.state_type)
              .encode_stochastic[denominator ? 1 : 0](numbers.data() + first, line, to, count);
        }
      });
    }
  }

  bool guards_stand() const {
    bool stand = grad[0].guards_stand() && weight[0].guards_stand() && scales[0].guards_stand();
    for (const auto& array : stored) stand = stand && array.guards_stand();
    return stand;
  }

  const cpu::RuleKernels& rule;
  std::vector<double> row;
  std::vector<Guarded<float>> grad, weight, scales;
  std::vector<Guarded<unsigned char>> stored;
  cpu::Tensor tensor{};
};

// Where the two codes of a state are, of which a rounded quotient may have become either.
bool is_within_one_level(float a, float b, float scale) {
  return same(a, b) || std::fabs(a - b) <= 1.001f * scale / 127;
}

// An update put together from what else there is: decoding, the kernel of states in single
// precision, encoding.
void update_by_parts(LowPrecisionModel& model, RatioUpdate by_ratio) {
  const cpu::RuleKernels& rule = model.rule;
  auto states = model.decoded();
  const auto n = static_cast<std::size_t>(model.tensor.size);
  const bool has_ratio = model.is_int8() && cpu::int8_state_of(rule, 0) == cpu::Int8State::ratio;
  const float epsilon =
      has_ratio ? static_cast<float>(model.row[static_cast<std::size_t>(rule.epsilon_scalar)]) : 0;
  void* pointers[max_states] = {};
  float* floats[max_states] = {};
  // As the kernel takes them.
  auto plain = states;
  for (int k = 0; k < rule.states; ++k) {
    auto& own = plain[static_cast<std::size_t>(k)];
    for (std::size_t i = 0; i < n; ++i) {
      if (has_ratio && k == 0) own[i] = own[i] * (states.back()[i] + epsilon);
      if (rule.kinds[k] == StateKind::second_moment) own[i] = own[i] * own[i];
    }
    pointers[k] = own.data();
    floats[k] = states[static_cast<std::size_t>(k)].data();
  }
  cpu::Tensor decoded = model.tensor;
  decoded.state_type = DType::float32;
  std::copy_n(pointers, max_states, decoded.states);
  double scales[max_scales] = {};
  find_scales_in_place(rule, decoded, cpu::sum_block, scales);
  if (by_ratio != nullptr) {
    by_ratio(model.row.data(), scales, model.grad[0].data(), model.weight[0].data(), floats,
             model.tensor.size);
    model.encode(states);
    return;
  }
  rule.kernels[0](model.row.data(), scales, model.grad[0].data(), model.weight[0].data(), pointers,
                  model.tensor.size);
  for (int k = 0; k < rule.states; ++k) {
    for (float& x : plain[static_cast<std::size_t>(k)]) {
      if (rule.kinds[k] == StateKind::second_moment) x = std::sqrt(x);
    }
  }
  for (std::size_t i = 0; has_ratio && i < n; ++i) {
    const float divisor = plain.back()[i] + epsilon;
    plain[0][i] = plain[0][i] / (divisor <= 0 ? INFINITY : divisor);
  }
  model.encode(plain);
}

void check_same(const LowPrecisionModel& found, const LowPrecisionModel& expected,
                bool quotient_is_rounded, const std::string& what) {
  CHECK(found.guards_stand(), what);
  const auto states = found.decoded(), expected_states = expected.decoded();
  const auto n = static_cast<std::size_t>(found.tensor.size);
  const int own_states = found.rule.states;
  for (std::size_t i = 0; i < n; ++i) {
    const float weight = found.weight[0][i], expected_weight = expected.weight[0][i];
    const float few_ulp = quotient_is_rounded ? 4e-7f * std::fabs(expected_weight) : 0;
    CHECK(same(weight, expected_weight) || std::fabs(weight - expected_weight) <= few_ulp,
          what << ", weight " << i << " of " << n << ": " << weight << " for " << expected_weight);
    for (int k = 0; k < own_states; ++k) {
      const auto index = static_cast<std::size_t>(k);
      const float x = states[index][i], y = expected_states[index][i];
      if (quotient_is_rounded && k == 0) {
        const float scale = found.tensor.scales[i / 64 * static_cast<std::size_t>(own_states)];
        CHECK(is_within_one_level(x, y, scale), what << ", ratio " << i << ": " << x << ", " << y);
      } else {
        CHECK(same(x, y),
              what << ", state " << k << ", " << i << " of " << n << ": " << x << " for " << y);
      }
    }
  }
  // Also what stands for the same: codes and scales; NaN has many codes in 16 bits.
  if (!found.is_int8() || quotient_is_rounded) return;
  for (int k = 0; k < own_states; ++k) {
    const auto index = static_cast<std::size_t>(k);
    CHECK(std::equal(found.stored[index].data(), found.stored[index].data() + n,
                     expected.stored[index].data()),
          what << ", codes of state " << k);
  }
  for (std::size_t b = 0; b < found.scales[0].size(); ++b) {
    CHECK(same(found.scales[0][b], expected.scales[0][b]), what << ", scale " << b);
  }
}

// Rows in which each part of the update is and is not there: `lr`, also so small that ratios are
// multiplied by it afterwards; weight decay, of 0 too; a bound; decoupled weight decay.
std::vector<std::vector<double>> rows_of(const cpu::RuleKernels& rule) {
  const std::vector<double> common = row_of(rule);
  const auto with = [&](std::vector<double> row, const char* name, double x) {
    for (int k = 0; k < rule.scalars; ++k) {
      if (std::string(rule.scalar_names[k]) == name) row[static_cast<std::size_t>(k)] = x;
    }
    return row;
  };
  std::vector<std::vector<double>> rows;
  for (const double clip : {0.3, static_cast<double>(INFINITY)}) {
    for (const double wd : {0.02, 0.0, -1.0}) {
      for (const double decay : {0.97, 1.0}) {
        rows.push_back(
            with(with(with(common, "clip_gradient", clip), "wd", wd), "decay_factor", decay));
      }
    }
  }
  for (const double lr : {0.0, 1e-35, 0x1p-99}) rows.push_back(with(common, "lr", lr));
  return rows;
}

void test_low_precision(const cpu::InstructionSet& set, int which, const RatioRule& ratio) {
  const cpu::RuleKernels& rule = set.table.rules[which];
  CHECK(std::string(ratio.name) == rule.rule, ratio.name);
  std::uint32_t seed = 0;
  const auto compare = [&](DType type, std::int64_t size, std::int64_t offset,
                           const std::vector<double>& row) {
    const LowPrecisionModel before(rule, type, size, offset, row, ++seed);
    const std::string what = std::string(set.name) + ", " + rule.rule + ", type " +
                             std::to_string(static_cast<int>(type)) + ", row " +
                             std::to_string(seed) + ", offset " + std::to_string(offset);
    LowPrecisionModel found(before);
    cpu::update(rule, {found.tensor}, 1);
    for (std::int64_t i = 0; i < size; ++i) {
      const auto index = static_cast<std::size_t>(i);
      CHECK(same(found.grad[0][index], before.grad[0][index]), what << ": wrote a gradient");
    }
    LowPrecisionModel expected(before);
    const bool rounds = type == DType::int8 && ratio.steps_by_ratio;
    update_by_parts(expected, nullptr);
    check_same(found, expected, rounds, what);
    if (type == DType::int8 && ratio.update != nullptr) {
      LowPrecisionModel by_ratio(before);
      update_by_parts(by_ratio, ratio.update);
      check_same(found, by_ratio, false, what + ", by ratio");
    }
  };
  const auto rows = rows_of(rule);
  for (const DType type : {DType::float16, DType::bfloat16, DType::int8}) {
    const bool is_int8 = type == DType::int8;
    const bool supported =
        rule.states > 0 && (is_int8 ? rule.supports_int8_state : rule.supports_low_precision_state);
    CHECK(supported == (cpu::low_precision_kernel_of(rule, type) != nullptr), rule.rule);
    if (!supported) continue;
    for (const auto& row : rows) {
      compare(type, 700, is_int8 ? 0 : 333, row);
      compare(type, 71, is_int8 ? 0 : 1000, row);
    }
    for (std::int64_t size = 0; size <= 140; ++size) {
      // Of 8 bits, a parameter begins at 0.
      compare(type, size, is_int8 ? 0 : size * 37 % 1500, rows[0]);
    }
    for (const std::int64_t size : {511, 512, 513, 575, 576, 577, 1023, 1024, 1100}) {
      for (const std::int64_t offset : {0, 1, 63, 500, 511, 513, 5000}) {
        if (!is_int8 || offset == 0) compare(type, size, offset, rows[0]);
      }
    }
  }
}

// A parameter in parts that begin anywhere, and the whole one.
void test_low_precision_parts(const cpu::RuleKernels& rule) {
  if (!rule.supports_low_precision_state || rule.states == 0) return;
  for (const DType type : {DType::float16, DType::bfloat16}) {
    const LowPrecisionModel before(rule, type, 3000, 777, row_of(rule), 5);
    LowPrecisionModel whole(before), parted(before);
    cpu::update(rule, {whole.tensor}, 1);
    std::vector<cpu::Tensor> parts;
    const std::int64_t cuts[] = {0, 1, 72, 73, 200, 704, 1333, 1850, 3000};
    for (std::size_t k = 0; k + 1 < std::size(cuts); ++k) {
      const void* const grad = cpu::advanced(parted.tensor.grad, DType::float32, cuts[k]);
      parts.push_back(cpu::part_of(parted.tensor, cuts[k], cuts[k + 1] - cuts[k], grad));
      parts.back().continues_parameter = k > 0;
    }
    cpu::update(rule, parts, 2);
    check_same(parted, whole, false, std::string(rule.rule) + " in parts");
  }
}

// The same bytes by all instruction sets, of several steps.
void test_instruction_sets(int which) {
  const auto& sets = cpu::instruction_sets();
  for (const Kind& kind : kinds) {
    if (!kind.low_precision_state || !fits(sets[0].table.rules[which], kind)) continue;
    std::vector<std::vector<unsigned char>> expected;
    for (const cpu::InstructionSet& set : sets) {
      const cpu::RuleKernels& rule = set.table.rules[which];
      Model model(rule, kind, {1, 0, 63, 64, 65, 513, 1100});
      for (int step = 0; step < 3; ++step) cpu::update(rule, model.tensors, 1);
      if (&set == sets.data()) expected = model.bytes();
      const auto found = model.bytes();
      for (std::size_t k = 0; k < found.size(); ++k) {
        const auto [own, other] =
            std::mismatch(found[k].begin(), found[k].end(), expected[k].begin());
        CHECK(own == found[k].end(), set.name << ", " << rule.rule << ", kind " << &kind - kinds
                                              << ", array " << k << ", byte "
                                              << own - found[k].begin() << ": " << int(*own)
                                              << " for " << int(*other));
      }
    }
  }
}

// In place, an update is what the kernel does to each tensor.
void test_against_kernels(const cpu::RuleKernels& rule) {
  const std::vector<std::int64_t> sizes = {1, 0, 700, 3 * chunk + 5};
  Model updated(rule, kinds[0], sizes), expected(rule, kinds[0], sizes);
  // A scaled norm depends on the number of threads.
  cpu::update(rule, updated.tensors, rule.scaled_norms ? 1 : 2);
  for (const cpu::Tensor& tensor : expected.tensors) {
    double scales[max_scales] = {};
    find_scales_in_place(rule, tensor, tensor.size, scales);
    rule.kernels[0](tensor.scalars, scales, tensor.grad, tensor.weight, tensor.states, tensor.size);
  }
  CHECK(updated.bytes() == expected.bytes(), rule.rule);
}

void test_gradients(const cpu::RuleKernels& rule, const Kind& kind) {
  Model model(rule, kind, many_sizes);
  const double norm = cpu::gradient_norm(rule, model.tensors, 1);
  CHECK(std::isfinite(norm) && norm > 0, norm);
  CHECK(cpu::gradients_finite(rule, model.tensors, 1), "all are finite");
  for (const int threads : {2, 5}) {
    CHECK(cpu::gradient_norm(rule, model.tensors, threads) == norm, threads << " threads");
  }
  // All bits set is NaN in every type.
  const cpu::Tensor& tensor = model.tensors[11];
  const std::int64_t bytes = dtype_size(tensor.grad_type);
  const void* const last = cpu::advanced(tensor.grad, tensor.grad_type, tensor.size - 1);
  std::memset(const_cast<void*>(last), 0xff, static_cast<std::size_t>(bytes));
  for (const int threads : {1, 2, 5}) {
    CHECK(!cpu::gradients_finite(rule, model.tensors, threads), "one is NaN");
    CHECK(std::isnan(cpu::gradient_norm(rule, model.tensors, threads)), "one is NaN");
  }
}

// Several callers at once, each with arrays of its own, as trainers in threads.
void test_callers() {
  const cpu::RuleKernels& rule = cpu::chosen_instruction_set().table.rules[1];
  const Kind& kind = kinds[9];
  Model alone(rule, kind, many_sizes);
  cpu::update(rule, alone.tensors, 1);
  std::vector<std::unique_ptr<Model>> models;
  std::vector<std::thread> callers;
  for (int k = 0; k < 4; ++k) models.push_back(std::make_unique<Model>(rule, kind, many_sizes));
  for (const auto& model : models) {
    callers.emplace_back([&rule, &model] {
      cpu::update(rule, model->tensors, 2);
      cpu::gradient_norm(rule, model->tensors, 2);
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& model : models) CHECK(model->bytes() == alone.bytes(), "callers got mixed up");
}

void test_dispatch() {
  const auto& sets = cpu::instruction_sets();
  CHECK(std::string(sets[0].name) == "baseline", sets[0].name);
  for (const auto& set : sets) CHECK(&cpu::instruction_set(set.name) == &set, set.name);
  const char* const forced = std::getenv("MXADAMAX_INSTRUCTION_SET");
  const auto& expected = forced ? cpu::instruction_set(forced) : sets.back();
  CHECK(&cpu::chosen_instruction_set() == &expected, cpu::chosen_instruction_set().name);
  bool refused = false;
  try {
    cpu::instruction_set("sse9");
  } catch (const std::invalid_argument& error) {
    refused = std::string(error.what()).find("'sse9' is not available here") != std::string::npos;
  }
  CHECK(refused, "an instruction set that is none");
  for (const auto& set : sets) {
    CHECK(set.table.count == sets[0].table.count, set.name);
    for (int k = 0; k < set.table.count; ++k) {
      CHECK(std::string(set.table.rules[k].rule) == sets[0].table.rules[k].rule, set.name);
    }
  }
}

}  // namespace

void test_update() {
  // First of all the choice, from several threads at once.
  std::vector<std::thread> first;
  for (int k = 0; k < 4; ++k) first.emplace_back([] { cpu::chosen_instruction_set(); });
  for (std::thread& thread : first) thread.join();
  test_dispatch();
  test_chunks();
  const std::vector<RatioRule> ratios = ratio_rules(AllRules{});
  for (int k = 0; k < cpu::instruction_sets()[0].table.count; ++k) test_instruction_sets(k);
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    for (int k = 0; k < set.table.count; ++k) {
      const cpu::RuleKernels& rule = set.table.rules[k];
      // Storing is no matter of the rule: all ways with two of them, one with the others.
      for (const Kind& kind : kinds) {
        if (fits(rule, kind) && (k < 2 || &kind == kinds || kind.low_precision_state))
          test_threads(rule, kind);
      }
      test_against_kernels(rule);
      test_low_precision(set, k, ratios[static_cast<std::size_t>(k)]);
      test_low_precision_parts(rule);
    }
    for (const Kind& kind : kinds) {
      if (fits(set.table.rules[0], kind)) test_gradients(set.table.rules[0], kind);
    }
  }
  test_callers();
}

}  // namespace mxadamax::tests
