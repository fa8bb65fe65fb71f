// SPDX-License-Identifier: Apache-2.0
// The arrays of a Trainer's parameters, to find out whether a step is like the one before it.
#pragma once

#include <pybind11/pybind11.h>

namespace mxadamax {

void add_trainer_arrays(pybind11::module_& m);

}  // namespace mxadamax
