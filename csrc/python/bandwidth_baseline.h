// SPDX-License-Identifier: Apache-2.0
// The bandwidth baseline as a class of Python's, for `mxadamax bench`.
#pragma once

#include <pybind11/pybind11.h>

namespace mxadamax {

void add_bandwidth_baseline(pybind11::module_& m);

}  // namespace mxadamax
