# SPDX-License-Identifier: Apache-2.0
"""Convert states of MXNet's built-ins to those of this package's optimizers, and back."""

import inspect
import warnings
from typing import Any, Dict, Mapping, Optional, Tuple, Type

from mxnet.libinfo import __version__ as mxnet_version
from mxnet.ndarray import NDArray
from mxnet.optimizer import Optimizer

from ._mxnet.compatibility import IS_MXNET_1
from .optimizers.arithmetic import BUILTIN, NAMES
from .optimizers.base import FusedOptimizer, State
from .optimizers.options import BY_NAME, Resume, names_of
from .optimizers.state_layout import map_arrays, without_average
from .optimizers.update_counts import move_counts

States = Dict[Any, State]
"""The states in an updater, by parameter."""

_IN_ANY_BUILT_IN: Mapping[str, Any] = {
    name: BY_NAME[name].off
    for name in names_of(Resume.SAME_STATES)
    if not BY_NAME[name].in_built_in
}
_IN_BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "adamax": {"epsilon": 0.0},
    "nadam": {"schedule_per_parameter": True},
    "lbsgd": {"lazy_update": True},
}
"""Our options that a built-in lacks, with the values that match it: MXNet 1's AdaMax has no
epsilon, both MXNets count Nadam's schedule per parameter, and LBSGD leaves rows alone."""

_ZERO_IS_NONE = (
    *("adam", "adamw", "adabelief", "rmsprop", "sgd", "nag", "signum", "ftml", "ftrl", "lamb"),
)
"""Built-ins with fused operators, which treat `clip_gradient` of 0 or less as no clipping."""

_MASTER_LAST = ("sgd", "ccsgd", "nag", "lars")

_OTHER_FORMULA_IN_1: Mapping[str, str] = {
    "rmsprop": "adds epsilon under the root",
    "adagrad": "adds epsilon under the root",
    "adadelta": "has no learning rate",
}

_CALLS = names_of(Resume.FROM_CALLER)
"""Options that say how MXNet calls an optimizer; conversion does not carry them over."""


def built_in_name(optimizer: Optimizer) -> Optional[str]:
    """Return the name of one of MXNet's own optimizers, None for others."""
    name = type(optimizer).__name__.lower()
    known = Optimizer.opt_registry.get(name) is type(optimizer)
    return name if known and type(optimizer).__module__.startswith("mxnet.") else None


def partner_of(optimizer: Optimizer) -> Optional[str]:
    """Return the name of the built-in counterpart of an optimizer of this package."""
    name = getattr(optimizer, "registered_name", "")
    return name[: -len("_ext")] if name.endswith("_ext") else None


def describe_optimizer(optimizer: Optimizer) -> str:
    if isinstance(optimizer, FusedOptimizer):
        return optimizer.registered_name
    built_in = built_in_name(optimizer)
    kind = type(optimizer)
    return f"MXNet's {built_in}" if built_in else f"{kind.__module__}.{kind.__qualname__}"


def from_built_in(
    states: States, source: Optimizer, name: str, like: FusedOptimizer
) -> Tuple[States, FusedOptimizer]:
    """Convert states and optimizer of a built-in to ours; `like` provides the missing options."""
    _check_formula(name, source, like.numerics)
    taken = _carried(source, like)
    for implied in (_IN_ANY_BUILT_IN, _IN_BUILT_IN.get(name, {})):
        taken.update({k: v for k, v in implied.items() if hasattr(like, k) and k not in taken})
    if takes_zero_for_none(name, source) and (taken["clip_gradient"] or 0) <= 0:
        taken["clip_gradient"] = None
    if taken.get("clip_weights") == 0:
        taken["clip_weights"] = None

    make: Any = type(like)
    default = make(numerics=like.numerics)
    options = {name: taken.get(name, getattr(like, name)) for name in _options(type(like))}
    implied_here = _IN_BUILT_IN.get(name, {})
    changed = {k: v for k, v in options.items() if v != getattr(default, k) or k in implied_here}
    target: FusedOptimizer = make(numerics=like.numerics, **changed)
    for attribute, value in taken.items():
        # Some are arrays: MXNet 2's AdamW turns rescale_grad into one.
        setattr(target, attribute, value)
    move_counts(target.__dict__, target._all_index_update_counts)
    target._take_aggregation(source)
    # For the conversion back.
    target._built_in_calls = {k: vars(source)[k] for k in _CALLS if k in vars(source)}
    found = {
        i: map_arrays(dense, target.from_built_in_state(master_first(state, name)))
        for i, state in states.items()
    }
    return found, target


