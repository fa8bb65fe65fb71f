# SPDX-License-Identifier: Apache-2.0
"""List the optimizers, with a record of each.

`mxadamax verify`, `mxadamax bench`, the tests and the tables of the documentation iterate over it.
"""

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Sequence, Tuple

import mxnet
from mxnet.optimizer import Optimizer

from .._mxnet.compatibility import IS_MXNET_1
from .adabelief import AdaBelief
from .adadelta import AdaDelta
from .adagrad import AdaGrad
from .adam import Adam, AMSGrad
from .adamax import Adamax
from .adamw import AdamW
from .bertadam import BERTAdam
from .dcasgd import DCASGD
from .groupadagrad import GroupAdaGrad
from .lamb import LAMB
from .lion import Lion
from .nadam import Nadam
from .nag import NAG
from .rmsprop import RMSProp
from .sgd import SGD
from .sgld import SGLD

# The optimizers that `import mxadamax` provides.
__all__ = [
    "DCASGD",
    "LAMB",
    "NAG",
    "SGD",
    "SGLD",
    "AMSGrad",
    "AdaBelief",
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Adamax",
    "BERTAdam",
    "GroupAdaGrad",
    "Lion",
    "Nadam",
    "RMSProp",
]

if IS_MXNET_1:
    from .lbsgd import LBSGD

    __all__ += ["LBSGD"]


