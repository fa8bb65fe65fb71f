# SPDX-License-Identifier: Apache-2.0
"""Update a batch of arrays on a GPU."""

import math
from numbers import Real
from typing import Any, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy

from ..dtypes import DTYPES, STATE_TYPES, WEIGHT_TYPES
from .arrays import ArrayReader, stream_address
from .loader import kernels

Scalars = Mapping[str, Union[float, Sequence[float]]]


def _as_floats(name: str, given: Any) -> Any:
    """Convert a scalar, or one for each weight, to float64."""
    try:
        return numpy.asarray(given, dtype=numpy.float64)
    except (TypeError, ValueError):
        raise TypeError(f"scalar {name!r} must be numbers, got {given!r}") from None


def _as_integers(name: str, given: Any) -> Any:
    """Convert an integer scalar, or one for each weight, to uint64."""
    values = numpy.array(given, dtype=object)
    for value in values.flat:
        is_real = isinstance(value, Real)
        if not (is_real and 0 <= value < 2**64 and value == int(value)):
            raise TypeError(f"scalar {name!r} must be integers in [0, 2**64), got {given!r}")
    return values.astype(numpy.uint64)


class _Tensor(NamedTuple):
    """The arguments of `LaunchPlan` for each weight: addresses, 0 for none."""

    dtype: str
    elements: int
    grad: int
    weight: int
    states: List[int]
    master: int
    average: int
    # Address of the row indices, their number, elements of a row, lazy.
    rows: Optional[Tuple[int, int, int, bool]]
    # dtype of the states, address of the scales.
    low_precision: Optional[Tuple[str, int]]


def _state_dtypes(rule: str, state_dtype: Optional[str]) -> List[Optional[str]]:
    """Return the dtype of each state of a rule; None for that of the weight or its master."""
    native = kernels()
    count = native.rules[rule][0]
    if state_dtype is None:
        return [None] * count
    if state_dtype not in STATE_TYPES:
        raise ValueError(
            f"state_dtype must be 'float16', 'bfloat16', 'int8' or None, got {state_dtype!r}"
        )
    is_int8 = state_dtype == "int8"
    if rule not in (
        native.rules_with_int8_state if is_int8 else native.rules_with_low_precision_state
    ):
        raise ValueError(f"state_dtype must be None with rule {rule!r}, got {state_dtype!r}")
    return [state_dtype] * count


def _one_per_weight(given: Any, count: int, name: str) -> List[Any]:
    if given is None:
        return [None] * count
    found = list(given)
    if len(found) != count:
        raise ValueError(f"got {len(found)} {name} for {count} weights")
    return found


