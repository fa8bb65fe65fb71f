# SPDX-License-Identifier: Apache-2.0
"""What tests need of the native part of mxadamax, and users do not: it is not installed.

csrc/python/testing_module.cc defines it; tests/kernels/test_stubs.py compares this file with that.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

import numpy
import numpy.typing as npt

_Scalars = dict[str, float | list[float]]  # for all parameters, or one for each
_Float = npt.NDArray[numpy.float32] | npt.NDArray[numpy.float64]
_Kind = Literal["ratio", "signed", "denominator"]
_Short = Literal["float16", "bfloat16"]

dtype_sizes: dict[str, int]
"""The bytes of a number of each type that the kernels know."""

def decode(
    array: npt.NDArray[numpy.uint16], type: _Short, instruction_set: str
) -> npt.NDArray[numpy.float32]:
    """What the bits of 16-bit numbers stand for."""

def encode(
    array: npt.NDArray[numpy.float32], type: _Short, instruction_set: str
) -> npt.NDArray[numpy.uint16]:
    """The bits of the 16-bit numbers that are nearest."""

def encode_stochastic(
    array: npt.NDArray[numpy.float32],
    type: _Short,
    denominator: bool,
    seed: int,
    state: int,
    instruction_set: str,
) -> npt.NDArray[numpy.uint16]:
    """The same, rounded at random, as this state of a rule.

    Of denominators nothing but 0 becomes 0.
    """

def encode_int8(
    array: npt.NDArray[numpy.float32], kind: _Kind, seed: int, state: int, instruction_set: str
) -> tuple[npt.NDArray[numpy.int8], npt.NDArray[numpy.float32]]:
    """Codes and scales that stand for numbers: ratios, a signed state or denominators."""

def decode_int8(
    codes: npt.NDArray[numpy.int8],
    scales: npt.NDArray[numpy.float32],
    kind: _Kind,
    instruction_set: str,
) -> npt.NDArray[numpy.float32]:
    """The numbers that they stand for."""

def update_numpy(
    rule: str,
    weights: Sequence[_Float],
    grads: Sequence[_Float],
    states: Sequence[Sequence[npt.NDArray[Any]]],
    scalars: _Scalars,
    instruction_set: str = "",
    threads: int = 0,
    state_dtype: _Short | Literal["int8", ""] = "",
    scales: Sequence[npt.NDArray[numpy.float32]] | None = None,
) -> None:
    """Update arrays in place, in the calling thread; scalars are taken as they are.

    With a `state_dtype`, states are arrays of its bits, and each weight has scales for int8.
    """

def update_host_memory_by(kernels: ModuleType | None) -> None:
    """Update arrays in host memory by the kernels of this module.

    It is _cuda_on_host, on the way that arrays on a GPU take; None for the processor's own.
    """
