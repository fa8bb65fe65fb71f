# SPDX-License-Identifier: Apache-2.0
"""Evaluate with the moving average of the weights."""

import contextlib
from typing import TYPE_CHECKING, Iterator, List, Tuple

from mxnet.ndarray import NDArray, cast

from ._mxnet.trainer import Keys, classic, updaters_of
from .optimizers.base import FusedOptimizer

if TYPE_CHECKING:
    # Not at run time: a parameter server imports this inside the import of MXNet.
    from mxnet.gluon import Trainer


@contextlib.contextmanager
def averaged_weights(trainer: "Trainer") -> Iterator[None]:
    """Swap in the averages of `ema_decay` for the weights, within a ``with`` block.

    ::

        with mxadamax.averaged_weights(trainer):
            evaluate(net)

    On exit, also by an exception, the weights are restored bit for bit. Parameters that no step has
    updated keep their weights. The block does not average other data of layers, such as the running
    means of batch normalization.

    Parameters
    ----------
    trainer : gluon.Trainer
        With an optimizer of this package, on one device or several.

    Raises
    ------
    ValueError
        If the optimizer keeps no averages, if they are on a parameter server, or if they are
        swapped in already. A step inside the block raises ValueError too.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "adamax_ext", {"ema_decay": 0.9})
    >>> train_a_step(trainer)
    >>> with mxadamax.averaged_weights(trainer):
    ...     accuracy = evaluate(net)
    """
    optimizer = trainer.optimizer
    if not isinstance(optimizer, FusedOptimizer) or optimizer.ema_decay is None:
        raise ValueError(
            "averaged_weights: the trainer's optimizer must be one of mxadamax's with ema_decay, "
            f"got {optimizer!r}"
        )
    if optimizer.ema_swapped_in:
        raise ValueError("averaged_weights: the weights are averages already")
    # There are no averages before the first step or the loading of states.
    updaters = updaters_of(trainer) if trainer._kv_initialized else []
    saved: List[Tuple[NDArray, NDArray]] = []
    optimizer.ema_swapped_in = True
    try:
        for key, parameter in zip(Keys(trainer).in_use, trainer._params if updaters else []):
            if parameter.grad_req == "null" or parameter._data is None:
                continue
            weights = [classic(weight) for weight in parameter.list_data()]
            for position, weight in enumerate(weights):
                states = updaters[min(position, len(updaters) - 1)].states
                if key not in states:
                    continue
                average = optimizer.average_of(states[key], weight)
                saved.append((weight, weight.copy()))
                _assign(weight, average)
        yield
    finally:
        for weight, before in saved:
            before.copyto(weight)
        optimizer.ema_swapped_in = False


def _assign(weight: NDArray, average: NDArray) -> None:
    if weight.dtype == average.dtype:
        average.copyto(weight)
    else:
        cast(average.as_in_context(weight.context), dtype=weight.dtype, out=weight)
