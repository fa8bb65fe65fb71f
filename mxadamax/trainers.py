# SPDX-License-Identifier: Apache-2.0
"""What this package asks of Gluon's Trainer beyond its interface."""

from typing import TYPE_CHECKING, Any, List

from mxnet.ndarray import NDArray

if TYPE_CHECKING:
    # Not at run time: a parameter server imports this inside the import of MXNet.
    from mxnet.gluon import Trainer


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
