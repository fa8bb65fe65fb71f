// The list of rules. A new one is a header in this folder and a name here.
#pragma once

#include "adamax.h"

namespace mxadamax {

template <class... Rules>
struct RuleList {
  static constexpr int count = sizeof...(Rules);
};

using AllRules = RuleList<Adamax>;

}  // namespace mxadamax
