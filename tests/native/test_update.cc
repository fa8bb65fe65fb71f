// SPDX-License-Identifier: Apache-2.0
// Many tensors, chunks, threads, every way to store, and the choice of an instruction set.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "common/chunks.h"
#include "cpu/update.h"

namespace mxadamax::tests {
namespace {

// How parameters are kept.
struct Kind {
  DType weight, state;
  DType copy = DType::float32;
  bool stochastic_rounding = false, average = false;
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
      tensor.stochastic_rounding = kind.stochastic_rounding;
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
  return kind.state == DType::int8 ? rule.supports_int8_state
                                   : !kind.stochastic_rounding || rule.supports_low_precision_state;
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
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    for (int k = 0; k < set.table.count; ++k) {
      const cpu::RuleKernels& rule = set.table.rules[k];
      // Storing is no matter of the rule: all ways with two of them, one with the others.
      for (const Kind& kind : kinds) {
        const bool is_signed = rule.states == 1 && kind.state == DType::int8;
        if (fits(rule, kind) && (k < 2 || &kind == kinds || is_signed)) test_threads(rule, kind);
      }
      test_against_kernels(rule);
    }
    for (const Kind& kind : kinds) {
      if (fits(set.table.rules[0], kind)) test_gradients(set.table.rules[0], kind);
    }
  }
  test_callers();
}

}  // namespace mxadamax::tests