def to_built_in(states: States, source: FusedOptimizer, name: str) -> Tuple[States, Optimizer]:
    """Convert states and optimizer of ours to a built-in's."""
    if name not in Optimizer.opt_registry:
        raise ValueError(f"MXNet {mxnet_version} has no optimizer {name!r}")
    _check_formula(name, source, source.numerics)
    target = Optimizer.opt_registry[name]()
    implied = {**_IN_ANY_BUILT_IN, **_IN_BUILT_IN.get(name, {})}
    for option, default in _options(type(source)).items():
        value, neutral = getattr(source, option, default), implied.get(option, default)
        entry = BY_NAME.get(option)
        means_nothing = entry is not None and entry.belongs_to
        if option in map(our_name, vars(target)) or means_nothing or value == neutral:
            continue
        advice = (entry.advice if entry is not None else "") or (
            f"if the training can do without, set trainer.optimizer.{option} = {neutral!r} and "
            "save again"
        )
        raise ValueError(
            f"was written with {option}={value!r}, which MXNet's {name} does not have; {advice}"
        )
    calls = getattr(source, "_built_in_calls", {})
    target.__dict__.update({k: v for k, v in calls.items() if k in vars(target)})
    target.__dict__.update(_carried(source, target))
    move_counts(target.__dict__, target._all_index_update_counts)
    takes_zero_too = source.arithmetic.by_operator
    if takes_zero_for_none(name, target) and target.clip_gradient == 0 and not takes_zero_too:
        raise ValueError(
            f"was written with clip_gradient=0, which MXNet's {name} takes for None; "
            "if that is what you want, set trainer.optimizer.clip_gradient = None and save again"
        )
    return {i: master_first(source.to_built_in_state(s), name) for i, s in states.items()}, target


def without_averages(states: States, source: FusedOptimizer) -> States:
    """Remove the averages from states, and the option from their optimizer."""
    source.ema_decay = None
    return {index: without_average(state) for index, state in states.items()}


def _carried(source: Optimizer, target: Optimizer) -> Dict[str, Any]:
    """Return the attributes that the target takes from the source: those that both have."""
    apart = (*_CALLS, "param_dict", "_index_update_count")
    found = {our_name(name): value for name, value in source.__getstate__().items()}
    return {k: found[our_name(k)] for k in vars(target) if our_name(k) in found and k not in apart}


def our_name(name: str) -> str:
    """The name that this package has for an attribute."""
    return NAMES.get(name, name)


def _options(cls: Type[FusedOptimizer]) -> Dict[str, Any]:
    """Return the options of an optimizer, with their defaults."""
    found: Dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, FusedOptimizer):
            parameters = inspect.signature(base.__init__).parameters.values()
            found.update({p.name: p.default for p in parameters})
    # Of the last, optimizers keep attributes that built-ins have too.
    apart = (*_CALLS, "numerics", "self", "args", "kwargs", "learning_rate", "begin_epoch")
    return {name: default for name, default in found.items() if name not in apart}


def takes_zero_for_none(name: str, built_in: Optimizer) -> bool:
    """Return whether a built-in takes a `clip_gradient` of 0 or less for none."""
    return name in _ZERO_IS_NONE and getattr(built_in, "use_fused_step", True)


def _check_formula(name: str, optimizer: Optimizer, numerics: str) -> None:
    """Refuse or warn if MXNet 1's built-in uses another formula."""
    if not IS_MXNET_1 or numerics == BUILTIN:
        return
    if name in _OTHER_FORMULA_IN_1:
        raise ValueError(
            f"MXNet {mxnet_version}'s {name} {_OTHER_FORMULA_IN_1[name]}, unlike {name}_ext: "
            "neither can continue the other's training"
        )
    clips_both = optimizer.wd != 0 and optimizer.clip_gradient is not None
    if clips_both and name in ("adamax", "adam", "nadam"):
        difference = "bounds the gradient together with the weight decay"
    elif optimizer.wd != 0 and name == "nag":
        difference = "leaves part of the weight decay out of its state"
    else:
        return
    warnings.warn(
        f"MXNet {mxnet_version}'s {name} {difference}, unlike {name}_ext: the training continues "
        "slightly differently",
        stacklevel=4,
    )


def dense(array: Any) -> Any:
    """Return an array of a state as a dense one."""
    sparse = isinstance(array, NDArray) and array.stype != "default"
    return array.tostype("default") if sparse else array


def master_first(state: State, name: str) -> State:
    """Swap master and state of a built-in of MXNet 1 that keeps the master last; or back."""
    if IS_MXNET_1 and name in _MASTER_LAST and isinstance(state, (tuple, list)):
        return state[1], state[0]
    return state
