# SPDX-License-Identifier: Apache-2.0
"""The arrays that a parameter keeps: which, in which order, how nested, of which shape and dtype.

MXNet's updaters keep one object for each parameter, which checkpoints hold as it is::

    state   = own, or (own, average) with `ema_decay`
    own     = None, one array, or a tuple of arrays: what the rule keeps
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
"""What an updater keeps for a parameter: None, an array, or a tuple of such."""

Shape = Tuple[int, ...]


def is_half(dtype: Any) -> bool:
    """Whether numbers have 16 bits."""
    return bool(dtype in (numpy.float16, BFLOAT16))


def computed_copy(weight: NDArray) -> NDArray:
    """Copy a weight to the dtype that it is computed in, dense."""
    copy = weight.astype(numpy.float32 if is_half(weight.dtype) else weight.dtype)
    return copy if copy.stype == "default" else copy.tostype("default")


def _like_weight(shape: Shape) -> Shape:
    return shape


def _scales(states: int, shape: Shape) -> Shape:
    """The scales of so many 8-bit states: one of each for each block of elements."""
    size = int(numpy.prod(shape, dtype=numpy.int64))
    return -(-size // _native.block_size), states


def check_state_dtype(
    owner: str, rule: str, state_dtype: Optional[str], use_fused_step: Optional[bool]
) -> None:
    """Raise ValueError where the states of a rule cannot be kept in a `state_dtype`."""
    if state_dtype is None:
        return
    found = _native.rules[rule]
    int8 = state_dtype == "int8"
    fits = found.supports_int8_state if int8 else found.supports_low_precision_state
    if not fits or not use_fused_step:
        why = f"rule {rule!r}" if not fits else "use_fused_step=False"
        raise ValueError(f"{owner}: state_dtype must be None with {why}, got {state_dtype!r}")


@dataclass(frozen=True)
class StateSpec:
    """One array of what a rule keeps for a parameter.

    Parameters
    ----------
    dtype : numpy.dtype
        Its dtype.
    shape : callable, optional
        Its shape from the weight's; the same by default.
    """

    dtype: Any
    shape: Callable[[Shape], Shape] = _like_weight


def state_specs(rule: str, dtype: Any, state_dtype: Optional[str]) -> Tuple[StateSpec, ...]:
    """The arrays that a rule keeps for a weight of a dtype, in its order."""
    states = _native.rules[rule].states
    if state_dtype == "int8":
        levels = (StateSpec(numpy.int8), StateSpec(numpy.uint8))[:states]
        return (*levels, StateSpec(numpy.float32, partial(_scales, states)))
    kept_in = STATE_TYPES[state_dtype] if state_dtype else dtype
    return (StateSpec(kept_in),) * states


class ParameterState(NamedTuple):
    """The arrays that a parameter keeps, by what they are.

    Parameters
    ----------
    master : NDArray or None
        The float32 copy of a 16-bit weight.
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
        """The rule's own arrays as `reference_step` takes them."""
        return self.own if len(self.own) > 1 else self.own[0] if self.own else None

    @property
    def nested(self) -> State:
        """All arrays as an updater keeps them."""
        state = self.own_nested
        if self.average is not None:
            state = state, self.average
        return behind_master(self.master, state)


@dataclass(frozen=True)
class StateLayout:
    """Which arrays a parameter keeps.

    Parameters
    ----------
    rule : str
        The rule by which it is updated.
    dtype : numpy.dtype
        The dtype of its weight.
    multi_precision : bool, default False
        Whether 16-bit weights have a float32 copy.
    state_dtype : str or None, default None
        In which of `STATE_TYPES` the rule's arrays are kept.
    has_average : bool, default False
        Whether there is an average of the weight.
    """

    rule: str
    dtype: Any
    multi_precision: bool = False
    state_dtype: Optional[str] = None
    has_average: bool = False

    @property
    def has_master(self) -> bool:
        """Whether there is a float32 copy of the weight."""
        return self.multi_precision and is_half(self.dtype)

    def create_master(self, weight: NDArray) -> Optional[NDArray]:
        """The master weight before the first update; None where there is none."""
        return computed_copy(weight) if self.has_master else None

    def create(self, weight: NDArray) -> State:
        """The state of a weight, or of its master weight, before the first update.

        What the rule keeps is zero, on the weight's device; an average begins as the weight.
        """
        own = tuple(
            zeros(spec.shape(weight.shape), weight.context, dtype=spec.dtype)
            for spec in state_specs(self.rule, weight.dtype, self.state_dtype)
        )
        average = computed_copy(weight) if self.has_average else None
        return ParameterState(None, own, average).nested

    def unpack(self, state: State) -> ParameterState:
        """Take apart what an updater keeps."""
        master = average = None
        if self.has_master:
            master, state = state
        if self.has_average:
            state, average = state
        return ParameterState(master, tuple(arrays_of(state)), average)


def behind_master(master: Optional[NDArray], state: State) -> State:
    """Nest a state behind the master weight, if there is one."""
    return state if master is None else (master, state)


def without_average(state: State) -> State:
    """What is left of a state with an average."""
    first, second = state
    # Behind a master weight there is another tuple; an average is an array.
    return behind_master(first, second[0]) if _is_nested(second) else first


def arrays_of(state: State) -> Iterator[Any]:
    """All arrays of a state, in their order, also of a built-in's."""
    if _is_nested(state):
        for part in state:
            yield from arrays_of(part)
    elif state is not None:
        yield state


def map_arrays(function: Callable[[Any], Any], state: State) -> State:
    """A state with what a function makes of each of its arrays."""
    if _is_nested(state):
        return tuple(map_arrays(function, part) for part in state)
    return None if state is None else function(state)


def describe(state: State) -> str:
    """Dtype, shape and nesting of a state, or of an array, for messages."""
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
