# SPDX-License-Identifier: Apache-2.0
"""Update all parameters of a step by one operation of MXNet's engine."""

import numbers
import zlib
from typing import TYPE_CHECKING, Any, Dict, List, Sequence

from mxnet.base import MXNetError
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import CSRNDArray

from .. import _native
from .._mxnet.engine import native
from .arguments import KnownArrays, is_known
from .arithmetic import Arithmetic
from .reference_step import rows_of
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
    if is_known(weights) or CSRNDArray not in {*map(type, weights), *map(type, grads)}:
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
    batches: List[Any] = []
    try:
        if optimizer._whole_model_option:
            batches.append(_checked(optimizer, optimizer.arithmetic, weights, grads, states))
            _push_whole_model(optimizer, batches[0], indices, weights[0])
        else:
            _push_parts(optimizer, batches, indices, weights, grads, states)
    except BaseException as error:
        # Interrupted after a push: the engine will update the arrays.
        if any(batch.pushed for batch in batches):
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


def _push_parts(
    optimizer: "FusedOptimizer",
    batches: List[Any],
    indices: Sequence[Index],
    weights: Sequence[NDArray],
    grads: Sequence[NDArray],
    states: Sequence[State],
) -> None:
    """Hand over a step, in one part for each arithmetic of its parameters."""
    arithmetics = optimizer.arithmetics_of(weights, grads)
    parts: Dict[Arithmetic, List[int]] = {}
    for position, arithmetic in enumerate(arithmetics):
        parts.setdefault(arithmetic, []).append(position)
    if len(parts) <= 1:
        arithmetic = arithmetics[0] if arithmetics else optimizer.arithmetic
        batches.append(_checked(optimizer, arithmetic, weights, grads, states))
        step = optimizer._count_step(indices)
        table = _table(optimizer, arithmetic, indices, step.lrs, step.wds, step.updates)
        _hand_over(arithmetic, batches[0], [table], None, False, None, 0, groups=step.groups)
        return
    # All are checked together first: whether arrays share memory, say.
    _checked(optimizer, optimizer.arithmetic, weights, grads, states)
    lrs, wds = optimizer._count_update(indices)
    given: Sequence[Sequence[Any]] = (
        indices,
        weights,
        grads,
        states,
        lrs,
        wds,
        optimizer._updates(indices),
    )
    prepared = []
    for arithmetic, positions in parts.items():
        of_part: List[List[Any]] = [[column[p] for p in positions] for column in given]
        batch = _checked(optimizer, arithmetic, *of_part[1:4])
        table = _table(optimizer, arithmetic, of_part[0], *of_part[4:])
        rows_of(optimizer, of_part[0], table)
        prepared.append((arithmetic, batch, table))
    for arithmetic, batch, table in prepared:
        batches.append(batch)
        _hand_over(arithmetic, batch, [table], None, False, None, 0)


def _checked(
    optimizer: "FusedOptimizer",
    arithmetic: Arithmetic,
    weights: Sequence[NDArray],
    grads: Sequence[NDArray],
    states: Sequence[State],
) -> Any:
    """The update in an arithmetic, with all arrays checked."""
    is_lazy = arithmetic.lazy_update
    cache = weights.cache if isinstance(weights, KnownArrays) else optimizer._state_cache
    return native().FusedUpdate(
        arithmetic.rule,
        weights,
        grads,
        states,
        cache,
        optimizer.lazy_update if is_lazy is None else is_lazy,
        optimizer.multi_precision,
        optimizer.ema_decay is not None,
        optimizer.state_dtype,
        is_known(weights),
    )


def _hand_over(
    arithmetic: Arithmetic, batch: Any, tables: List[Scalars], *how: Any, groups: Any = None
) -> None:
    names = list(arithmetic.listed), list(arithmetic.exact)
    batch.push(tables, *how, arithmetic.by_operator, *names, groups)


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
        _table(
            optimizer,
            optimizer.arithmetic,
            indices,
            lrs,
            wds,
            [t - k for t, k in zip(counts, skipped)],
        )
        for skipped in possible
    ]
    # Before the push: counting a step too many adds a possibility, one too few would lose one.
    tracker.push(weight)
    try:
        how = (optimizer.clip_global_norm, skips, tracker.status, tracker.skips_seen)
        _hand_over(optimizer.arithmetic, batch, tables, *how)
    except RuntimeError:
        # The operation has already run, and failed.
        raise
    except BaseException:
        if not batch.pushed:
            tracker.rollback()
        raise


def _table(
    optimizer: "FusedOptimizer",
    arithmetic: Arithmetic,
    indices: Sequence[Index],
    lrs: Sequence[float],
    wds: Sequence[float],
    updates: Sequence[int],
) -> Scalars:
    """Compute all scalars of a native update."""
    table = update_scalars(optimizer, lrs, wds, updates, arithmetic)
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
