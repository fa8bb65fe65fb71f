# SPDX-License-Identifier: Apache-2.0
"""What this package asks of Gluon's Trainer beyond its interface."""

import weakref
from typing import TYPE_CHECKING, Any, Iterable, List, Optional, Set

from mxnet.ndarray import NDArray

from .compatibility import IS_MXNET_1

if TYPE_CHECKING:
    # Not at run time: a parameter server imports this inside the import of MXNet.
    from mxnet.gluon import Trainer


class Keys:
    """By which keys updaters know the parameters of a trainer.

    The updater of a device counts parameters as `Trainer._params` does, which has a shared one
    once: its keys are positions there. In MXNet 2, that of a key-value store, and of a parameter
    server, counts a shared one as often as it was given to the trainer.

    Parameters
    ----------
    trainer : gluon.Trainer
        Its parameters must be known to it, and nothing else.
    """

    def __init__(self, trainer: "Trainer"):
        # The optimizer, which the trainer owns, keeps this.
        self._trainer = weakref.ref(trainer)
        self.on_devices: List[int] = list(range(len(trainer._params)))
        self.on_store: List[int] = self.on_devices
        if not IS_MXNET_1:
            self.on_store = [trainer._param2idx[p._uuid] for p in trainer._params]
        self._positions = {key: position for position, key in enumerate(self.on_store)}

    @classmethod
    def of_parameters(cls, parameters: Iterable[Any]) -> "Optional[Keys]":
        """The keys of the trainer that parameters belong to; None where they are positions."""
        reference = getattr(next(iter(parameters), None), "_trainer", None)
        trainer = None if IS_MXNET_1 or reference is None else reference()
        keys = None if trainer is None else cls(trainer)
        return None if keys is None or keys.on_store == keys.on_devices else keys

    @property
    def _store_updates(self) -> bool:
        # Before the trainer has chosen, only a server is sent the optimizer.
        trainer = self._trainer()
        if trainer is None or not getattr(trainer, "_kv_initialized", False):
            return True
        return bool(trainer._update_on_kvstore)

    @property
    def in_use(self) -> List[int]:
        """The keys of all parameters, in the order of `Trainer._params`."""
        return self.on_store if self._store_updates else self.on_devices

    def position_of(self, key: Any) -> Any:
        """The position in `Trainer._params` of the parameter with a key."""
        return self._positions.get(key, key) if self._store_updates else key


def devices_of(parameters: Iterable[Any]) -> Set[int]:
    """The numbers of the devices that parameters are on."""
    arrays = (array for parameter in parameters for array in getattr(parameter, "_data", ()) or ())
    return {array.context.device_id for array in arrays}


def updaters_of(trainer: "Trainer") -> List[Any]:
    """Who holds the states: an updater for each device, or the key-value store's.

    Raises
    ------
    ValueError
        Where they are on a parameter server.
    """
    if not trainer._update_on_kvstore:
        return list(trainer._updaters)
    updater = getattr(trainer._kvstore, "_updater", None)
    if updater is None:
        raise ValueError("the states are on a parameter server, which keeps them to itself")
    return [updater]


def classic(array: Any) -> NDArray:
    """An array of either kind, of the kind that optimizers get."""
    return array.as_nd_ndarray() if hasattr(array, "as_nd_ndarray") else array