@dataclass(frozen=True)
class OptimizerInfo:
    """An optimizer of this package, or one of its rules, and its counterparts.

    Parameters
    ----------
    name : str
        Its name in MXNet's registry.
    built_in : str or None
        The built-in with an equal `step`; None if MXNet has none.
    options : dict
        Options of ours and of the built-in.
    ours : dict
        Options that only ours needs, to match the built-in.
    fused_ulps : int
        The largest allowed difference of a step from MXNet's fused operator; 0 if there is none to
        compare with. AdaBelief has no such bound, because its operator cancels digits.
    in_mxnet_1 : bool
        Whether MXNet 1 has the same fused operator.
    variants : sequence of dict
        More options to compare in tests.
    bench : str
        Its name in `mxadamax bench`; empty if that does not time it with the others.
    bench_built_in : str
        The built-in to time beside it, if that is not `built_in`.
    bench_options : dict
        Options of both in `mxadamax bench`, besides `options`.
    by_operator : bool
        Whether it equals the built-in's fused operator, which differs from the built-in's `step`.
    torch : tuple of str and dict, or None
        The counterpart in ``torch.optim``, and its options.
    """

    name: str
    built_in: Optional[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    fused_ulps: int = 0
    in_mxnet_1: bool = False
    variants: Sequence[Mapping[str, Any]] = ()
    bench: str = ""
    bench_built_in: str = ""
    bench_options: Mapping[str, Any] = field(default_factory=dict)
    by_operator: bool = False
    torch: Optional[Tuple[str, Mapping[str, Any]]] = None

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

    @property
    def timed_beside(self) -> str:
        """Return the built-in that `mxadamax bench` times beside it."""
        return self.bench_built_in or self.built_in or ""

    def create(self, **options: Any) -> Optimizer:
        """Create ours; `options` override those of the record."""
        return mxnet.optimizer.create(self.name, **{**self.options, **self.ours, **options})

    def create_reference(self, **options: Any) -> Optimizer:
        """Create MXNet's built-in, which computes with its `step`.

        Create ours with MXNet's operators on MXNet 1, whose built-ins use other formulas, if MXNet
        has no such optimizer, or if the built-in's `step` and operator differ.
        """
        if IS_MXNET_1 or self.built_in is None or self.by_operator:
            return self.create(**options, use_fused_step=False, aggregate_num=1)
        found = mxnet.optimizer.create(
            self.built_in, use_fused_step=False, **{**self.options, **options}
        )
        if self.built_in in ("adadelta", "adagrad", "rmsprop"):
            # Their states are always float32.
            found.create_state = self.create().create_state
        return found

    def create_fused(self, **options: Any) -> Optimizer:
        """Create MXNet's built-in, which computes with its fused operator."""
        if self.built_in == "nag":
            # The default of ours and MXNet 2, but not of MXNet 1.
            options = {"momentum": 0.9, **options}
        return mxnet.optimizer.create(self.built_in, **{**self.options, **options})


_MOMENTS = (
    {"beta1": 0.0, "beta2": 0.0},
    {"epsilon": 0.0},
    {"epsilon": 1e-3},
    {"begin_num_update": 500},
)

OPTIMIZERS = [
    OptimizerInfo("adamax_ext", "adamax", variants=_MOMENTS),
    OptimizerInfo(
        *("adam_ext", "adam"),
        fused_ulps=4,
        in_mxnet_1=True,
        variants=_MOMENTS,
        bench="adam",
        torch=("Adam", {"fused": True}),
    ),
    OptimizerInfo(
        *("amsgrad_ext", None),
        variants=_MOMENTS,
        bench="amsgrad",
        bench_built_in="adam",
        torch=("Adam", {"fused": True, "amsgrad": True}),
    ),
    # The built-in's `step` decays the weight after its update.
    OptimizerInfo(
        *("adamw_ext", "adamw", {"wd": 0.0}),
        fused_ulps=4,
        variants=(*_MOMENTS, {"correct_bias": False}),
        bench="adamw",
        bench_options={"wd": 0.01},
        torch=("AdamW", {"fused": True}),
    ),
    OptimizerInfo(
        *("nadam_ext", "nadam"),
        ours={"schedule_per_parameter": True},
        variants=(*_MOMENTS, {"schedule_decay": 0.5}),
        bench="nadam",
        torch=("NAdam", {"foreach": True}),
    ),
    OptimizerInfo(
        *("adabelief_ext", "adabelief"),
        variants=(*_MOMENTS, {"correct_bias": False}),
        bench="adabelief",
    ),
    OptimizerInfo(
        *("rmsprop_ext", "rmsprop"),
        fused_ulps=4,
        variants=({"rho": 0.0}, {"clip_weights": 0.3}),
        bench="rmsprop",
        torch=("RMSprop", {"foreach": True}),
    ),
    OptimizerInfo(
        *("rmsprop_ext", "rmsprop", {"centered": True, "epsilon": 1e-3}),
        fused_ulps=4,
        variants=({"momentum": 0.0}, {"clip_weights": 0.3}, {"rho": 0.5}),
        bench="rmsprop-centered",
        torch=("RMSprop", {"foreach": True, "centered": True, "momentum": 0.9}),
    ),
    OptimizerInfo(
        *("adagrad_ext", "adagrad"),
        variants=({"epsilon": 0.0},),
        bench="adagrad",
        torch=("Adagrad", {"fused": True}),
    ),
    OptimizerInfo(
        *("adadelta_ext", "adadelta"),
        variants=({"rho": 0.0}, {"epsilon": 1e-3}),
        bench="adadelta",
        torch=("Adadelta", {"foreach": True}),
    ),
    OptimizerInfo(
        *("sgd_ext", "sgd"),
        fused_ulps=4,
        in_mxnet_1=True,
        bench="sgd",
        torch=("SGD", {"fused": True}),
    ),
    OptimizerInfo(
        *("sgd_ext", "sgd", {"momentum": 0.9}),
        fused_ulps=4,
        in_mxnet_1=True,
        variants=({"momentum": 0.123},),
        bench="sgd-momentum",
        torch=("SGD", {"fused": True, "momentum": 0.9}),
    ),
    OptimizerInfo(
        *("nag_ext", "nag"),
        fused_ulps=4,
        in_mxnet_1=True,
        variants=({"momentum": 0.0}, {"momentum": 0.123}),
        bench="nag",
        bench_options={"momentum": 0.9},
        torch=("SGD", {"fused": True, "momentum": 0.9, "nesterov": True}),
    ),
    OptimizerInfo(
        *("dcasgd_ext", "dcasgd"),
        variants=({"lamda": 0.0}, {"lamda": 2.0}),
    ),
    OptimizerInfo(
        *("dcasgd_ext", "dcasgd", {"momentum": 0.9}),
        variants=({"momentum": 0.123}, {"lamda": 2.0}),
    ),
    OptimizerInfo(
        *("lion_ext", None),
        variants=({"beta1": 0.0, "beta2": 0.0}, {"begin_num_update": 500}),
        bench="lion",
        bench_built_in="signum",
    ),
    OptimizerInfo(
        *("lamb_ext", "lamb"),
        fused_ulps=4,
        in_mxnet_1=True,
        by_operator=True,
        variants=(
            *_MOMENTS,
            {"bias_correction": False},
            {"lower_bound": 3.0, "upper_bound": 5.0},
        ),
        bench="lamb",
        bench_options={"wd": 0.01},
    ),
]
"""All optimizers."""
