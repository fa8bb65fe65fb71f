# SPDX-License-Identifier: Apache-2.0
"""Update all parameters of a step by one operation of MXNet's engine."""

import numbers
import zlib
from itertools import repeat
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from mxnet.base import MXNetError
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import CSRNDArray

from .. import _native
from .._mxnet.engine import native
from .arguments import KnownArrays, is_known
from .arithmetic import Arithmetic
from .reference_step import clip_coefficient, rows_of
from .scalars import Scalars, ema_weight, update_scalars
from .state_dtypes import dtypes_of_step
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
    step = Step(optimizer, indices, weights, grads, states)
    try:
        if optimizer._whole_model_option:
            _push_whole_model(batches, step)
        else:
            _push_parts(batches, step)
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


class Step(NamedTuple):
    """The arguments of a step.

    Parameters
    ----------
    optimizer : FusedOptimizer
        The optimizer.
    indices, weights, grads, states : sequence
        One for each parameter.
    """

    optimizer: "FusedOptimizer"
    indices: Sequence[Index]
    weights: Sequence[NDArray]
    grads: Sequence[NDArray]
    states: Sequence[State]

    def state_dtypes(self) -> List[Optional[str]]:
        """Return the dtype of each parameter's states; nothing without `state_dtype`."""
        if self.optimizer.state_dtype is None:
            return []
        return dtypes_of_step(self.optimizer, self.indices, self.weights, self.states)


class Part(NamedTuple):
    """The parameters of a step that one operation can update.

    Parameters
    ----------
    arithmetic : Arithmetic
        What is computed for them.
    state_dtype : str or None
        The dtype of their states.
    positions : list of int, optional
        Where they are in the step. None for all, in their order.
    """

    arithmetic: Arithmetic
    state_dtype: Optional[str]
    positions: Optional[List[int]] = None

    def of(self, column: Sequence[Any]) -> List[Any]:
        """Return what a column of all parameters has for these."""
        return [column[position] for position in self.positions or ()]


def _parts(
    optimizer: "FusedOptimizer",
    arithmetics: Sequence[Arithmetic],
    state_dtypes: Sequence[Optional[str]],
) -> List[Part]:
    """Divide a step, whose parameters all have the optimizer's arithmetic if none are given."""
    if not arithmetics and not state_dtypes:
        return [Part(optimizer.arithmetic, None)]
    positions: Dict[Tuple[Arithmetic, Optional[str]], List[int]] = {}
    columns = (
        arithmetics or repeat(optimizer.arithmetic, len(state_dtypes)),
        state_dtypes or repeat(None, len(arithmetics)),
    )
    for position, kind in enumerate(zip(*columns)):
        positions.setdefault(kind, []).append(position)
    if len(positions) == 1:
        return [Part(*next(iter(positions)), None)]
    return [Part(*kind, found) for kind, found in positions.items()]


def _push_parts(batches: List[Any], step: Step) -> None:
    """Hand over a step, in parts with one arithmetic and one dtype of states each."""
    optimizer, indices, weights, grads, _ = step
    parts = _parts(optimizer, optimizer.arithmetics_of(weights, grads), step.state_dtypes())
    if len(parts) == 1:
        arithmetic, state_dtype, _ = parts[0]
        batches.append(_checked(step, arithmetic, state_dtype))
        counted = optimizer._count_step(indices)
        table = _table(
            optimizer, arithmetic, state_dtype, indices, counted.lrs, counted.wds, counted.updates
        )
        _hand_over(arithmetic, batches[0], [table], None, False, None, 0, groups=counted.groups)
        return
    checked = _checked_parts(step, parts)
    lrs, wds = optimizer._count_update(indices)
    tables = _tables(step, parts, lrs, wds, optimizer._updates(indices))
    for part, batch, table in zip(parts, checked, tables):
        batches.append(batch)
        _hand_over(part.arithmetic, batch, [table], None, False, None, 0)


def _checked_parts(step: Step, parts: Sequence[Part]) -> List[Any]:
    """The updates of all parts, with all arrays checked."""
    optimizer, _, weights, grads, _ = step
    caches = optimizer._part_caches
    # All together first: whether they share memory, say. Not their states, if those differ.
    if len({part.state_dtype for part in parts}) == 1:
        _checked(step, optimizer.arithmetic, parts[0].state_dtype)
    else:
        cache = caches.setdefault(None, _native.StateCache())
        none = [None] * len(weights)
        native().FusedUpdate("sgd", weights, grads, none, cache, False, False, False, None)
    batches = []
    for part in parts:
        of_part = Step(optimizer, *map(part.of, step[1:]))
        cache = caches.setdefault(part[:2], _native.StateCache())
        try:
            batches.append(_checked(of_part, part.arithmetic, part.state_dtype, cache))
        except _native.ParameterError as error:
            position, message, other = error.args
            positions = part.positions or ()
            raise _native.ParameterError(positions[position], message, positions[other]) from None
    return batches


