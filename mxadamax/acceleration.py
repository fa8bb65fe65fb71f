# SPDX-License-Identifier: Apache-2.0
"""Let MXNet's own optimizers update natively, in programs that nobody edits."""

import atexit
import functools
import inspect
import math
import os
import sys
import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from mxnet.optimizer import Optimizer, Updater

from ._mxnet.compatibility import IS_MXNET_1, WHOLE_MODEL, hands_over_by_type
from .acceleration_check import Check
from .stand_in import StandIn, twin_of


class AccelerationReport(Dict[str, Dict[str, int]]):
    """How many updates were native, and why others were not, by the name of the built-in.

    Examples
    --------
    >>> with mxadamax.accelerated():
    ...     update = mx.optimizer.get_updater(mx.optimizer.Adamax())
    ...     update(0, mx.nd.ones((3,)), mx.nd.ones((3,)))
    >>> mxadamax.acceleration_report()["adamax"]["native"] >= 1
    True
    """

    def __str__(self) -> str:
        lines = []
        for name, counts in sorted(self.items()):
            native = counts.get(NATIVE, 0)
            lines.append(f"{name}: {native} update{'s' * (native != 1)} native")
            for reason, count in counts.items():
                if reason != NATIVE:
                    lines.append(f"  {count} by MXNet: {reason}")
        return "\n".join(lines) or "no update yet"


NATIVE = "native"
"""The entry of an optimizer in the report that is no reason."""


class _OfThread(threading.local):
    """What a thread does.

    Parameters
    ----------
    by_mxnet : bool
        Whether MXNet's own methods run, so that what they call is not taken from them again.
    """

    by_mxnet = False


_thread = _OfThread()
_report = AccelerationReport()
_to_check = 0
"""How many steps of each optimizer are computed both ways."""
_stand_ins: "weakref.WeakKeyDictionary[Optimizer, StandIn]" = weakref.WeakKeyDictionary()
_replaced: List[Tuple[Any, str, Any]] = []
"""The class, the name and what was there, for each method that was replaced."""
_ABSENT = object()
_call_of_mxnet = Updater.__call__
_MANY = 2**31 - 1
"""More parameters than there are, by which an updater does not take them together in any order."""
_METHODS = ("update", "update_multi_precision", "step", "fused_step")
"""The methods by which an optimizer of MXNet's updates."""
_expected: Dict[Any, Dict[str, Any]] = {}
"""These methods of each class, as they are while it is accelerated."""


def accelerate() -> None:
    """Let the built-in optimizers of the installed MXNet update natively, with the same bits.

    Their classes, attributes, states, pickles and files stay what they are: files that are written
    meanwhile load where this package is not installed. Subclasses keep their own way, and MXNet
    updates what cannot be updated natively with the same bits; :func:`acceleration_report` says how
    much that was, and why. To call it twice is to call it once.

    Notes
    -----
    Two things differ from MXNet: a weight of MXNet 1's AdaMax whose gradient is zero from the start
    takes no step, where MXNet makes it NaN; and gradients are only read, where some of MXNet 2's
    optimizers leave them rescaled.

    Examples
    --------
    >>> mxadamax.accelerate()
    >>> trainer = gluon.Trainer(net.collect_params(), "adam")
    >>> type(trainer.optimizer).__module__.startswith("mxnet")
    True
    >>> mxadamax.decelerate()
    """
    if _replaced:
        return
    classes = {
        found for found in Optimizer.opt_registry.values() if found.__module__.startswith("mxnet.")
    }
    for found in sorted(classes, key=lambda each: each.__name__):
        if twin_of(found) is not None and _is_untouched(found):
            for name in _METHODS[:2]:
                _replace(found, name, _method(found, getattr(found, name), name))
            _expected[found] = {name: getattr(found, name, None) for name in _METHODS}
    _replace(Updater, "__call__", _call(_call_of_mxnet))
    if "mxnet.gluon" in sys.modules and os.environ.get("DMLC_ROLE") != "server":
        _accelerate_trainers()


def decelerate() -> None:
    """Undo :func:`accelerate`: all of MXNet is as it was."""
    while _replaced:
        where, name, before = _replaced.pop()
        if before is _ABSENT:
            delattr(where, name)
        else:
            setattr(where, name, before)
    _expected.clear()
    _stand_ins.clear()


@contextmanager
def accelerated() -> Iterator[None]:
    """Accelerate what runs inside; see :func:`accelerate`.

    Examples
    --------
    >>> with mxadamax.accelerated():
    ...     trainer = gluon.Trainer(net.collect_params(), "sgd")
    """
    was_on = bool(_replaced)
    accelerate()
    try:
        yield
    finally:
        if not was_on:
            decelerate()


