# SPDX-License-Identifier: Apache-2.0
"""A Trainer whose step does not visit parameters in Python, if it is like the step before it."""

import weakref
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from mxnet.gluon import Constant, Parameter
from mxnet.gluon import Trainer as GluonTrainer
from mxnet.optimizer import Optimizer, Updater
from mxnet.util import is_np_array

from . import _native
from ._mxnet.compatibility import IS_MXNET_1, WHOLE_MODEL, hands_over_by_type
from ._mxnet.engine import native
from ._mxnet.trainer import classic
from .optimizers.arguments import KnownArrays
from .optimizers.base import FusedOptimizer

__all__ = ["Trainer"]

Call = Tuple[Tuple[int, ...], KnownArrays, KnownArrays, Tuple[Any, ...]]
"""Indices, weights, gradients and states."""

Update = Callable[[Updater, Sequence[Call]], None]
"""Do what an updater does with the parameters of these calls, which have states."""

UpdateOf = Callable[[Updater], Optional[Update]]
"""Return how an updater updates the whole model; None if it visits parameters one by one."""


class Trainer(GluonTrainer):  # type: ignore[misc]  # MXNet has no types.
    """Gluon's Trainer, with less time for each parameter and step.

    A step whose arrays are those of the step before it goes to the optimizer in one native call.
    Any other step is Gluon's own: the first one, one with stale gradients, one after a change of
    parameters, one with automatic mixed precision or on a key-value store, and each one of an
    optimizer that is not this package's. Results, warnings and exceptions are Gluon's always.

    Arguments, attributes and methods are those of :class:`mxnet.gluon.Trainer`. With
    :func:`accelerate`, that class itself does the same.

    Examples
    --------
    >>> trainer = mxadamax.Trainer(net.collect_params(), "adam_ext", {"learning_rate": 0.01})
    >>> isinstance(trainer, gluon.Trainer)
    True
    """

    def _update(self, ignore_stale_grad: bool = False) -> None:
        if not updated_as_before(self, update_of_ours):
            super()._update(ignore_stale_grad)
            remember(self, update_of_ours)


def update_of_ours(updater: Updater) -> Optional[Update]:
    """Return how an updater with an optimizer of this package updates the whole model."""
    optimizer = updater.optimizer
    if not (
        isinstance(optimizer, FusedOptimizer)
        and type(optimizer).__module__.startswith("mxadamax.")
        and updater.aggregate_updates
        and optimizer.aggregate_num == WHOLE_MODEL
    ):
        return None
    return _update_natively


def _update_natively(updater: Updater, calls: Sequence[Call]) -> None:
    for call in calls:
        updater.optimizer.update_multi_precision(*call)


class _OnDevice(NamedTuple):
    """What one updater did in a step.

    Parameters
    ----------
    device_id : int
        The number of the device.
    calls : list of Call
        The calls of the optimizer.
    """

    device_id: int
    calls: List[Call]


class _Step(NamedTuple):
    """A step of a Trainer that can be repeated.

    Parameters
    ----------
    arrays : TrainerArrays
        The arrays of all parameters.
    devices : list of _OnDevice
        What each updater did.
    allows_np : bool
        Whether updaters take NumPy-like arrays.
    """

    arrays: _native.TrainerArrays
    devices: List[_OnDevice]
    allows_np: bool


class _Memory:
    """What is known of a Trainer: its last step, and for how many steps it is not to be looked at.

    Where arrays change at every step, to remember one would be for nothing.
    """

    def __init__(self) -> None:
        self.step: Optional[_Step] = None
        self.was_used = False
        self.steps_to_wait = 0
        self.next_wait = 1

    def keep(self, step: Optional[_Step]) -> None:
        """Keep a step; None if it cannot be repeated."""
        self.step, self.was_used = step, False
        if step is None:
            self.forget()

    def forget(self) -> None:
        """Forget the last step, which has changed."""
        self.step = None
        self.next_wait = 1 if self.was_used else min(2 * self.next_wait, 64)
        self.steps_to_wait = self.next_wait - 1


_memories: "weakref.WeakKeyDictionary[GluonTrainer, _Memory]" = weakref.WeakKeyDictionary()

_READ = {name: vars(Parameter)[name] for name in ("grad_req", "list_data", "list_grad")}
"""What Gluon reads arrays by."""

plain_calls = [Updater.__call__]
"""MXNet's own call of an updater, and what stands for it under `accelerate`."""

_set_device = "_set_current_context" if IS_MXNET_1 else "_set_current_device"