class Batch:
    """Arrays that are updated together, step after step.

    The first step sends addresses and sizes to the device; later steps send only scalars that have
    changed. So keep a batch as long as its arrays do not move. It keeps the arrays alive. When
    freed, it waits for pending updates.

    Parameters
    ----------
    rule : str
        The name of a rule, such as ``adamax``: a key of ``kernels().rules``, which lists the number
        of states and the scalars of each rule.
    weights : sequence of arrays
        C-contiguous, of float32, float64, float16 or bfloat16, on one GPU.
    grads : sequence of arrays
        The gradients, of the dtypes and shapes of the weights. Never written.
    states : sequence of sequences of arrays
        For each weight the rule's states, of its shape and of its dtype or its master's.
    masters : sequence of arrays or None, optional
        For each float16 or bfloat16 weight its float32 master, which is updated and then rounded
        to the weight; None for none.
    averages : sequence of arrays or None, optional
        For each weight its moving average, float32, or float64 for a float64 weight; None for none.
        The scalar ``ema_weight`` is the share of the new weight.
    rows : sequence of arrays or None, optional
        For each weight None, or the row indices of its gradient: int64, one-dimensional, strictly
        ascending. The gradient then has only these rows, in that order. The indices may change in
        place from step to step.
    lazy : bool, default False
        Update only the rows that a gradient holds, with their states and averages. Otherwise the
        other rows are updated with a gradient of zero.
    state_dtype : {'float16', 'bfloat16', 'int8'}, optional
        The dtype of low-precision states, with stochastic rounding, as in `FusedOptimizer`. Random
        bits depend on the scalars ``rng_stream``, an integer for each weight, and ``step``, the
        number of its update. Second moments are stored as their roots. With ``'int8'``, all states
        are int8 arrays.
    scales : sequence of arrays, optional
        With ``'int8'``, for each weight a float32 array of shape (blocks, states) with blocks of 64
        elements; initially zeros, like the states.
    device : int, optional
        The number of the GPU; by default that of the first weight.
    stream : int or stream, optional
        The stream of the first `update`, given as there. It waits for the streams that arrays name
        as their own.

    Raises
    ------
    TypeError, ValueError
        If an array is invalid; the message names it.
    ImportError
        If mxadamax was built without CUDA kernels.
    """

    def __init__(
        self,
        rule: str,
        weights: Sequence[Any],
        grads: Sequence[Any],
        states: Sequence[Sequence[Any]],
        *,
        masters: Optional[Sequence[Any]] = None,
        averages: Optional[Sequence[Any]] = None,
        rows: Optional[Sequence[Any]] = None,
        lazy: bool = False,
        state_dtype: Optional[str] = None,
        scales: Optional[Sequence[Any]] = None,
        device: Optional[int] = None,
        stream: Any = None,
    ):
        native = kernels()
        if rule not in native.rules:
            raise ValueError(f"there is no rule {rule!r}; there are {', '.join(native.rules)}")
        self.rule = rule
        self._scalar_names = native.rules[rule][1]
        self._optional_scalars = native.optional_scalars
        self._integer_scalars = native.integer_scalars
        self._bound_scalars = native.bound_scalars
        state_dtypes = _state_dtypes(rule, state_dtype)
        if scales is not None and state_dtype != "int8":
            raise ValueError(f"scales are given, which state_dtype {state_dtype!r} does not have")
        weights = list(weights)
        count = self._count = len(weights)
        columns = zip(
            weights,
            _one_per_weight(grads, count, "gradients"),
            _one_per_weight(states, count, "states"),
            _one_per_weight(masters, count, "masters"),
            _one_per_weight(averages, count, "averages"),
            _one_per_weight(rows, count, "rows"),
            _one_per_weight(scales, count, "scales"),
        )
        first_stream = stream_address(stream)
        reader = ArrayReader(first_stream)
        tensors = list(self._tensors(reader, columns, state_dtypes, state_dtype, lazy))
        if device is None:
            address = next((tensor.weight for tensor in tensors if tensor.elements), 0)
            device = native.device_of(address) if address else 0
        self.device = device
        self._arrays = reader.arrays
        self._plan = native.LaunchPlan(rule, tensors, device)
        for other in reader.streams - {first_stream}:
            native.order_streams(other, first_stream, device)

    def _tensors(
        self,
        reader: ArrayReader,
        columns: Iterator[Tuple[Any, ...]],
        state_dtypes: Sequence[Optional[str]],
        state_dtype: Optional[str],
        lazy: bool,
    ) -> Iterator[_Tensor]:
        """Read and check the arrays of each weight."""
        block_size = kernels().block_size
        for i, (given, grad, states, master, average, rows, scales) in enumerate(columns):
            prefix = f"tensor {i}: "
            weight = reader.read(given, prefix + "weight")
            dtype, shape = weight.dtype, weight.shape
            elements = math.prod(shape)
            if dtype not in WEIGHT_TYPES:
                raise TypeError(
                    f"{prefix}weight is {dtype}, expected one of {', '.join(WEIGHT_TYPES)}"
                )
            is_half = DTYPES[dtype].item_size == 2
            if master is not None and not is_half:
                raise TypeError(
                    f"{prefix}weight is {dtype}, only float16 and bfloat16 take a master"
                )
            updated_dtype = dtype if master is None else "float32"
            average_dtype = "float32" if is_half else dtype
            states = list(states)
            if len(states) != len(state_dtypes):
                raise ValueError(
                    f"{prefix}{len(states)} states, rule {self.rule} has {len(state_dtypes)}"
                )
            sparse_rows, grad_shape = None, shape
            if rows is not None:
                indices = reader.read_rows(rows, prefix, weight)
                grad_shape = (*indices.shape, *shape[1:])
                if elements:
                    row_length = math.prod(shape[1:])
                    sparse_rows = (indices.address, indices.shape[0], row_length, bool(lazy))
            low_precision = None
            if state_dtype is not None:
                low_precision = (state_dtype, 0)
                if state_dtype == "int8":
                    ranges = (-(-elements // block_size), len(states))
                    found = reader.read(scales, prefix + "scales", "float32", ranges)
                    low_precision = (state_dtype, found.address)
            yield _Tensor(
                dtype=dtype,
                elements=elements,
                grad=reader.read(
                    *(grad, prefix + "gradient", dtype), shape=grad_shape, written=False
                ).address,
                weight=weight.address,
                states=[
                    reader.read(
                        *(state, f"{prefix}state {k}"), own_dtype or updated_dtype, shape
                    ).address
                    for k, (state, own_dtype) in enumerate(zip(states, state_dtypes))
                ],
                master=0
                if master is None
                else reader.read(master, prefix + "master", "float32", shape).address,
                average=0
                if average is None
                else reader.read(average, prefix + "average", average_dtype, shape).address,
                rows=sparse_rows,
                low_precision=low_precision,
            )

    def update(
        self,
        scalars: Scalars,
        *,
        clip_global_norm: Optional[float] = None,
        skip_nonfinite: bool = False,
        stream: Any = None,
    ) -> None:
        """Update all weights once, on the stream.

        Returns without waiting, unless gradients hold only some rows. The first call allocates
        memory, which takes time.

        Parameters
        ----------
        scalars : mapping of str to float or sequence of float
            For each scalar of the rule a number, or one for each weight. The rule uses them
            unchanged: include bias corrections in learning rates. All must be finite, except
            ``kernels().bound_scalars``, where infinity means no bound. A ``wd`` below 0 means no
            weight decay; ``decay_factor`` is 1 without decoupled weight decay. ``ema_weight`` is 0
            by default.
        clip_global_norm : float, in (0, inf], optional
            Bound of the global gradient norm, after ``rescale_grad`` of the first weight.
        skip_nonfinite : bool, default False
            Change nothing if any gradient holds NaN or infinity.
        stream : int or stream, optional
            A stream of the device: its address, or a CuPy or PyTorch stream; by default the
            device's default stream. A step begins when the previous one is done, also on another
            stream.

        Raises
        ------
        TypeError, ValueError
            If a scalar, option or row is invalid. Nothing has been written.
        """
        if clip_global_norm is not None:
            clip_global_norm = float(clip_global_norm)
            if not clip_global_norm > 0:
                raise ValueError(f"clip_global_norm must be in (0, inf], got {clip_global_norm}")
        self._plan.update(
            *(self._scalar_table(scalars), clip_global_norm, bool(skip_nonfinite)),
            stream_address(stream),
        )

    def _scalar_table(self, scalars: Scalars) -> Any:
        """Check scalars and return a row of them for each tensor."""
        table = numpy.zeros((self._count, len(self._scalar_names)))
        unknown = [name for name in scalars if name not in self._scalar_names]
        if unknown:
            raise ValueError(f"rule {self.rule} has no scalar {unknown[0]!r}")
        for k, name in enumerate(self._scalar_names):
            if name not in scalars:
                if name in self._optional_scalars:
                    continue
                raise ValueError(f"rule {self.rule} needs the scalar {name!r}")
            is_integer = name in self._integer_scalars
            values = (_as_integers if is_integer else _as_floats)(name, scalars[name])
            if values.shape not in ((), (self._count,)):
                raise ValueError(
                    f"scalar {name!r} has shape {values.shape}, expected a number or "
                    f"{self._count} of them"
                )
            if is_integer:
                table.view(numpy.uint64)[:, k] = values
                continue
            bad = numpy.isnan(values) if name in self._bound_scalars else ~numpy.isfinite(values)
            if bad.any():
                raise ValueError(f"scalar {name!r} is {values[bad][0]}, expected a finite number")
            table[:, k] = values
        return table

    @property
    def gradient_norm(self) -> float:
        """Return the global gradient norm of the last step with an option, after rescaling.

        NaN before the first. Waits for the step.
        """
        return float(self._plan.report()[0])

    @property
    def skipped_steps(self) -> int:
        """Return the number of steps that `skip_nonfinite` has skipped. Waits for the last step."""
        return int(self._plan.report()[1])


def update(
    rule: str,
    weights: Sequence[Any],
    grads: Sequence[Any],
    states: Sequence[Sequence[Any]],
    scalars: Scalars,
    *,
    masters: Optional[Sequence[Any]] = None,
    averages: Optional[Sequence[Any]] = None,
    rows: Optional[Sequence[Any]] = None,
    lazy: bool = False,
    state_dtype: Optional[str] = None,
    scales: Optional[Sequence[Any]] = None,
    clip_global_norm: Optional[float] = None,
    skip_nonfinite: bool = False,
    stream: Any = None,
) -> None:
    """Update arrays once, and wait for it. For several steps, use a :class:`Batch`.

    Parameters
    ----------
    rule, weights, grads, states, masters, averages, rows, lazy, state_dtype, scales
        As for :class:`Batch`.
    scalars, clip_global_norm, skip_nonfinite, stream
        As for :meth:`Batch.update`.

    Raises
    ------
    TypeError, ValueError, ImportError
        As for :class:`Batch` and :meth:`Batch.update`.
    """
    batch = Batch(
        *(rule, weights, grads, states),
        masters=masters,
        averages=averages,
        rows=rows,
        lazy=lazy,
        state_dtype=state_dtype,
        scales=scales,
        stream=stream,
    )
    batch.update(
        scalars, clip_global_norm=clip_global_norm, skip_nonfinite=skip_nonfinite, stream=stream
    )
