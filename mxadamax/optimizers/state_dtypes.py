# SPDX-License-Identifier: Apache-2.0
"""Choose the dtype in which each parameter's states are stored, by the option `state_dtype`."""

import pickle
import re
from collections.abc import Mapping as AnyMapping
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy
from mxnet.ndarray import NDArray

from .. import _native
from .._mxnet.trainer import has_sparse_gradient
from ..dtypes import STATE_TYPES
from .int8_format import convert_in_place
from .state_layout import State, StateLayout, is_half, state_specs
from .step_tracker import Index

if TYPE_CHECKING:
    from .base import FusedOptimizer

StateDtype = Union[
    None, str, Mapping[str, Optional[str]], Callable[[str, Tuple[int, ...]], Optional[str]]
]
"""A value of `state_dtype`: of all parameters, by patterns of their names, or by a function."""

SMALL = 4096
"""Arrays with fewer elements have states as without `state_dtype`, if that is one dtype for all."""

EVERY_PARAMETER = ".*"
"""The pattern that matches every name."""


class PickledFunction:
    """A function as a value of `state_dtype` in a pickle, which stores it by its name.

    Parameters
    ----------
    owner : str
        Name of the optimizer, for the message.
    function : callable
        The function.

    Raises
    ------
    ValueError
        While it is pickled, if pickle cannot store the function.
    """

    def __init__(self, owner: str, function: Any):
        self.owner = owner
        self.function = function

    def __deepcopy__(self, memo: Any) -> "PickledFunction":
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        try:
            pickle.dumps(self.function)
        except Exception as error:
            raise ValueError(
                f"{self.owner}: state_dtype is a function that pickle cannot store ({error}), "
                "expected one that a module defines under its name, or a dict"
            ) from None
        return type(self), (self.owner, self.function)


def check_state_dtype(
    owner: str, rule: str, value: StateDtype, use_fused_step: Optional[bool]
) -> None:
    """Raise ValueError if a rule does not support a `state_dtype`; of a function see `chosen`."""
    if isinstance(value, AnyMapping):
        for pattern, dtype in value.items():
            _check_rule(owner, rule, dtype, use_fused_step, f" for {pattern!r}")
    elif value is None or isinstance(value, str):
        _check_rule(owner, rule, value, use_fused_step)
    elif not use_fused_step:
        raise ValueError(
            f"{owner}: state_dtype must be None with use_fused_step=False, got {value!r}"
        )


def _check_rule(
    owner: str,
    rule: str,
    dtype: Optional[str],
    use_fused_step: Optional[bool] = True,
    source: str = "",
) -> None:
    if dtype is None:
        return
    fits = _supports(rule, dtype)
    if not fits or not use_fused_step:
        why = f"rule {rule!r}" if not fits else "use_fused_step=False"
        raise ValueError(f"{owner}: state_dtype must be None with {why}, got {dtype!r}{source}")


def _supports(rule: str, dtype: str) -> bool:
    found = _native.rules[rule]
    return found.supports_int8_state if dtype == "int8" else found.supports_low_precision_state


def name_of_parameter(optimizer: "FusedOptimizer", index: Index) -> str:
    """Return the name that patterns are matched with: a parameter's number if it has no name."""
    position: Any = optimizer._positions([index])[0]
    parameter = optimizer.param_dict.get(position)
    if parameter is not None:
        return str(optimizer.idx2name.get(position, parameter.name))
    names: Mapping[Index, str] = optimizer._parameter_names
    return str(names.get(index, optimizer.idx2name.get(index, index)))


def names_to_pickle(optimizer: "FusedOptimizer", keys: Sequence[Index]) -> Dict[str, Any]:
    """Return what a process without the parameters needs to choose as this one.

    `keys` are those of the parameters in `param_dict`.
    """
    parameters = zip(keys, optimizer.param_dict.values())
    return {
        "_parameter_names": {key: name_of_parameter(optimizer, key) for key in keys},
        "_sparse_gradients": tuple(key for key, p in parameters if has_sparse_gradient(p)),
    }


def _is_sparse(optimizer: "FusedOptimizer", index: Index, weight: NDArray) -> bool:
    """Whether a parameter is known to have row_sparse gradients."""
    position: Any = optimizer._positions([index])[0]
    parameter = optimizer.param_dict.get(position)
    if parameter is not None:
        return has_sparse_gradient(parameter)
    return index in optimizer._sparse_gradients or weight.stype == "row_sparse"


