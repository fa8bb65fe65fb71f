# SPDX-License-Identifier: Apache-2.0
"""List the optimizers, with a record of each.

`mxadamax verify`, `mxadamax bench`, the tests and the tables of the documentation iterate over it.
"""

import inspect
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
from .arithmetic import PORTABLE, SERIES, built_in_class, names_in_mxnet
from .bertadam import BERTAdam
from .dcasgd import DCASGD
from .ftml import FTML
from .ftrl import Ftrl
from .groupadagrad import GroupAdaGrad
from .lamb import LAMB
from .lans import LANS
from .lars import LARS
from .lion import Lion
from .nadam import Nadam
from .nag import NAG
from .rmsprop import RMSProp
from .sgd import SGD
from .sgld import SGLD
from .signum import Signum

# The optimizers that `import mxadamax` provides.
__all__ = [
    "DCASGD",
    "FTML",
    "LAMB",
    "LANS",
    "LARS",
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
    "Ftrl",
    "GroupAdaGrad",
    "Lion",
    "Nadam",
    "RMSProp",
    "Signum",
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
        The built-in that it stands for; None if no MXNet has one.
    options : dict
        Options of ours and of the built-in.
    ours : dict
        Options that only ours needs, to match the built-in.
    variants : sequence of dict
        More options to compare in tests.
    bench : str
        Its name in `mxadamax bench`; empty if that does not time it with the others.
    bench_built_in : str
        The built-in to time beside it, if that is not `built_in`.
    bench_options : dict
        Options of both in `mxadamax bench`, besides `options`.
    portable_is_step : bool
        Whether, with ``numerics="portable"``, it equals the `step` of MXNet 2's built-in.
    exceptions : dict
        Why ours does not do as the built-in does, by the kind of arrays ("float32", "float64",
        "masters" of float16 weights, "row_sparse" gradients, "zeros": gradients that were zero from
        the start) and MXNet's series. ``scripts/exceptions.py`` makes the documentation's table
        of them.
    fixed_order : dict
        Options of both with which sums do not depend on the number of threads, if by default they
        do.
    row_sparse_options : dict
        Options that the built-in needs with row_sparse gradients.
    torch : tuple of str and dict, or None
        The counterpart in ``torch.optim``, and its options.
    """

    name: str
    built_in: Optional[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    variants: Sequence[Mapping[str, Any]] = ()
    bench: str = ""
    bench_built_in: str = ""
    bench_options: Mapping[str, Any] = field(default_factory=dict)
    portable_is_step: bool = True
    exceptions: Mapping[Tuple[str, int], str] = field(default_factory=dict)
    fixed_order: Mapping[str, Any] = field(default_factory=dict)
    row_sparse_options: Mapping[str, Any] = field(default_factory=dict)
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

    def create_reference(self, kind: str = "", **options: Any) -> Optimizer:
        """Create what ours must equal, for a kind of arrays that `exceptions` names, or others.

        That is the installed MXNet's built-in as it computes by default. With
        ``numerics="portable"``, it is the `step` of MXNet 2's. Where there is no such built-in, it
        is ours, computed by MXNet's operators.
        """
        options = {"numerics": self.ours.get("numerics"), **options}
        can = (kind, SERIES) not in self.exceptions
        if options["numerics"] == PORTABLE:
            can = self.portable_is_step and not IS_MXNET_1
        ours = self.create(**{**options, "use_fused_step": False, "aggregate_num": 1})
        if not can or built_in_class(self.built_in) is None:
            return ours
        options = {**self.options, **options}
        if options.pop("numerics", None) == PORTABLE:
            options["use_fused_step"] = False
        found = self.create_built_in(**options)
        if self.built_in in ("adadelta", "adagrad", "ftrl", "rmsprop"):
            # Theirs are float32 for any weight.
            found.create_state = lambda index, weight: ours.to_built_in_state(
                ours.create_state(index, weight)
            )
        return found

    def create_built_in(self, **options: Any) -> Optimizer:
        """Create the installed MXNet's built-in; options have MXNet 2's names."""
        options = {**self.options, **options}
        taken = inspect.signature(built_in_class(self.built_in).__init__).parameters
        named = {names_in_mxnet(name, taken): value for name, value in options.items()}
        return mxnet.optimizer.create(self.built_in, **named)


_LARS: Mapping[str, Any] = {
    "portable_is_step": False,
    "exceptions": dict.fromkeys(
        (("row_sparse", 1), ("row_sparse", 2)),
        "the built-in takes norms over all rows, added in another order",
    ),
    "fixed_order": {} if IS_MXNET_1 else {"aggregate_num": 4},
}

_MOMENTS = (
    {"beta1": 0.0, "beta2": 0.0},
    {"epsilon": 0.0},
    {"epsilon": 1e-3},
    {"begin_num_update": 500},
)

OPTIMIZERS = [
    OptimizerInfo(
        *("adamax_ext", "adamax"),
        exceptions={
            ("zeros", 1): "where the built-in divides zero by zero, and the weight becomes NaN, "
            "no step is taken"
        },
        variants=_MOMENTS,
    ),
    OptimizerInfo(
        *("adam_ext", "adam"),
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
        *("adamw_ext", "adamw"),
        portable_is_step=False,
        exceptions={("float64", 2): "the built-in takes no float64 weights"},
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
        exceptions={("float64", 2): "the built-in takes no float64 weights"},
        variants=(*_MOMENTS, {"correct_bias": False}),
        bench="adabelief",
    ),
    OptimizerInfo(
        *("rmsprop_ext", "rmsprop"),
        variants=({"rho": 0.0}, {"clip_weights": 0.3}),
        bench="rmsprop",
        torch=("RMSprop", {"foreach": True}),
    ),
    OptimizerInfo(
        *("rmsprop_ext", "rmsprop", {"centered": True, "epsilon": 1e-3}),
        variants=({"momentum": 0.0}, {"clip_weights": 0.3}, {"rho": 0.5}),
        bench="rmsprop-centered",
        torch=("RMSprop", {"foreach": True, "centered": True, "momentum": 0.9}),
    ),
    OptimizerInfo(
        *("adagrad_ext", "adagrad"),
        row_sparse_options={"wd": 0.0},
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
        bench="sgd",
        torch=("SGD", {"fused": True}),
    ),
    OptimizerInfo(
        *("sgd_ext", "sgd", {"momentum": 0.9}),
        variants=({"momentum": 0.123},),
        bench="sgd-momentum",
        torch=("SGD", {"fused": True, "momentum": 0.9}),
    ),
    OptimizerInfo(
        *("nag_ext", "nag"),
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
        exceptions={
            (kind, 1): "the built-in fails with a momentum"
            for kind in ("float32", "float64", "masters", "row_sparse")
        },
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
        portable_is_step=False,
        exceptions={
            ("float64", 2): "the built-in takes no float64 weights",
            ("row_sparse", 1): "the built-in adds its norms in another order",
            ("row_sparse", 2): "the built-in counts each update twice",
        },
        variants=(
            *_MOMENTS,
            {"bias_correction": False},
            {"lower_bound": 3.0, "upper_bound": 5.0},
        ),
        bench="lamb",
        bench_options={"wd": 0.01},
    ),
    OptimizerInfo(
        *("signum_ext", "signum"),
        variants=({"momentum": 0.123, "wd_lh": 0.1},),
        bench="signum",
    ),
    OptimizerInfo(
        *("signum_ext", "signum", {"momentum": 0.0}),
        variants=({"wd_lh": 0.1},),
        bench="signsgd",
    ),
    OptimizerInfo(
        *("ftml_ext", "ftml"),
        variants=({"beta1": 0.0, "beta2": 0.0}, {"epsilon": 1e-3}, {"begin_num_update": 500}),
        bench="ftml",
    ),
    OptimizerInfo(
        *("ftrl_ext", "ftrl"),
        variants=({"lamda1": 0.0}, {"beta": 0.1}),
        bench="ftrl",
    ),
    OptimizerInfo(
        *("lars_ext", "lars"),
        **_LARS,
        variants=({"eta": 0.1}, {"epsilon": 1e-3}),
        bench="lars",
    ),
    OptimizerInfo(
        *("lars_ext", "lars", {"momentum": 0.9}),
        **_LARS,
        variants=({"momentum": 0.123}, {"eta": 0.1}),
        bench="lars-momentum",
    ),
    OptimizerInfo(
        *("lans_ext", "lans"),
        portable_is_step=False,
        exceptions={("float64", 2): "the built-in takes no float64 weights"},
        variants=(*_MOMENTS, {"lower_bound": 3.0, "upper_bound": 5.0}),
        bench="lans",
        bench_options={"wd": 0.01},
    ),
]
"""The optimizers that are compared step by step, side by side with their counterparts.

Five are not; ``tests/optimizers/test_python_built_ins.py`` compares them:

- `sgld`: its noise comes from MXNet's one generator, which a second optimizer beside it advances.
- `groupadagrad`: takes neither vectors nor weight decay, and has no kernel.
- `lbsgd`: keeps gradients from call to call, and casts masters by MXNet's operator, which truncates
  to bfloat16.
- `bertadam`: is GluonNLP's, which no MXNet has; there, row_sparse gradients give other bits than
  dense ones.
- `ccsgd`: is another name of `sgd`.
"""
