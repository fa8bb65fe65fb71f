// SPDX-License-Identifier: Apache-2.0
// List all rules. To add one, add a header to this folder and its name here.
#pragma once

#include "adabelief.h"
#include "adadelta.h"
#include "adagrad.h"
#include "adam.h"
#include "adamax.h"
#include "lamb.h"
#include "lion.h"
#include "nadam.h"
#include "nag.h"
#include "rmsprop.h"
#include "sgd.h"

namespace mxadamax {

template <class... Rules>
struct RuleList {};

using AllRules = RuleList<Adamax, Adam, Amsgrad, Nadam, Adabelief, Rmsprop, CenteredRmsprop,
                          Adagrad, Adadelta, Sgd, SgdMomentum, Nag, Lion, Lamb, LambOfMxnet1>;

}  // namespace mxadamax
