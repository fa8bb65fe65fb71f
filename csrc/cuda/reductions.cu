// SPDX-License-Identifier: Apache-2.0
// Reduce all gradients: compute their norm, and check that all are finite.
//
// Squares are summed like in the CPU kernels (cpu/reductions.h, cpu/update.cc): over the same
// chunks, in the same lanes and order, so the sum has the same bits. Three kernels, without
// synchronization inside a block: lanes, chunks, total.
#include "kernels.h"
#include "load_store.h"

namespace mxadamax::cuda {
namespace {

// Loads in flight before the first is used.
constexpr int ahead = 16;

// Sums the squares of one lane, every sum_lanes-th number. Returns whether all are finite.
template <class Number>
MXADAMAX_RULE bool sum_lane(const void* grad, std::int64_t first, std::int64_t end, double* sum) {
  using Bits = typename Number::Bits;
  const Bits* const from = static_cast<const Bits*>(grad);
  double total = 0;
  bool finite = true;
  std::int64_t i = first;
  const auto add = [&](Bits bits) {
    const double x = Number::decode(bits);
    total += x * x;
    finite = finite && x - x == 0;
  };
  for (; i + (ahead - 1) * sum_lanes < end; i += ahead * sum_lanes) {
    Bits numbers[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) numbers[k] = read<Bits>(from + i + k * sum_lanes);
#pragma unroll
    for (const Bits bits : numbers) add(bits);
  }
  for (; i < end; i += sum_lanes) add(read<Bits>(from + i));
  *sum = total;
  return finite;
}

__global__ void __launch_bounds__(threads_per_block) sum_lanes_of(SumTable table) {
  const std::int64_t work = table.part_count * table.threads;
  const std::int64_t threads = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t id = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       id < work; id += threads) {
    const SumTile part = table.parts[id / table.threads];
    const TensorEntry& tensor = table.tensors[part.tensor];
    const auto place = static_cast<std::int64_t>(id % table.threads);
    const std::int64_t segment = place / sum_lanes;
    const std::int64_t lane = place % sum_lanes;
    const std::int64_t length = segment_length(is_converted(tensor.grad_type));
    const std::int64_t begin = segment * length;
    if (begin >= part.count) continue;
    const std::int64_t left = part.count - begin;
    const std::int64_t first = part.first + begin + lane;
    const std::int64_t end = part.first + begin + (left < length ? left : length);
    double* const sum = table.lane_sums + (part.first_segment + segment) * sum_lanes + lane;
    bool finite = true;
    switch (tensor.grad_type) {
      case DType::float64:
        finite = sum_lane<Plain<double>>(tensor.grad, first, end, sum);
        break;
      case DType::float16:
        finite = sum_lane<Float16>(tensor.grad, first, end, sum);
        break;
      case DType::bfloat16:
        finite = sum_lane<Bfloat16>(tensor.grad, first, end, sum);
        break;
      default:
        finite = sum_lane<Plain<float>>(tensor.grad, first, end, sum);
    }
    if (!finite) table.control->nonfinite = 1;
  }
}

// Sums numbers pairwise: adds the second half to the first until one is left.
template <int count>
MXADAMAX_RULE double sum_in_pairs(double* numbers) {
  if constexpr (count == 1) {
    return numbers[0];
  } else {
#pragma unroll
    for (int k = 0; k < count / 2; ++k) numbers[k] += numbers[k + count / 2];
    return sum_in_pairs<count / 2>(numbers);
  }
}

__global__ void __launch_bounds__(threads_per_block) sum_chunks(SumTable table) {
  const std::int64_t threads = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t chunk = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       chunk < table.chunk_count; chunk += threads) {
    double sum = 0;
    for (std::int64_t k = table.chunks[chunk]; k < table.chunks[chunk + 1]; ++k) {
      const SumTile part = table.parts[k];
      const bool converted = is_converted(table.tensors[part.tensor].grad_type);
      const std::int64_t segments = segments_of(part.count, segment_length(converted));
      double part_sum = 0;
      for (std::int64_t i = part.first_segment; i < part.first_segment + segments; ++i) {
        double lanes[sum_lanes];
#pragma unroll
        for (int lane = 0; lane < sum_lanes; ++lane) {
          lanes[lane] = table.lane_sums[i * sum_lanes + lane];
        }
        part_sum += sum_in_pairs<sum_lanes>(lanes);
      }
      sum += part_sum;
    }
    table.chunk_sums[chunk] = sum;
  }
}

// Runs in one thread: the sum is sequential.
__global__ void finalize_norm(SumTable table) {
  double sum = 0;
  std::int64_t i = 0;
  for (; i + ahead <= table.chunk_count; i += ahead) {
    double sums[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) sums[k] = table.chunk_sums[i + k];
#pragma unroll
    for (const double chunk_sum : sums) sum += chunk_sum;
  }
  for (; i < table.chunk_count; ++i) sum += table.chunk_sums[i];

  StepControl& control = *table.control;
  if (table.refused != nullptr && *table.refused != 0) {
    control.nonfinite = 0;
    return;
  }
  const double norm = absolute(table.rescale_grad) * square_root(sum);
  const double bound = table.options.clip_global_norm;
  control.norm = norm;
  // Without a bound the factor is 1. A NaN norm makes the factor NaN.
  control.factor = bound != bound || norm <= bound ? 1 : bound / norm;
  control.skip = table.options.skip_nonfinite && control.nonfinite != 0 ? 1 : 0;
  control.skipped += control.skip;
  control.nonfinite = 0;
}

}  // namespace

void start_sums(const SumTable& table, int processors, cudaStream_t stream) {
  const auto blocks = [&](std::int64_t threads) {
    return grid_size((threads + threads_per_block - 1) / threads_per_block, processors,
                     small_blocks_per_processor);
  };
  if (table.part_count > 0) {
    launch(sum_lanes_of, blocks(table.part_count * table.threads), threads_per_block, stream,
           table);
    launch(sum_chunks, blocks(table.chunk_count), threads_per_block, stream, table);
  }
  launch(finalize_norm, 1u, 1u, stream, table);
}

}  // namespace mxadamax::cuda
