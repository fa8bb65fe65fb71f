// SPDX-License-Identifier: Apache-2.0
// Check the row indices of gradients before anything is written.
#include "kernels.h"

namespace mxadamax::cuda {
namespace {

__global__ void __launch_bounds__(threads_per_block) check_rows(RowTable table) {
  for (std::int64_t k = blockIdx.x; k < table.part_count; k += gridDim.x) {
    const Tile part = table.parts[k];
    const TensorEntry& tensor = table.tensors[part.tensor];
    const std::int64_t total = tensor.size / tensor.rows.length;
    const auto threads = static_cast<std::int32_t>(blockDim.x);
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < part.count; i += threads) {
      if (is_wrong_row(tensor.rows.numbers, part.first + i, total)) *table.refused = 1;
    }
  }
}

}  // namespace

void start_row_check(const RowTable& table, int processors, cudaStream_t stream) {
  const unsigned blocks = grid_size(table.part_count, processors, small_blocks_per_processor);
  launch(check_rows, blocks, threads_per_block, stream, table);
}

}  // namespace mxadamax::cuda
