// SPDX-License-Identifier: Apache-2.0
// The kernels as a table of C functions.
#pragma once

#include "common/device_backend.h"

namespace mxadamax::cuda {

const DeviceBackend& c_functions();

}  // namespace mxadamax::cuda
