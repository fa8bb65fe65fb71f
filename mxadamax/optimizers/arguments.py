# SPDX-License-Identifier: Apache-2.0
"""Normalize the arguments of an update, and refuse calls that an optimizer cannot serve."""

import numbers
from typing import TYPE_CHECKING, Any, Iterable, Sequence, Tuple

import numpy
from mxnet.ndarray import NDArray

from .. import _native
from .._mxnet.compatibility import IS_MXNET_1, dtypes_of_step
from .._mxnet.engine import inside_kvstore_update
from .state_layout import State
from .step_tracker import Index

if TYPE_CHECKING:
    from .base import FusedOptimizer

Arguments = Tuple[Sequence[Index], Sequence[NDArray], Sequence[NDArray], Sequence[State]]


class KnownArrays(Tuple[NDArray, ...]):
    """The weights of a step, or its gradients, which a Trainer has compared with those before.

    They are dense, and none has changed since it was given together with the same others.

    Attributes
    ----------
    cache : StateCache
        What steps of these weights leave behind for the next one.
    step_before : object
        What the last step of one of MXNet's optimizers found out.
    """

    cache: _native.StateCache
    step_before: Any = None

    @classmethod
    def of_weights(cls, weights: Iterable[NDArray]) -> "KnownArrays":
        """Return weights, with a cache of their own."""
        known = cls(weights)
        known.cache = _native.StateCache()
        return known


def is_known(arrays: Sequence[NDArray]) -> bool:
    """Return whether arrays are dense, and known not to have changed."""
    return type(arrays) is KnownArrays


def as_lists(owner: str, indices: Any, weights: Any, grads: Any, states: Any) -> Arguments:
    """Convert the arguments of an update, single ones or lists, to lists of equal length."""
    if isinstance(indices, (str, numbers.Integral)):
        indices, weights, grads, states = [indices], [weights], [grads], [states]
    lists = []
    for name, found in zip(
        ("indices", "weights", "grads", "states"), (indices, weights, grads, states)
    ):
        if not isinstance(found, (list, tuple)):
            # Iterating these would visit rows or characters, or have no order.
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
            f"{others[2]} states, expected the same number of each"
        )
    return tuple(lists)  # type: ignore[return-value]  # Of four, as given.


def check_call(optimizer: "FusedOptimizer") -> None:
    """Raise ValueError if this call of MXNet's updater does not suit the optimizer's options."""
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
        raise ValueError(f"{owner}: a step inside averaged_weights would be undone")
