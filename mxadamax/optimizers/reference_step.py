# SPDX-License-Identifier: Apache-2.0
"""Update parameters one by one in MXNet's operators: the reference for the native step."""

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Iterable, Iterator, List, Optional, Sequence, Union

import numpy
from mxnet.ndarray import NDArray, array, cast, clip, where

from .. import _native
from ..dtypes import BFLOAT16
from .arithmetic import Arithmetic
from .options import FLOAT32
from .scalars import NO_L2, Scalars, ema_weight, gradient_bound, update_scalars
from .state_layout import ParameterState, State, is_half
from .step_tracker import Index

if TYPE_CHECKING:
    from .base import FusedOptimizer


# Overflow makes no warning, as in the native step.
@numpy.errstate(all="ignore")
def reference_update(
    optimizer: "FusedOptimizer",
    indices: Sequence[Index],
    weights: Sequence[NDArray],
    grads: Sequence[NDArray],
    states: Sequence[State],
) -> None:
    """Update all weights and states in place with an optimizer's `reference_step`."""
    for index, weight, grad in zip(indices, weights, grads):
        for what, found in (("weight", weight), ("gradient", grad)):
            if not isinstance(found, NDArray):
                raise ValueError(
                    f"{optimizer.registered_name}: parameter {optimizer._name(index)}: {what} is "
                    f"{type(found).__name__}, expected an NDArray"
                )
    rollback = optimizer._progress()
    factor: Optional[float] = 1.0
    try:
        if optimizer._whole_model_option:
            optimizer._step_tracker(weights[0])
        lrs, wds = optimizer._count_update(indices)
        skipped = optimizer._last_step_tracker.skipped if optimizer.skip_nonfinite else None
        updates = optimizer._updates(indices, skipped)
        arithmetics = optimizer.arithmetics_of(weights, grads)
        if optimizer._whole_model_option or not arithmetics:
            arithmetics = [optimizer.arithmetic] * len(indices)
        tables = {a: update_scalars(optimizer, lrs, wds, updates, a) for a in {*arithmetics}}
        rows_by = {a: rows_of(optimizer, indices, table) for a, table in tables.items()}
        rows = [rows_by[a][i] for i, a in enumerate(arithmetics)]
        if optimizer._whole_model_option:
            factor = clip_coefficient(optimizer, indices, weights, grads)
    except BaseException:
        rollback()
        raise
    if factor is None:
        return
    for weight, grad, state, t, a, s in zip(weights, grads, states, updates, arithmetics, rows):
        s.rescale_grad *= factor
        parts = optimizer.state_layout(weight).unpack(state)
        if is_half(weight.dtype):
            target = _update_in_float32(optimizer, a, weight, grad, parts, s)
        else:
            target = weight
            _update_one(optimizer, a, weight, grad, parts.own_nested, s)
        if parts.average is not None:
            _update_average(parts.average, target, ema_weight(optimizer.ema_decay, t))


def rows_of(
    optimizer: "FusedOptimizer", indices: Sequence[Index], table: Scalars
) -> List[SimpleNamespace]:
    """Split the scalars by parameter; ValueError if one is not finite."""
    rows = []
    for i, index in enumerate(indices):
        row = {name: x[i] if isinstance(x, list) else x for name, x in table.items()}
        for name, value in row.items():
            if not math.isfinite(value) and name not in _native.bound_scalars:
                what = "1 - lr * wd" if name == "decay_factor" else name
                raise ValueError(
                    f"{optimizer.registered_name}: parameter {optimizer._name(index)}: {what} is "
                    f"{value!r}, expected a finite number"
                )
        rows.append(SimpleNamespace(**row))
    return rows


@numpy.errstate(all="ignore")
def clip_coefficient(
    optimizer: "FusedOptimizer",
    indices: Sequence[Index],
    weights: Sequence[NDArray],
    grads: Sequence[NDArray],
) -> Optional[float]:
    """Compute the factor of `clip_global_norm`, None to skip the step; waits for gradients."""
    squares, finite = 0.0, True
    for grad in grads:
        for values in _in_pieces(grad):
            square_sum = float(numpy.square(values).sum())
            squares += square_sum
            # A sum of squares of float64 numbers may overflow.
            finite = finite and (math.isfinite(square_sum) or bool(numpy.isfinite(values).all()))
    norm: float = abs(optimizer.rescale_grad) * math.sqrt(squares)
    skipped = optimizer.skip_nonfinite and not finite
    optimizer._step_tracker(weights[0]).record(indices, weights[0], norm, skipped)
    if skipped:
        return None
    if optimizer.clip_global_norm is None or norm <= optimizer.clip_global_norm:
        return 1.0
    return optimizer.clip_global_norm / norm


