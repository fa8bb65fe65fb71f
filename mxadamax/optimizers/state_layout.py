# SPDX-License-Identifier: Apache-2.0
"""Define the arrays of a parameter's state: order, nesting, shape and dtype.

MXNet's updaters keep one object per parameter, and checkpoints contain it unchanged::

    state   = own, or (own, average) with `ema_decay`
    own     = None, one array, or a tuple of arrays or of None and an array: the rule's own states
    updater = state, or (master, state) for 16-bit weights with `multi_precision`
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Iterator, NamedTuple, Optional, Tuple

import numpy
from mxnet.ndarray import NDArray, zeros

from .. import _native
from ..dtypes import BFLOAT16, STATE_TYPES

State = Any
"""The state of a parameter in an updater: None, an array, or a tuple of states."""

Shape = Tuple[int, ...]


def is_half(dtype: Any) -> bool:
    """Return whether a dtype is float16 or bfloat16."""
    return bool(dtype in (numpy.float16, BFLOAT16))


def computed_copy(weight: NDArray) -> NDArray:
    """Copy a weight to a dense array of its op-math dtype."""
    copy = weight.astype(numpy.float32 if is_half(weight.dtype) else weight.dtype)
    return copy if copy.stype == "default" else copy.tostype("default")


def _like_weight(shape: Shape) -> Shape:
    return shape


def _scales(states: int, shape: Shape) -> Shape:
    """Return the shape of the scales of 8-bit states: a row per block, a column per state."""
    size = int(numpy.prod(shape, dtype=numpy.int64))
    return -(-size // _native.block_size), states


@dataclass(frozen=True)
class StateSpec:
    """The shape and dtype of one of a rule's arrays for a parameter.

    Parameters
    ----------
    dtype : numpy.dtype
        Its dtype.
    shape : callable, optional
        Maps the weight's shape to the array's; the same by default.
    begins_as_weight : bool, default False
        Whether it begins as a copy of the weight, instead of zeros.
    """

    dtype: Any
    shape: Callable[[Shape], Shape] = _like_weight
    begins_as_weight: bool = False

    def create(self, weight: NDArray) -> NDArray:
        """Create the array before the first update, on the weight's device."""
        if self.begins_as_weight:
            return (weight if weight.stype == "default" else weight.tostype("default")).copy()
        return zeros(self.shape(weight.shape), weight.context, dtype=self.dtype)


def state_specs(rule: str, dtype: Any, state_dtype: Optional[str]) -> Tuple[StateSpec, ...]:
    """Return the arrays of a rule for a weight of a dtype, in the rule's order."""
    states = _native.rules[rule].states
    if state_dtype == "int8":
        # Levels, or codes from 0 to 255, of which these are the bytes.
        levels = [StateSpec(numpy.int8)] * states
        return (*levels, StateSpec(numpy.float32, partial(_scales, states)))
    kept_in = STATE_TYPES[state_dtype] if state_dtype else dtype
    copies = _native.rules[rule].begin_as_weight
    return tuple(StateSpec(kept_in, begins_as_weight=is_copy) for is_copy in copies)


class ParameterState(NamedTuple):
    """The arrays of a parameter's state, by role.

    Parameters
    ----------
    master : NDArray or None
        The float32 master of a 16-bit weight.
    own : tuple of NDArray
        The rule's own arrays.
    average : NDArray or None
        The average of the weight.
    """

    master: Optional[NDArray]
    own: Tuple[NDArray, ...]
    average: Optional[NDArray]

    @property
    def own_nested(self) -> State:
        """Return the rule's own arrays, nested as for `reference_step`."""
        return self.own if len(self.own) > 1 else self.own[0] if self.own else None

    @property
    def nested(self) -> State:
        """Return all arrays, nested as in an updater."""
        state = self.own_nested
        if self.average is not None:
            state = state, self.average
        return behind_master(self.master, state)


@dataclass(frozen=True)
class StateLayout:
    """The arrays of a parameter's state, and their nesting.

    Parameters
    ----------
    rule : str
        The rule that updates the parameter.
    dtype : numpy.dtype
        The dtype of its weight.
    multi_precision : bool, default False
        Whether 16-bit weights have a float32 master.
    state_dtype : str or None, default None
        The dtype, of `STATE_TYPES`, of the rule's arrays; None for the weight's. Only `create`
        depends on it.
    has_average : bool, default False
        Whether the state includes an average of the weight.
    """

    rule: str
    dtype: Any
    multi_precision: bool = False
    state_dtype: Optional[str] = None
    has_average: bool = False

    @property
    def has_master(self) -> bool:
        """Return whether the weight has a float32 master."""
        return self.multi_precision and is_half(self.dtype)

    def create_master(self, weight: NDArray) -> Optional[NDArray]:
        """Create the master weight before the first update; None if there is none."""
        return computed_copy(weight) if self.has_master else None

    def create(self, weight: NDArray) -> State:
        """Create the state of a weight, or of its master weight, before the first update.

        The rule's own arrays are zeros on the weight's device, or copies of the weight; an average
        begins as the weight.
        """
        specs = state_specs(self.rule, weight.dtype, self.state_dtype)
        own: Tuple[Any, ...] = tuple(spec.create(weight) for spec in specs)
        if _native.rules[self.rule].none_first:
            own = (None, *own)
        average = computed_copy(weight) if self.has_average else None
        return ParameterState(None, own, average).nested

    def create_all(self, weight: NDArray) -> State:
        """Create the state of a weight as an updater keeps it, behind its master weight if any."""
        master = self.create_master(weight)
        return behind_master(master, self.create(weight if master is None else master))

    def unpack(self, state: State) -> ParameterState:
        """Unpack a state from an updater."""
        master = average = None
        if self.has_master:
            master, state = state
        if self.has_average:
            state, average = state
        return ParameterState(master, tuple(arrays_of(state)), average)


def behind_master(master: Optional[NDArray], state: State) -> State:
    """Return ``(master, state)``, or the state if there is no master."""
    return state if master is None else (master, state)


def without_average(state: State) -> State:
    """Return a state without its average."""
    first, second = state
    # A master weight is followed by another tuple; an average is an array.
    return behind_master(first, second[0]) if _is_nested(second) else first


def arrays_of(state: State) -> Iterator[Any]:
    """Yield all arrays of a state in order. Works with a built-in's states too."""
    if _is_nested(state):
        for part in state:
            yield from arrays_of(part)
    elif state is not None:
        yield state


def map_arrays(function: Callable[[Any], Any], state: State) -> State:
    """Apply a function to each array of a state."""
    if _is_nested(state):
        return tuple(map_arrays(function, part) for part in state)
    return None if state is None else function(state)


def describe(state: State) -> str:
    """Describe dtype, shape and nesting of a state or array, for messages."""
    if state is None:
        return "none"
    if isinstance(state, NDArray):
        kind = "bfloat16" if state.dtype == BFLOAT16 else numpy.dtype(state.dtype).name
        sparse = "" if state.stype == "default" else f" {state.stype}"
        return f"{kind} {tuple(state.shape)}{sparse}"
    if _is_nested(state):
        return f"({', '.join(map(describe, state))})"
    return f"a {type(state).__name__}"


def _is_nested(state: State) -> bool:
    return isinstance(state, (tuple, list))