def _tables(step: Step, parts: Sequence[Part], *columns: Sequence[Any]) -> List[Scalars]:
    """The scalars of all parts, checked before any part is handed over.

    `columns` are the learning rate, the weight decay and the number of updates of each parameter.
    """
    tables = []
    for part in parts:
        indices = part.of(step.indices)
        of_part = map(part.of, columns)
        table = _table(step.optimizer, part.arithmetic, part.state_dtype, indices, *of_part)
        rows_of(step.optimizer, indices, table)
        tables.append(table)
    return tables


def _checked(
    step: Step,
    arithmetic: Arithmetic,
    state_dtype: Optional[str],
    cache: Optional[_native.StateCache] = None,
) -> Any:
    """The update in an arithmetic, with all arrays checked."""
    optimizer, _, weights, grads, states = step
    is_lazy = arithmetic.lazy_update
    if cache is None:
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
        state_dtype,
        is_known(weights),
    )


def _hand_over(
    arithmetic: Arithmetic, batch: Any, tables: List[Scalars], *how: Any, groups: Any = None
) -> None:
    names = list(arithmetic.listed), list(arithmetic.exact)
    batch.push(tables, *how, arithmetic.by_operator, *names, groups)


def _push_whole_model(batches: List[Any], step: Step) -> None:
    """Push a step that depends on all gradients together."""
    optimizer, indices, weights, _, _ = step
    parts = _parts(optimizer, [], step.state_dtypes())
    if len(parts) > 1:
        _push_whole_model_in_parts(batches, step, parts)
        return
    arithmetic, state_dtype, _ = parts[0]
    batch = _checked(step, arithmetic, state_dtype)
    batches.append(batch)
    weight = weights[0]
    tracker = optimizer._step_tracker(weight)
    skips = optimizer.skip_nonfinite
    possible = tracker.possible_skips(indices) if skips else [[0] * len(indices)]
    lrs, wds = optimizer._count_update(indices)
    counts = optimizer._updates(indices)
    tables = [
        _table(
            optimizer,
            arithmetic,
            state_dtype,
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
        _hand_over(arithmetic, batch, tables, *how)
    except RuntimeError:
        # The operation has already run, and failed.
        raise
    except BaseException:
        if not batch.pushed:
            tracker.rollback()
        raise


def _push_whole_model_in_parts(batches: List[Any], step: Step, parts: Sequence[Part]) -> None:
    """Do the same where no single operation sees all gradients: wait for them."""
    optimizer, indices, weights, grads, _ = step
    checked = _checked_parts(step, parts)
    tracker = optimizer._step_tracker(weights[0])
    lrs, wds = optimizer._count_update(indices)
    skipped = tracker.skipped if optimizer.skip_nonfinite else None
    tables = _tables(step, parts, lrs, wds, optimizer._updates(indices, skipped))
    factor = clip_coefficient(optimizer, indices, weights, grads)
    if factor is None:
        return
    for part, batch, table in zip(parts, checked, tables):
        rescale_grad: Any = table["rescale_grad"]
        table["rescale_grad"] = rescale_grad * factor
        batches.append(batch)
        _hand_over(part.arithmetic, batch, [table], None, False, None, 0)


def _table(
    optimizer: "FusedOptimizer",
    arithmetic: Arithmetic,
    state_dtype: Optional[str],
    indices: Sequence[Index],
    lrs: Sequence[float],
    wds: Sequence[float],
    updates: Sequence[int],
) -> Scalars:
    """Compute all scalars of a native update."""
    table = update_scalars(optimizer, lrs, wds, updates, arithmetic)
    if optimizer.ema_decay is not None:
        table["ema_weight"] = [ema_weight(optimizer.ema_decay, t) for t in updates]
    if state_dtype is not None:
        seed = int(optimizer.state_seed) << 32
        table["step"] = [int(t) for t in updates]
        table["rng_stream"] = [seed | _parameter_id(index) for index in indices]
    return table


def _parameter_id(index: Index) -> int:
    """Return a 32-bit id of a parameter."""
    if isinstance(index, numbers.Integral):
        return int(index) & 0xFFFFFFFF
    return zlib.crc32(str(index).encode())