def chosen(optimizer: "FusedOptimizer", index: Index, weight: NDArray) -> Optional[str]:
    """Return the dtype of a parameter's states; None if they are as without `state_dtype`.

    Parameters
    ----------
    optimizer : FusedOptimizer
        The optimizer.
    index : int or str
        The parameter.
    weight : NDArray
        The weight, or its master weight.

    Raises
    ------
    ValueError
        If a function returns what is no dtype, or one that the rule does not support.
    """
    if index in optimizer._loaded_state_dtypes:
        return optimizer._loaded_state_dtypes[index]
    return by_option(optimizer, index, weight)


def by_option(optimizer: "FusedOptimizer", index: Index, weight: NDArray) -> Optional[str]:
    """Return what `chosen` does where no loaded file has another dtype."""
    value = optimizer.state_dtype
    if value is None:
        return None
    if isinstance(value, str):
        return _by_default(optimizer, value, index, weight)
    name = name_of_parameter(optimizer, index)
    if isinstance(value, AnyMapping):
        matching = (dtype for pattern, dtype in value.items() if re.match(pattern, name))
        return next(matching, None)
    dtype = value(name, tuple(weight.shape))
    owner = f"{optimizer.registered_name}: parameter {optimizer._name(index)}"
    source = f" from {getattr(value, '__name__', repr(value))}({name!r}, {tuple(weight.shape)})"
    if dtype is not None and not (isinstance(dtype, str) and dtype in STATE_TYPES):
        raise ValueError(
            f"{owner}: state_dtype must be one of {list(STATE_TYPES)} or None, got {dtype!r}"
            f"{source}"
        )
    _check_rule(owner, optimizer.rule, dtype, source=source)
    return dtype


def _by_default(
    optimizer: "FusedOptimizer", dtype: str, index: Index, weight: NDArray
) -> Optional[str]:
    """Return a dtype that is given for all parameters, or None where it does not pay."""
    if is_half(weight.dtype) and not optimizer.multi_precision:
        # Without `state_dtype` these states have 16 bits as well.
        other = weight.dtype != STATE_TYPES[dtype]
        return None if other and _is_sparse(optimizer, index, weight) else dtype
    # Sparse arrays do not tell their size.
    is_small = numpy.prod(weight.shape, dtype=numpy.int64) < SMALL
    return None if is_small or _is_sparse(optimizer, index, weight) else dtype


def possible(optimizer: "FusedOptimizer") -> Iterator[Optional[str]]:
    """Yield the dtypes that an optimizer's states can have in a file, likely ones first."""
    value = optimizer.state_dtype
    if isinstance(value, str):
        yield value
    elif isinstance(value, AnyMapping):
        yield from filter(None, dict.fromkeys(value.values()))
    elif value is not None:
        yield from (dtype for dtype in STATE_TYPES if _supports(optimizer.rule, dtype))
    yield None


def dtypes_of_step(
    optimizer: "FusedOptimizer",
    indices: Sequence[Index],
    weights: Sequence[NDArray],
    states: Sequence[State],
) -> List[Optional[str]]:
    """Return the dtype of each parameter's states in a step with `state_dtype`.

    Looks only at states that are other objects than in the step before. On each device they are: by
    the counts of devices, which MXNet exchanges.
    """
    known = optimizer._known_state_dtypes.setdefault(id(optimizer._index_update_count), {})
    found = []
    for index, weight, state in zip(indices, weights, states):
        entry = known.get(index)
        if entry is None or entry[0] is not state:
            entry = known[index] = (state, _dtype_of(optimizer, index, weight, state))
        found.append(entry[1])
    return found


def _dtype_of(
    optimizer: "FusedOptimizer", index: Index, weight: Any, state: State
) -> Optional[str]:
    """Return the dtype of a state: what is chosen, or with one dtype for all what it has.

    States that an earlier version has made, or a program that knew other gradients, can be in that
    dtype where they would not be today, or the other way round.
    """
    if not isinstance(weight, NDArray):
        # The step will say so.
        return None
    wanted = chosen(optimizer, index, weight)
    value = optimizer.state_dtype
    layout = optimizer.state_layout(weight)
    try:
        own = layout.unpack(state).own
    except (TypeError, ValueError):
        return wanted
    # What MXNet has loaded of an earlier version.
    convert_in_place(own, optimizer)
    if not isinstance(value, str):
        return wanted
    dtype = getattr(own[0], "dtype", None) if own else None
    for candidate in (wanted, value if wanted is None else None):
        if dtype is not None and dtype == own_dtype(layout, candidate):
            return candidate
    return wanted


def own_dtype(layout: StateLayout, state_dtype: Optional[str]) -> Any:
    """Return the dtype of the first of a rule's own arrays."""
    computed = numpy.float32 if layout.has_master else layout.dtype
    return state_specs(layout.rule, computed, state_dtype)[0].dtype