def _updates_locally(trainer: GluonTrainer) -> bool:
    """Whether a Trainer updates by its updaters, with nothing before that can prevent it."""
    if getattr(type(trainer), "__hash__", None) is not object.__hash__:
        # A class of somebody's, by which nothing can be looked up.
        return False
    on_store = trainer._kvstore and trainer._update_on_kvstore
    return not on_store and getattr(trainer, "_amp_loss_scaler", None) is None


def _is_plain(trainer: GluonTrainer) -> bool:
    """Whether parameters and updaters are Gluon's own, and not somebody's replacements."""
    return (
        type(trainer._params) is list
        and all(vars(Parameter)[name] is method for name, method in _READ.items())
        and all(
            type(updater) is Updater and type(updater.states) is type(updater.states_synced) is dict
            for updater in trainer._updaters
        )
        and Updater.__call__ in plain_calls
    )


def _allows_np(optimizer: Optimizer) -> bool:
    """Whether an updater takes NumPy-like arrays, as it finds out itself."""
    return bool(getattr(optimizer, "allow_np_array", is_np_array()))


def updated_as_before(trainer: GluonTrainer, update_of: UpdateOf) -> bool:
    """Update as in the last step, and return True; False, and nothing done, if this one differs."""
    memory = _memories.get(trainer) if _updates_locally(trainer) else None
    if memory is None or memory.step is None:
        return False
    step, updaters = memory.step, trainer._updaters
    updates = [update_of(updater) for updater in updaters]
    if not all(updates) or not _is_plain(trainer):
        return False
    optimizer = trainer._optimizer
    if _allows_np(optimizer) != step.allows_np:
        return False
    if len(step.devices[0].calls) > 1 and getattr(optimizer, "_whole_model_option", None):
        # MXNet 1 calls an optimizer once for each dtype, which refuses that.
        return False
    states = [(updater.states, updater.states_synced) for updater in updaters]
    taken = step.arrays.take(trainer._params, states)
    if taken is None:
        memory.forget()
    if not taken:
        return False
    memory.was_used = True
    for updater, update, on_device in zip(updaters, updates, step.devices):
        getattr(updater.optimizer, _set_device)(on_device.device_id)
        update(updater, on_device.calls)  # type: ignore[misc]
    return True


def remember(trainer: GluonTrainer, update_of: UpdateOf) -> None:
    """Remember the step that Gluon has done, if a native call can repeat it."""
    if not _updates_locally(trainer) or not all(map(update_of, trainer._updaters)):
        return
    memory = _memories.get(trainer)
    if memory is None:
        memory = _memories[trainer] = _Memory()
    if memory.step is not None:
        return
    if memory.steps_to_wait > 0:
        memory.steps_to_wait -= 1
        return
    memory.keep(_step_of(trainer))


def _step_of(trainer: GluonTrainer) -> Optional[_Step]:
    """Return what a Trainer has just done; None if not all of it can be told."""
    params, updaters = trainer._params, trainer._updaters
    trained = [i for i, param in enumerate(params) if param.grad_req != "null"]
    if not trained or not updaters or not _is_plain(trainer):
        return None
    if any(type(param) not in (Parameter, Constant) for param in params):
        return None
    for i in trained:
        param = params[i]
        arrays = (*(param._data or ()), *(param._grad or ()))
        if len(arrays) != 2 * len(updaters) or any(a.stype != "default" for a in arrays):
            return None
    states = [(updater.states, updater.states_synced) for updater in updaters]
    if any(not synced.get(i) for _, synced in states for i in trained):
        # Left out so far: its gradients are stale.
        return None
    devices = []
    for k, updater in enumerate(updaters):
        weights = [classic(params[i]._data[k]) for i in trained]
        grads = [classic(params[i]._grad[k]) for i in trained]
        of_call: Dict[Any, List[Tuple[Any, ...]]] = {}
        by_type = hands_over_by_type(updater)
        for i, weight, grad in zip(trained, weights, grads):
            dtype = weight.dtype if by_type else None
            of_call.setdefault(dtype, []).append((i, weight, grad, updater.states[i]))
        calls: List[Call] = []
        for rows in of_call.values():
            indices, of_weights, of_grads, of_states = zip(*rows)
            known = KnownArrays.of_weights(of_weights), KnownArrays(of_grads)
            calls.append((indices, *known, of_states))
        devices.append(_OnDevice(weights[0].context.device_id, calls))
    return _Step(
        native().TrainerArrays(params, states, trained),
        devices,
        _allows_np(trainer._optimizer),
    )
