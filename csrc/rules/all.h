// SPDX-License-Identifier: Apache-2.0
// List all rules. To add one, add a header to this folder and its name here.
#pragma once

#include "adabelief.h"
#include "adadelta.h"
#include "adagrad.h"
#include "adam.h"
#include "adamax.h"
#include "adamw.h"
#include "dcasgd.h"
#include "ftml.h"
#include "ftrl.h"
#include "lamb.h"
#include "lans.h"
#include "lars.h"
#include "lion.h"
#include "nadam.h"
#include "nag.h"
#include "rmsprop.h"
#include "sgd.h"
#include "sgld.h"
#include "signum.h"

namespace mxadamax {

template <class... Rules>
struct RuleList {};

using AllRules =
    RuleList<Adamax, AdamaxOfMxnet1, Adam, Amsgrad, AdamOfMxnet<1, false>, AdamOfMxnet<1, true>,
             AdamOfMxnet<2, false>, AdamOfMxnet<2, true>, AdamwOfMxnet2<false>, AdamwOfMxnet2<true>,
             Nadam, NadamOfMxnet1, Adabelief, AdabeliefOfMxnet2<false>, AdabeliefOfMxnet2<true>,
             Rmsprop, CenteredRmsprop, RmspropOfMxnet<1>, RmspropOfMxnet<2>,
             CenteredRmspropOfMxnet<1>, CenteredRmspropOfMxnet<2>, Adagrad, AdagradOfMxnet1,
             Adadelta, AdadeltaOfMxnet1, Sgd, SgdMomentum, SgdOfMxnet1, SingleSgdOfMxnet1,
             SgdMomentumOfMxnet1, Nag, NagOfMxnet1<false>, NagOfMxnet1<true>, NagOfMxnet2,
             Dcasgd<false>, Dcasgd<true>, DcasgdOfMxnet1<false>, DcasgdOfMxnet1<true>, Sgld, Lion,
             Lamb, LambOfDoubleQuotient, LambOfMxnet1, Signum, Signsgd, SignumOfMxnet1,
             SignumOfMxnet2, SignsgdOfMxnet, Ftml, FtmlOfMxnet<1>, FtmlOfMxnet<2>, Ftrl,
             FtrlOfMxnet<1>, FtrlOfMxnet<2>, LarsRule<false, false>, LarsRule<true, false>,
             LarsRule<false, true>, LarsRule<true, true>, LarsOfMxnet<1, false>,
             LarsOfMxnet<1, true>, LarsOfMxnet<2, false>, LarsOfMxnet<2, true>, Lans, LansOfMxnet2>;

}  // namespace mxadamax