def acceleration_report() -> AccelerationReport:
    """Return how many updates of each built-in were native so far, and why others were not."""
    return AccelerationReport({name: dict(counts) for name, counts in _report.items()})


def verify_first(steps: int) -> None:
    """Compute the first steps of each optimizer both ways, and end the process at another bit."""
    global _to_check
    _to_check = steps


def print_report_at_exit() -> None:
    """Let the process end with the report."""
    atexit.register(lambda: print(f"mxadamax: {acceleration_report()}", file=sys.stderr))


def _replace(where: Any, name: str, by: Any) -> None:
    _replaced.append((where, name, vars(where).get(name, _ABSENT)))
    setattr(where, name, by)


def _is_untouched(cls: Any) -> bool:
    """Return whether a class has MXNet's own methods, and not those of somebody else."""
    found = (getattr(cls, name, None) for name in _METHODS)
    modules = (getattr(method, "__module__", None) or "" for method in found if method is not None)
    return all(module.startswith("mxnet.") for module in modules)


def _stand_in(optimizer: Optimizer) -> Optional[StandIn]:
    """Return what computes for an optimizer; None if it updates in a way of its own."""
    cls = type(optimizer)
    expected = _expected.get(cls)
    if expected is None:
        return None
    own = vars(optimizer)
    for name, method in expected.items():
        if name in own or getattr(cls, name, None) is not method:
            return None
    found = _stand_ins.get(optimizer)
    if found is None:
        found = _stand_ins[optimizer] = StandIn(optimizer)
    return found


def _is_left_to_mxnet(stand_in: StandIn, weights: Any) -> bool:
    """Return whether MXNet updates these weights, or this one, as fast; counts them then."""
    reason = stand_in.left_to_mxnet(weights)
    if not reason:
        return False
    _count(stand_in, {reason: len(weights) if isinstance(weights, (list, tuple)) else 1})
    return True


def _update(
    optimizer: Optimizer,
    stand_in: StandIn,
    given: Sequence[Sequence[Any]],
    by_mxnet: Callable[..., None],
    at_once: float = math.inf,
) -> List[int]:
    """Update natively what can be; return the positions of what MXNet must update.

    `at_once` is how many parameters MXNet would update in one call.
    """
    check = None
    if _to_check:
        draws = stand_in.traits.draws
        check = Check.of_next_step(optimizer, stand_in.built_in, _to_check, draws)
    if check is not None:
        with _by_mxnet():
            check.compute(given, by_mxnet)
    indices, weights, grads, states = given
    left, reasons = stand_in.update(optimizer, indices, weights, grads, states, at_once)
    if check is not None:
        check.compare(given, left)
    _count(stand_in, {NATIVE: len(given[0]) - len(left), **reasons})
    return left


def _count(stand_in: StandIn, more: Mapping[str, int]) -> None:
    """Count updates for the report."""
    counts = _report.setdefault(stand_in.built_in, {NATIVE: 0})
    for reason, count in more.items():
        counts[reason] = counts.get(reason, 0) + count


class _by_mxnet:  # noqa: N801  # Called like a function.
    """Let MXNet's own methods run.

    A generator would take twice the time, which shows where MXNet's step is a single operator.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before, _thread.by_mxnet = _thread.by_mxnet, True

    def __exit__(self, *error: Any) -> None:
        _thread.by_mxnet = self._before


def _method(cls: Any, original: Callable[..., None], name: str) -> Callable[..., None]:
    """Return what stands for a class's `update` or `update_multi_precision`."""

    signature = inspect.signature(original)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> None:
        stand_in = None if type(self) is not cls or _thread.by_mxnet else _stand_in(self)
        if stand_in is None or (name == "update" and self.multi_precision):
            original(self, *args, **kwargs)
            return
        # Names of arguments differ from one MXNet to the next.
        index, weight, grad, state = signature.bind(self, *args, **kwargs).args[1:]
        if _is_left_to_mxnet(stand_in, weight):
            with _by_mxnet():
                original(self, index, weight, grad, state)
            return
        is_list = isinstance(index, (list, tuple))
        given = [index, weight, grad, state] if is_list else [[index], [weight], [grad], [state]]
        left = _update(self, stand_in, given, original)
        if not left:
            return
        with _by_mxnet():
            if len(left) < len(given[0]):
                given = [[column[position] for position in left] for column in given]
                original(self, *given)
            else:
                original(self, index, weight, grad, state)

    return method


def _call_with_states(
    call: Callable[..., None],
    optimizer: Optimizer,
    indices: Any,
    weights: Any,
    grads: Any,
    states: Any,
) -> None:
    """Let MXNet's updater update parameters with these states."""
    updater = Updater(optimizer)
    updater.states = dict(zip(indices, states))
    updater.states_synced = dict.fromkeys(indices, True)
    call(updater, indices, grads, weights)


