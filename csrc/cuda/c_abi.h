// SPDX-License-Identifier: Apache-2.0
// Export the kernels as a table of C functions.
#pragma once

#include "common/device_backend.h"

namespace mxadamax::cuda {

const DeviceBackend& device_backend();

}  // namespace mxadamax::cuda
