# SPDX-License-Identifier: Apache-2.0
"""Take the arguments of an update, as MXNet and users give them, and refuse calls in part."""

import numbers
from typing import TYPE_CHECKING, Any, Iterable, Sequence, Tuple

import numpy
from mxnet.ndarray import NDArray

from .._mxnet.compatibility import IS_MXNET_1, dtypes_of_step
from .._mxnet.engine import inside_kvstore_update
from .state_layout import State
from .step_tracker import Index

if TYPE_CHECKING:
    from .base import FusedOptimizer

Arguments = Tuple[Sequence[Index], Sequence[NDArray], Sequence[NDArray], Sequence[State]]


def as_lists(owner: str, indices: Any, weights: Any, grads: Any, states: Any) -> Arguments:
    """The arguments of an update, which are single ones or lists, as lists of one length."""
    if isinstance(indices, (str, numbers.Integral)):
        indices, weights, grads, states = [indices], [weights], [grads], [states]
    lists = []
    for name, found in zip(
        ("indices", "weights", "grads", "states"), (indices, weights, grads, states)
    ):
        if not isinstance(found, (list, tuple)):
            # What goes through the rows of an array, or in no order, is not meant.
            apart = (NDArray, numpy.ndarray, str, bytes, dict, set, frozenset)
            if isinstance(found, apart) or not isinstance(found, Iterable):
                one = "an integer, a string or " if name == "indices" else ""
                raise ValueError(
                    f"{owner}: {name} must be {one}a list with one for each parameter, got "
                    f"{type(found).__name__}"
                )
            found = list(found)
        lists.append(found)
    indices = lists[0]
    if not set(map(type, indices)) <= {int, str}:
        for index in indices:
            if not isinstance(index, (str, numbers.Integral)):
                raise ValueError(f"{owner}: an index must be an integer or a string, got {index!r}")
    count, *others = map(len, lists)
    if others != 3 * [count]:
        raise ValueError(
            f"{owner}: got {count} indices, {others[0]} weights, {others[1]} gradients and "
            f"{others[2]} states, expected as many of each"
        )
    return tuple(lists)  # type: ignore[return-value]  # Of four, as given.


def check_call(optimizer: "FusedOptimizer") -> None:
    """Raise ValueError for an update of MXNet's updater that cannot be one for this optimizer."""
    owner, option = optimizer.registered_name, optimizer._whole_model_option
    if option and inside_kvstore_update():
        raise ValueError(
            f"{owner}: {option} needs the whole model in one call, but a key-value store updates "
            "parameters one by one"
        )
    if IS_MXNET_1 and option and len(dtypes_of_step()) > 1:
        raise ValueError(
            f"{owner}: {option} needs the whole model in one call, but MXNet 1 makes one for each "
            "dtype of weights, and there are several"
        )
    if optimizer.ema_swapped_in:
        raise ValueError(f"{owner}: a step inside averaged_weights would be taken back")
