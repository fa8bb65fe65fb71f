# SPDX-License-Identifier: Apache-2.0
"""Compare accelerated updates with MXNet's own: ``mxadamax run --verify``."""

import copy
import os
import sys
import threading
import weakref
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy
from mxnet.ndarray import NDArray
from mxnet.optimizer import Optimizer

from ._mxnet.engine import inside_kvstore_update
from .optimizers.state_layout import arrays_of, map_arrays

_steps: "weakref.WeakKeyDictionary[Optimizer, int]" = weakref.WeakKeyDictionary()
"""How many updates of each optimizer have been checked."""


class Check:
    """The check of an update: what MXNet makes of copies, and the comparison with it.

    Parameters
    ----------
    optimizer : mxnet.optimizer.Optimizer
        The built-in.
    name : str
        Its name.
    step : int
        The number of the update, from 1.
    of : int
        How many updates are checked.
    """

    def __init__(self, optimizer: Optimizer, name: str, step: int, of: int):
        self._optimizer, self._name, self._step, self._of = optimizer, name, step, of
        self._expected: List[List[NDArray]] = []

    @classmethod
    def of_next_step(
        cls, optimizer: Optimizer, name: str, of: int, draws: bool = False
    ) -> Optional["Check"]:
        """Return the check of the next update of an optimizer; None after the last one.

        None too for an optimizer that draws random numbers, which says so once.
        """
        step = _steps.get(optimizer, 0) + 1
        if step > of:
            return None
        _steps[optimizer] = step
        if draws:
            if step == 1:
                print(
                    f"mxadamax: {name}: not checked, since it draws random numbers: to draw them "
                    "twice would give the program others",
                    file=sys.stderr,
                )
            return None
        return cls(optimizer, name, step, of)

    def compute(self, given: Sequence[Sequence[Any]], by_mxnet: Callable[..., None]) -> None:
        """Let MXNet update copies of all arrays, with a copy of the optimizer."""
        indices, weights, grads, states = given
        copies = [
            [array.copy() for array in weights],
            [array.copy() for array in grads],
            [map_arrays(NDArray.copy, state) for state in states],
        ]
        by_mxnet(_copy_of(self._optimizer), list(indices), *copies)
        self._expected = [
            [weight, *arrays_of(state)] for weight, state in zip(copies[0], copies[2])
        ]

    def compare(self, given: Sequence[Sequence[Any]], left: Sequence[int]) -> None:
        """Compare what was updated natively, and end the process where a bit differs."""
        indices, weights, _, states = given
        for position in sorted({*range(len(indices))} - {*left}):
            arrays = [weights[position], *arrays_of(states[position])]
            for k, (found, expected) in enumerate(zip(arrays, self._expected[position])):
                difference = _difference(found.asnumpy(), expected.asnumpy())
                if difference:
                    what = f"array {k} of its state" if k else "weight"
                    parameter = self._optimizer.idx2name.get(indices[position], indices[position])
                    _end(
                        f"mxadamax: {self._name}, step {self._step}: parameter {parameter!r}: "
                        f"{what} is not MXNet's: {difference}; run the program without mxadamax, "
                        "and please report this"
                    )
        if self._step == self._of:
            print(
                f"mxadamax: {self._name}: the first {self._of} updates gave MXNet's bits",
                file=sys.stderr,
            )


def _copy_of(optimizer: Optimizer) -> Optimizer:
    """Copy an optimizer with its counts and its scheduler, but not its parameters."""
    found = copy.copy(optimizer)
    entries: Dict[str, Any] = {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in vars(optimizer).items()
    }
    tables = {device: dict(table) for device, table in entries["_all_index_update_counts"].items()}
    entries["_all_index_update_counts"] = tables
    for device, table in optimizer._all_index_update_counts.items():
        if table is optimizer._index_update_count:
            entries["_index_update_count"] = tables[device]
    entries["lr_scheduler"] = copy.deepcopy(optimizer.lr_scheduler)
    found.__dict__ = entries
    return found


def _difference(found: Any, expected: Any) -> str:
    """Describe where two arrays differ in a bit; empty where they do not. NaN equals NaN."""
    found, expected = found.ravel(), expected.ravel()
    unsigned = numpy.dtype(f"u{found.dtype.itemsize}")
    same = found.view(unsigned) == expected.view(unsigned)
    same |= numpy.isnan(found) & numpy.isnan(expected)
    if same.all():
        return ""
    first = int(numpy.flatnonzero(~same)[0])
    return (
        f"element {first} is {found[first]!r} instead of {expected[first]!r}, "
        f"{(~same).sum()} of {same.size} differ"
    )


def _end(message: str) -> None:
    """End the process, where an exception may go unseen too."""
    if threading.current_thread() is threading.main_thread() and not inside_kvstore_update():
        raise SystemExit(message)
    print(message, file=sys.stderr, flush=True)
    os._exit(1)