def _in_pieces(grad: NDArray, length: int = 2**20) -> Iterator[Any]:
    """Yield the numbers of a gradient in float64, few enough at a time to need little memory."""
    if grad.stype != "default":
        grad = grad.data if grad.stype == "row_sparse" else grad.tostype("default")
    size = grad.size
    if size > length:
        flat = grad.reshape((-1,))
        pieces: Iterable[NDArray] = (flat[k : k + length] for k in range(0, size, length))
    else:
        pieces = [grad] if size else []
    for piece in pieces:
        # NumPy does not know bfloat16.
        known = piece.astype(numpy.float32) if piece.dtype == BFLOAT16 else piece
        yield known.asnumpy().astype(numpy.float64)


def _update_one(
    optimizer: "FusedOptimizer",
    arithmetic: Arithmetic,
    weight: NDArray,
    grad: NDArray,
    state: State,
    s: SimpleNamespace,
    half: Optional[NDArray] = None,
) -> None:
    """Update one parameter: transform the gradient, decay the weight, apply the rule.

    `half` is the float16 weight whose master is updated, in float32.
    """
    if grad.stype != "default":
        grad = grad.tostype("default")
    has_bound = gradient_bound(optimizer) is not None
    has_penalty, is_decayed = s.wd != NO_L2, s.decay_factor != 1.0
    if arithmetic.by_operator:
        s = _as_operator_reads(s, arithmetic, weight)
    s.rule = arithmetic.rule
    s.raw_grad = grad
    grad = grad * s.rescale_grad
    if has_bound and not arithmetic.clip_after_wd:
        grad = clipped(grad, s.clip_gradient)
    if has_penalty:
        grad = grad + s.wd * weight
    if has_bound and arithmetic.clip_after_wd:
        grad = clipped(grad, s.clip_gradient)
    s.shown = weight if half is None else half
    s.has_half = half is not None
    if is_decayed:
        weight *= s.decay_factor
        if half is not None:
            half *= s.decay_factor
    optimizer.reference_step(weight, grad, state, s)


def clipped(grad: NDArray, bound: Union[float, NDArray]) -> NDArray:
    """Clip to [-bound, bound]; NaN passes."""
    if not isinstance(bound, NDArray):
        return clip(grad, -bound, bound)
    grad = where(grad > bound, bound, grad)
    return where(grad < -bound, -bound, grad)


def _as_operator_reads(
    s: SimpleNamespace, arithmetic: Arithmetic, weight: NDArray
) -> SimpleNamespace:
    """Scalars in single precision, as arrays like the weight.

    An operator of MXNet's that is given a number may read another one.
    """

    def read(name: str, value: float) -> NDArray:
        rounded = float(numpy.float32(value))
        read = rounded if name in arithmetic.listed else _native.as_mxnet_reads_float32(value)
        # A large number stays finite.
        if not math.isinf(value) and name not in arithmetic.exact:
            value = max(-FLOAT32[1], min(read, FLOAT32[1]))
        return array(numpy.full(weight.shape, value), weight.context, weight.dtype)

    given = {name: value for name, value in vars(s).items() if name in arithmetic.exact}
    scalars = {name: read(name, value) for name, value in vars(s).items()}
    return SimpleNamespace(**scalars, exact=given)


def _update_in_float32(
    optimizer: "FusedOptimizer",
    arithmetic: Arithmetic,
    weight: NDArray,
    grad: NDArray,
    parts: ParameterState,
    s: SimpleNamespace,
) -> NDArray:
    """Update a 16-bit weight through its float32 master, or float32 copies.

    Returns the updated weight in float32.
    """
    grad = grad.astype(numpy.float32)
    master = parts.master
    if master is not None:
        half = weight.astype(numpy.float32) if weight.dtype == numpy.float16 else None
        _update_one(optimizer, arithmetic, master, grad, parts.own_nested, s, half)
    else:
        copies = parts._replace(own=tuple(array.astype(numpy.float32) for array in parts.own))
        master = weight.astype(numpy.float32)
        _update_one(optimizer, arithmetic, master, grad, copies.own_nested, s)
        for own, copy in zip(parts.own, copies.own):
            cast(copy, dtype=own.dtype, out=own)
    cast(master, dtype=weight.dtype, out=weight)
    return master


def _update_average(average: NDArray, weight: NDArray, share: float) -> None:
    # As arrays: operators can misread Python numbers.
    kept, taken = (
        array(numpy.full(average.shape, x), average.context, average.dtype)
        for x in (1.0 - share, share)
    )
    average[:] = kept * average + taken * weight
