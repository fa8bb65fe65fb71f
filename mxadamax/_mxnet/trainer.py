# SPDX-License-Identifier: Apache-2.0
"""Access the parts of Gluon's Trainer that are not public."""

import weakref
from typing import TYPE_CHECKING, Any, Iterable, List, Optional, Set

from mxnet.ndarray import NDArray

from .compatibility import IS_MXNET_1

if TYPE_CHECKING:
    # Not at run time: a parameter server imports this inside the import of MXNet.
    from mxnet.gluon import Trainer


class Keys:
    """The keys by which updaters know the parameters of a trainer.

    For the updater of a device, a key is a position in `Trainer._params`, which has a shared
    parameter once. In MXNet 2, the updater of a key-value store or a parameter server counts a
    shared parameter as often as the trainer got it.

    Parameters
    ----------
    trainer : gluon.Trainer
        Only its parameters must be set.
    """

    def __init__(self, trainer: "Trainer"):
        # The trainer owns the optimizer, which keeps this object.
        self._trainer = weakref.ref(trainer)
        self.on_devices: List[int] = list(range(len(trainer._params)))
        self.on_store: List[int] = self.on_devices
        if not IS_MXNET_1:
            self.on_store = [trainer._param2idx[p._uuid] for p in trainer._params]
        self._positions = {key: position for position, key in enumerate(self.on_store)}

    @classmethod
    def of_parameters(cls, parameters: Iterable[Any]) -> "Optional[Keys]":
        """Return the keys of the trainer of these parameters; None if they are positions."""
        reference = getattr(next(iter(parameters), None), "_trainer", None)
        trainer = None if IS_MXNET_1 or reference is None else reference()
        keys = None if trainer is None else cls(trainer)
        return None if keys is None or keys.on_store == keys.on_devices else keys

    @property
    def _store_updates(self) -> bool:
        # Until the trainer has chosen, the optimizer is sent only to servers.
        trainer = self._trainer()
        if trainer is None or not getattr(trainer, "_kv_initialized", False):
            return True
        return bool(trainer._update_on_kvstore)

    @property
    def in_use(self) -> List[int]:
        """Return the keys of all parameters, in the order of `Trainer._params`."""
        return self.on_store if self._store_updates else self.on_devices

    def position_of(self, key: Any) -> Any:
        """Return the position in `Trainer._params` of the parameter with a key."""
        return self._positions.get(key, key) if self._store_updates else key


def devices_of(parameters: Iterable[Any]) -> Set[int]:
    """Return the ids of the devices of these parameters."""
    arrays = (array for parameter in parameters for array in getattr(parameter, "_data", ()) or ())
    return {array.context.device_id for array in arrays}


def updaters_of(trainer: "Trainer") -> List[Any]:
    """Return the updaters that hold the states: one per device, or the key-value store's.

    Raises
    ------
    ValueError
        If the states are on a parameter server.
    """
    if not trainer._update_on_kvstore:
        return list(trainer._updaters)
    updater = getattr(trainer._kvstore, "_updater", None)
    if updater is None:
        raise ValueError("the states are on a parameter server, which does not return them")
    return [updater]


def classic(array: Any) -> NDArray:
    """Return an array of either kind as the legacy NDArray that optimizers get."""
    return array.as_nd_ndarray() if hasattr(array, "as_nd_ndarray") else array


def has_sparse_gradient(parameter: Any) -> bool:
    """Return whether the gradients of a parameter are row_sparse."""
    return getattr(parameter, "_grad_stype", "default") == "row_sparse"
