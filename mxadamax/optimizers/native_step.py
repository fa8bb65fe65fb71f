# SPDX-License-Identifier: Apache-2.0
"""Update all parameters of a step by one operation of MXNet's engine."""

import numbers
import zlib
from typing import TYPE_CHECKING, Any, List, Sequence

from mxnet.base import MXNetError
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import CSRNDArray

from .. import _native
from .._mxnet.engine import native
from .scalars import Scalars, ema_weight, update_scalars
from .state_layout import State
from .step_tracker import Index

if TYPE_CHECKING:
    from .base import FusedOptimizer


def native_update(
    optimizer: "FusedOptimizer",
    indices: Sequence[Index],
    weights: Sequence[NDArray],
    grads: Sequence[NDArray],
    states: Sequence[State],
) -> None:
    """Update all weights and states in place by the native rule of an optimizer.

    Csr arrays are updated as dense copies. They are recognized by their Python class: to query each
    array's storage type through MXNet's C API takes a seventh of a step of many small parameters.
    """
    if CSRNDArray not in {*map(type, weights), *map(type, grads)}:
        _push(optimizer, indices, weights, grads, states)
        return
    copies = _dense(weights)
    _push(optimizer, indices, copies, _dense(grads), states)
    for weight, copy in zip(weights, copies):
        if copy is not weight:
            copy.tostype("csr").copyto(weight)


def _dense(arrays: Sequence[NDArray]) -> List[NDArray]:
    return [a.tostype("default") if type(a) is CSRNDArray else a for a in arrays]


def _push(
    optimizer: "FusedOptimizer",
    indices: Sequence[Index],
    weights: Sequence[NDArray],
    grads: Sequence[NDArray],
    states: Sequence[State],
) -> None:
    """Count the update and push it to the engine; roll back the counts if that fails."""
    rollback = optimizer._progress()
    batch = None
    try:
        batch = native().FusedUpdate(
            optimizer.rule,
            weights,
            grads,
            states,
            optimizer._state_cache,
            optimizer.lazy_update,
            optimizer.multi_precision,
            optimizer.ema_decay is not None,
            optimizer.state_dtype,
        )
        if optimizer._whole_model_option:
            _push_whole_model(optimizer, batch, indices, weights[0])
        else:
            lrs, wds = optimizer._count_update(indices)
            table = _table(optimizer, indices, lrs, wds, optimizer._updates(indices))
            batch.push([table], None, False, None, 0)
    except BaseException as error:
        # Interrupted after the push: the engine will update the arrays.
        if batch is not None and batch.pushed:
            raise
        rollback()
        if type(error) is RuntimeError:
            # With MXNET_ENGINE_TYPE=NaiveEngine the operation has already run, and failed.
            raise MXNetError(str(error)) from None
        if not isinstance(error, _native.ParameterError):
            raise
        position, message, other = error.args
        raise ValueError(
            f"{optimizer.registered_name}: parameter {optimizer._name(indices[position])}: "
            + message.replace("{other}", f"parameter {optimizer._name(indices[other])}")
        ) from None


def _push_whole_model(
    optimizer: "FusedOptimizer", batch: Any, indices: Sequence[Index], weight: NDArray
) -> None:
    """Push a step that depends on all gradients together."""
    tracker = optimizer._step_tracker(weight)
    skips = optimizer.skip_nonfinite
    possible = tracker.possible_skips(indices) if skips else [[0] * len(indices)]
    lrs, wds = optimizer._count_update(indices)
    counts = optimizer._updates(indices)
    tables = [
        _table(optimizer, indices, lrs, wds, [t - k for t, k in zip(counts, skipped)])
        for skipped in possible
    ]
    # Before the push: counting a step too many adds a possibility, one too few would lose one.
    tracker.push(weight)
    try:
        batch.push(tables, optimizer.clip_global_norm, skips, tracker.status, tracker.skips_seen)
    except RuntimeError:
        # The operation has already run, and failed.
        raise
    except BaseException:
        if not batch.pushed:
            tracker.rollback()
        raise


def _table(
    optimizer: "FusedOptimizer",
    indices: Sequence[Index],
    lrs: Sequence[float],
    wds: Sequence[float],
    updates: Sequence[int],
) -> Scalars:
    """Compute all scalars of a native update."""
    table = update_scalars(optimizer, lrs, wds, updates)
    if optimizer.ema_decay is not None:
        table["ema_weight"] = [ema_weight(optimizer.ema_decay, t) for t in updates]
    if optimizer.state_dtype is not None:
        seed = int(optimizer.state_seed) << 32
        table["step"] = [int(t) for t in updates]
        table["rng_stream"] = [seed | _parameter_id(index) for index in indices]
    return table


def _parameter_id(index: Index) -> int:
    """Return a 32-bit id of a parameter."""
    if isinstance(index, numbers.Integral):
        return int(index) & 0xFFFFFFFF
    return zlib.crc32(str(index).encode())
