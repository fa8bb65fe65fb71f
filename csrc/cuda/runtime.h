// SPDX-License-Identifier: Apache-2.0
// Include CUDA's runtime, or its emulation if the kernels are compiled for the host.
#pragma once

#if defined(MXADAMAX_CUDA_ON_HOST)
#include "emulation.h"
#else
#include <cuda_runtime.h>
#endif

#include <stdexcept>
#include <string>

namespace mxadamax::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

#if defined(__CUDACC__)
template <class... Parameters>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, cudaStream_t stream,
            Parameters... arguments) {
  kernel<<<blocks, threads, 0, stream>>>(arguments...);
  check(cudaGetLastError(), "launch of a kernel");
}
#endif

}  // namespace mxadamax::cuda
