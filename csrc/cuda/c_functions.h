// SPDX-License-Identifier: Apache-2.0
// The kernels as a table of C functions.
#pragma once

#include "device_kernels.h"

namespace mxadamax::cuda {

const DeviceKernels& c_functions();

}  // namespace mxadamax::cuda
