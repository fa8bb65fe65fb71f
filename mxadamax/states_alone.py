# SPDX-License-Identifier: Apache-2.0
"""Find the optimizer of a file that holds states alone, as `Updater.get_states()` writes them."""

import inspect
import warnings
from dataclasses import replace
from typing import Any, Dict, Iterator, List, Mapping, Optional

import mxnet
from mxnet.ndarray import NDArray
from mxnet.optimizer import Optimizer

from .conversion import States, dense, describe_optimizer, our_name
from .dtypes import DTYPES
from .optimizers.base import FusedOptimizer, State
from .optimizers.options import Resume, names_of
from .optimizers.state_dtypes import possible
from .optimizers.state_layout import arrays_of, describe, map_arrays

COUNT = "begin_num_update"
"""The argument by which MXNet's optimizers take the number of updates so far."""

_NOT_ALONE: Mapping[str, str] = {"lbsgd": "sums of gradients"}
"""What optimizers keep besides states and counts, without which none can continue."""

_WEIGHTS = tuple(DTYPES[name].numpy for name in ("float32", "float64", "float16", "bfloat16"))
"""The dtypes of weights."""

_NO_HYPERPARAMETERS = (
    *("self", "args", "kwargs", "param_idx2name", "sym", "param_dict", "numerics", COUNT),
    *names_of(Resume.FROM_CALLER),
)
"""Arguments of constructors that say nothing of the formula, or only for the file."""


def optimizer_of_states(
    name: str, params: Mapping[str, Any], like: Optional[FusedOptimizer] = None
) -> Optimizer:
    """Return the optimizer that wrote states alone, as it was then.

    Parameters
    ----------
    name : str
        Its name in MXNet's registry.
    params : dict
        Arguments of its constructor.
    like : FusedOptimizer, optional
        The program's optimizer. It has the hyperparameters that `params` does not name; without
        it, the constructor has.

    Raises
    ------
    ValueError
        If there is no such optimizer, it does not take these arguments, or `like` needs the number
        of updates and `params` does not name it.
    """
    if not isinstance(name, str) or name.lower() not in Optimizer.opt_registry:
        raise ValueError(f"optimizer must be a name in MXNet's registry, got {name!r}")
    cls = Optimizer.opt_registry[name.lower()]
    params = dict(params)
    made = _create(cls, params) if like is None else _like_the_programs(cls, params, like)
    plain = name.lower()[: -len("_ext")] if isinstance(made, FusedOptimizer) else name.lower()
    if plain in _NOT_ALONE:
        raise ValueError(
            f"holds only states of {describe_optimizer(made)}, which also keeps "
            f"{_NOT_ALONE[plain]}; save them with mxadamax.save_states"
        )
    return made


def check_nesting(states: States, writer: Optimizer, names: Mapping[Any, str]) -> None:
    """Raise ValueError unless an optimizer keeps such arrays, whatever the weights are.

    `names` says what messages call a parameter, by its key.
    """
    for key, state in states.items():
        if describe(map_arrays(dense, state)) not in _possible(state, writer):
            likely = next(_possible(state, writer))
            raise ValueError(
                f"{names.get(key, f'parameter {key!r}')}: holds a state {describe(state)}, "
                f"expected {likely} of {describe_optimizer(writer)}; name the optimizer that wrote "
                "the file, and those of its options that decide on states, such as momentum and "
                "multi_precision"
            )


def _possible(state: State, writer: Optimizer) -> Iterator[str]:
    """Describe the states that an optimizer keeps for a weight of a state's shape, likely first."""
    arrays = [dense(array) for array in arrays_of(state) if isinstance(array, NDArray)]
    like = arrays[0] if arrays else mxnet.nd.zeros((1,))
    first = [kind for kind in _WEIGHTS if kind == like.dtype]
    for kind in dict.fromkeys((*first, *_WEIGHTS)):
        weight = like.astype(kind)
        if isinstance(writer, FusedOptimizer) and writer.state_dtype is not None:
            layout = writer.state_layout(weight)
            for dtype in possible(writer):
                yield describe(replace(layout, state_dtype=dtype).create_all(weight))
            continue
        with warnings.catch_warnings():
            # MXNet's own advise against 16-bit weights without master weights.
            warnings.simplefilter("ignore", UserWarning)
            expected = writer.create_state_multi_precision(0, weight)
        yield describe(expected)


def _create(cls: Any, params: Mapping[str, Any]) -> Optimizer:
    taken = {our_name(name) for name in _arguments(cls)}
    unknown = [name for name in params if our_name(name) not in taken]
    if unknown:
        raise ValueError(f"optimizer_params: {cls.__name__} has no argument {unknown[0]!r}")
    try:
        return cls(**params)
    except TypeError as error:
        raise ValueError(f"optimizer_params: {error}") from None


def _like_the_programs(cls: Any, params: Dict[str, Any], like: FusedOptimizer) -> Optimizer:
    """Return an optimizer with some arguments, and all others as the program's optimizer."""
    if COUNT not in params:
        if not like.begin_num_update:
            raise ValueError(
                "holds only states, which do not say the number of updates so far: name it in "
                f"optimizer_params, as {{{COUNT!r}: 1000}}; 0 counts anew, as MXNet does"
            )
        params[COUNT] = like.begin_num_update
    own: Dict[str, Any] = {}
    if issubclass(cls, FusedOptimizer):
        own["numerics"] = params.setdefault("numerics", like.numerics)
    default = _create(cls, own)
    attributes = {our_name(attribute): value for attribute, value in vars(default).items()}
    given = {our_name(name) for name in params}
    rest = {}
    for argument in set(_arguments(cls)) - {*_NO_HYPERPARAMETERS, "learning_rate", "lr_scheduler"}:
        name = our_name(argument)
        if name in attributes and name not in given:
            value = getattr(like, name, attributes[name])
            if value != attributes[name]:
                rest[argument] = value
    made = _create(cls, {**rest, **params})
    if not given & {"learning_rate", "lr_scheduler"}:
        made.lr, made.lr_scheduler = like.lr, like.lr_scheduler
    return made


def _arguments(cls: Any) -> List[str]:
    """Return the names of the arguments that a constructor and those of its bases take."""
    bases = (base for base in cls.__mro__ if issubclass(base, Optimizer))
    return [name for base in bases for name in inspect.signature(base.__init__).parameters]
