# SPDX-License-Identifier: Apache-2.0
"""Convert 8-bit states of earlier versions, whose denominators had levels like squares.

Rules with two states kept an int8 array, a uint8 array and scales. The dtype of the second tells
that format from the present one, which has int8 in its place.
"""

from typing import TYPE_CHECKING, Any, Sequence, Tuple

import numpy
from mxnet.ndarray import NDArray, array

from .. import _native
from .state_layout import State

if TYPE_CHECKING:
    from .base import FusedOptimizer

_SMALLEST = numpy.float32(2.0**-100)
"""The largest denominator of a block counts as at least this."""

_EXPONENT = 0x7F800000
_ROUND_UP = 0x80100
"""Added to the largest denominator of a block: what is as near to the next power of two counts as
that."""

_OCTAVES = 15
"""The powers of two between the largest denominator of a block and its offset."""

_CODE_SHIFT = 19
"""The bits of a float32 number below those of a code: a code keeps 4 bits of the fraction."""


def _bits(numbers: Any) -> Any:
    return numpy.asarray(numbers, numpy.float32).view(numpy.int32)


def _floats(bits: Any) -> Any:
    return numpy.asarray(bits, numpy.int32).view(numpy.float32)


def offsets_of(largest: Any) -> Any:
    """Return the offset of each block from its largest denominator: a power of two."""
    bits = _bits(numpy.maximum(numpy.asarray(largest, numpy.float32), _SMALLEST))
    return _floats(((bits + _ROUND_UP) & _EXPONENT) - (_OCTAVES << 23))


def encode_denominators(denominators: Any, offsets: Any) -> Any:
    """Return the codes, from 0 to 255, nearest to denominators; only 0 has code 0."""
    denominators = numpy.asarray(denominators, numpy.float32)
    distances = _bits(offsets + denominators) - _bits(offsets)
    codes = (distances + (1 << (_CODE_SHIFT - 1))) >> _CODE_SHIFT
    return numpy.maximum(codes, denominators > 0).astype(numpy.uint8)


def decode_denominators(codes: Any, offsets: Any) -> Any:
    """Return the denominators that codes, from 0 to 255, stand for."""
    shifted = numpy.asarray(codes).astype(numpy.int32) << _CODE_SHIFT
    return _floats(shifted + _bits(offsets)) - offsets


@numpy.errstate(all="ignore")
def converted(ratios: Any, levels: Any, scales: Any, epsilon: float) -> Tuple[Any, Any, Any]:
    """Convert the states of a parameter from the earlier format.

    Parameters
    ----------
    ratios : array of int8
        Of each element the first state, relative to its denominator and to the largest such ratio
        of its block.
    levels : array of uint8
        Of each element the denominator, relative to the largest of its block.
    scales : array of float32, of shape (blocks, 2)
        The largest ratio and the largest denominator of each block.
    epsilon : float
        What the step adds to the denominator.

    Returns
    -------
    tuple
        Arrays of int8, int8 and float32, and of the same shapes, in the present format: the first
        state is relative to the denominator with `epsilon`; the second array holds the bytes of
        codes from 0 to 255; and the second scale of a block is the offset of its codes.
    """
    shape, size = ratios.shape, ratios.size
    blocks = len(scales)
    wide = numpy.zeros((2, blocks * _native.block_size))
    wide[0, :size], wide[1, :size] = ratios.reshape(-1), levels.reshape(-1)
    of_ratios, of_levels = wide.reshape(2, blocks, _native.block_size)
    by_block = scales.astype(numpy.float64)[:, :, None]
    denominators = by_block[:, 1] * (of_levels / 255) ** 2
    first = by_block[:, 0] * (of_ratios / 127) * denominators

    largest = denominators.max(axis=1, initial=0.0)
    offsets = offsets_of(largest)[:, None]
    codes = encode_denominators(denominators, offsets)
    divisors = decode_denominators(codes, offsets).astype(numpy.float64) + epsilon
    of_new = numpy.divide(first, divisors, out=numpy.zeros_like(first), where=first != 0)
    absmax = numpy.abs(of_new).max(axis=1, initial=0.0).astype(numpy.float32)
    units = numpy.divide(127.0, absmax, out=numpy.zeros(blocks), where=absmax > 0)
    new_ratios = numpy.clip(numpy.rint(of_new * units[:, None]), -127, 127)
    new_scales = numpy.stack([absmax, offsets[:, 0]], axis=1).astype(numpy.float32)

    # What is not finite spreads over its block.
    bad = ~numpy.isfinite(scales).all(axis=1)
    new_ratios[bad], codes[bad], new_scales[bad] = 0, 0, numpy.nan
    return (
        new_ratios.astype(numpy.int8).reshape(-1)[:size].reshape(shape),
        codes.view(numpy.int8).reshape(-1)[:size].reshape(shape),
        new_scales,
    )


def is_of_earlier_version(arrays: Any) -> bool:
    """Return whether these are the own arrays of a parameter in the earlier format."""
    return (
        isinstance(arrays, (tuple, list))
        and len(arrays) == 3
        and all(isinstance(a, NDArray) and a.stype == "default" for a in arrays)
        and [a.dtype for a in arrays] == [numpy.int8, numpy.uint8, numpy.float32]
        and arrays[0].shape == arrays[1].shape
        and arrays[2].shape == (-(-arrays[0].size // _native.block_size), 2)
    )


def _is_converted(optimizer: "FusedOptimizer") -> bool:
    """Return whether an optimizer's rule takes states in the present format."""
    rule = _native.rules[optimizer.rule]
    return optimizer.state_dtype is not None and rule.supports_int8_state and rule.states == 2


def _arrays_for(optimizer: "FusedOptimizer", arrays: Sequence[NDArray]) -> Tuple[NDArray, ...]:
    epsilon = float(getattr(optimizer, "epsilon", 0.0))
    ratios, levels, scales = (a.asnumpy() for a in arrays)
    found = converted(ratios, levels, scales, epsilon)
    return tuple(array(a, old.context, dtype=a.dtype) for a, old in zip(found, arrays))


def as_present(state: State, optimizer: "FusedOptimizer") -> State:
    """Return a state from a file as the present version keeps it; waits for it."""
    if not _is_converted(optimizer):
        return state
    return _as_present(state, optimizer)


def _as_present(state: State, optimizer: "FusedOptimizer") -> State:
    if is_of_earlier_version(state):
        return _arrays_for(optimizer, state)
    if isinstance(state, (tuple, list)):
        return tuple(_as_present(part, optimizer) for part in state)
    return state


def convert_in_place(arrays: Sequence[NDArray], optimizer: "FusedOptimizer") -> None:
    """Convert a parameter's own arrays that MXNet has loaded into an updater, which holds them.

    The objects stay, with other arrays behind them: one needs another dtype.
    """
    if not (_is_converted(optimizer) and is_of_earlier_version(arrays)):
        return
    for old, new in zip(arrays, _arrays_for(optimizer, arrays)):
        old.handle, new.handle = new.handle, old.handle