class _Collector:
    """Stands for an optimizer in MXNet's updater, and keeps the calls by which that would update.

    Parameters
    ----------
    optimizer : mxnet.optimizer.Optimizer
        The optimizer.
    by_type : bool
        Whether the updater hands over the parameters of one dtype after those of another.
    """

    def __init__(self, optimizer: Optimizer, by_type: bool):
        self._optimizer = optimizer
        self.aggregate_num = _MANY if by_type else WHOLE_MODEL
        self.calls: List[Sequence[Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def update_multi_precision(self, *call: Any) -> None:
        """Keep the arguments of an update."""
        self.calls.append(call)


def _joined(calls: Sequence[Sequence[Any]]) -> List[List[Any]]:
    """Return indices, weights, gradients and states of all calls."""
    return [[x for part in column for x in part] for column in zip(*calls)]


def _call(original: Callable[..., None]) -> Callable[..., None]:
    """Return what stands for the updater's call: all parameters are updated at once."""

    @functools.wraps(original)
    def call(self: Any, index: Any, grad: Any, weight: Any) -> None:
        optimizer = self.optimizer
        stand_in = None if type(self) is not Updater or _thread.by_mxnet else _stand_in(optimizer)
        if stand_in is None:
            original(self, index, grad, weight)
            return
        if _is_left_to_mxnet(stand_in, weight):
            with _by_mxnet():
                original(self, index, grad, weight)
            return
        # The order of MXNet's updates stays.
        collector = _Collector(optimizer, by_type=hands_over_by_type(self))
        one_by_one = IS_MXNET_1 and not self.aggregate_updates
        # MXNet's own call makes states and whatever else it makes, and updates nothing.
        in_place = SimpleNamespace(
            optimizer=collector,
            states=self.states,
            states_synced=self.states_synced,
            aggregate_updates=not one_by_one,
            sync_state_context=self.sync_state_context,
        )
        original(in_place, index, grad, weight)
        given = list(zip(*collector.calls)) if one_by_one else _joined(collector.calls)
        if given and given[0]:
            _update_at_once(original, self, stand_in, given)

    return call


def _update_at_once(
    call: Callable[..., None], updater: Any, stand_in: StandIn, given: Sequence[Sequence[Any]]
) -> None:
    """Update all parameters of an updater, which have states; by its own call what must be."""
    by_mxnet = functools.partial(_call_with_states, call)
    optimizer = updater.optimizer
    at_once = optimizer.aggregate_num if updater.aggregate_updates else 1
    left = _update(optimizer, stand_in, given, by_mxnet, at_once)
    if left:
        indices, weights, grads, _ = given
        columns = (indices, grads, weights)
        with _by_mxnet():
            call(updater, *([column[position] for position in left] for column in columns))


def _accelerate_trainers() -> None:
    """Let Gluon's Trainer update like `mxadamax.Trainer`."""
    # Not at import: a parameter server imports this inside the import of MXNet, and has no Gluon.
    from mxnet.gluon import Trainer

    from . import trainer as repeated

    original = Trainer._update
    if not original.__module__.startswith("mxnet."):
        return

    @functools.wraps(original)
    def update(self: Any, *args: Any, **kwargs: Any) -> None:
        if not repeated.updated_as_before(self, update_of):
            original(self, *args, **kwargs)
            repeated.remember(self, update_of)

    def update_of(updater: Any) -> Any:
        stand_in = None if _thread.by_mxnet else _stand_in(updater.optimizer)
        if stand_in is None or stand_in.traits.left_to_mxnet:
            return repeated.update_of_ours(updater)
        return functools.partial(_update_calls, stand_in)

    # Whatever stood there when that was imported.
    repeated.plain_calls[:] = [_call_of_mxnet, Updater.__call__]
    _replace(Trainer, "_update", update)


def _update_calls(stand_in: StandIn, updater: Any, calls: Sequence[Sequence[Any]]) -> None:
    """Do what an updater does with the parameters of these calls, which have states."""
    if len(calls) == 1:
        if not _is_left_to_mxnet(stand_in, calls[0][1]):
            _update_at_once(_call_of_mxnet, updater, stand_in, calls[0])
            return
        # One parameter, as MXNet's updater hands it over.
        in_lists = updater.aggregate_updates or not IS_MXNET_1
        given = [list(x) if in_lists else x[0] for x in calls[0]]
        with _by_mxnet():
            updater.optimizer.update_multi_precision(*given)
        return
    indices, weights, grads, _ = _joined(calls)
    updater(indices, grads, weights)
