// SPDX-License-Identifier: Apache-2.0
// What a whole step asks of all gradients together, the same for the processor and for devices.
#pragma once

#include <type_traits>

#include "rules/rule.h"

namespace mxadamax {

struct StepOptions {
  // The largest norm that they may have after rescaling: infinite for any, NaN for none, where the
  // norm need not be known.
  double clip_global_norm = __builtin_nan("");
  // Whether a step with NaN or infinite gradients is left out.
  bool skip_nonfinite = false;

  MXADAMAX_RULE bool clips() const { return clip_global_norm == clip_global_norm; }
  MXADAMAX_RULE bool any() const { return clips() || skip_nonfinite; }
};
static_assert(std::is_standard_layout_v<StepOptions> && std::is_trivially_copyable_v<StepOptions>,
              "it goes from one module to another, and to devices");

}  // namespace mxadamax
