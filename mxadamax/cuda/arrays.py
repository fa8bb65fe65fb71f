# SPDX-License-Identifier: Apache-2.0
"""Read arrays and streams of other libraries: the CUDA array interface and DLPack."""

from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import numpy

from ..dtypes import DLPACK_TYPES
from .loader import kernels

_CUDA, _CUDA_MANAGED = 2, 13
_DLPACK_DEVICES = {1: "the CPU", 3: "the CPU's page-locked memory", 10: "a ROCm GPU"}


class DeviceArray(NamedTuple):
    """An array as the kernels need it.

    Parameters
    ----------
    address : int
        The address of its first element, on the device.
    dtype : str
        NumPy's name of its dtype, or ``bfloat16``.
    shape : tuple of int
        Its shape; the array is C-contiguous.
    stream : int, optional
        The stream that may still be writing it.
    """

    address: int
    dtype: str
    shape: Tuple[int, ...]
    stream: Optional[int]


def stream_address(stream: Any) -> int:
    """Return the address of a stream: a CuPy or PyTorch object, or the address itself.

    Raises
    ------
    TypeError
        If it is neither.
    """
    for attribute in ("cuda_stream", "ptr"):
        stream = getattr(stream, attribute, stream)
    if stream is None:
        return 0
    if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0:
        raise TypeError(f"stream must be None, an address or a stream, got {stream!r}")
    return int(stream)


def _is_contiguous(shape: Sequence[int], strides: Optional[Sequence[int]], item: int) -> bool:
    if strides is None or 0 in shape:
        return True
    expected = item
    for length, stride in zip(reversed(shape), reversed(strides)):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _from_interface(
    interface: Mapping[str, Any], name: str, written: bool
) -> Optional[DeviceArray]:
    """Read a ``__cuda_array_interface__``; None if that does not tell the dtype."""
    try:
        dtype = numpy.dtype(interface["typestr"])
    except TypeError:
        return None
    # A 16-bit type that NumPy does not know, such as bfloat16, comes as two untyped bytes.
    if dtype.kind == "V":
        return None
    if not dtype.isnative:
        raise TypeError(f"{name} has bytes in the other order")
    if interface.get("mask") is not None:
        raise ValueError(f"{name} has a mask, expected an array without")
    address, read_only = interface["data"]
    if written and read_only:
        raise ValueError(f"{name} is read-only")
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    if not _is_contiguous(shape, strides, dtype.itemsize):
        raise ValueError(f"{name} is not C-contiguous: strides {strides}, shape {shape}")
    return DeviceArray(address or 0, dtype.name, shape, interface.get("stream"))


def _from_dlpack(array: Any, name: str, stream: int) -> DeviceArray:
    """Read an array through DLPack. The stream waits for earlier work on the array."""
    kind, _ = array.__dlpack_device__()
    if kind not in (_CUDA, _CUDA_MANAGED):
        place = _DLPACK_DEVICES.get(kind, f"a device of DLPack's kind {kind}")
        raise ValueError(f"{name} is on {place}, expected a CUDA device")
    # DLPack calls the default stream 1.
    capsule = array.__dlpack__(stream=stream or 1)
    address, _, _, code, bits, shape, strides = kernels().read_dlpack(capsule)
    dtype = DLPACK_TYPES.get((code, bits), f"of DLPack's type {code} with {bits} bits")
    if not _is_contiguous(shape, strides, 1):
        raise ValueError(f"{name} is not C-contiguous: strides {strides}, shape {shape}")
    return DeviceArray(address, dtype, shape, None)


class ArrayReader:
    """Reads the arrays of a batch, and collects the arrays and their streams.

    Parameters
    ----------
    stream : int
        The address of the stream that will use the arrays first.

    Attributes
    ----------
    arrays : list
        All arrays read so far: keep them alive as long as their addresses are used.
    streams : set of int
        The streams that may still be writing these arrays.
    """

    def __init__(self, stream: int):
        self.stream = stream
        self.arrays: List[Any] = []
        self.streams: Set[int] = set()

    def read(
        self,
        array: Any,
        name: str,
        dtype: str = "",
        shape: Optional[Tuple[int, ...]] = None,
        written: bool = True,
    ) -> DeviceArray:
        """Read an array, and check its dtype and shape.

        Parameters
        ----------
        array : array
            An object with ``__cuda_array_interface__`` or ``__dlpack__``.
        name : str
            The name of the array, for messages.
        dtype : str, optional
            The expected dtype.
        shape : tuple of int, optional
            The expected shape.
        written : bool, default True
            Refuse read-only arrays.

        Raises
        ------
        TypeError, ValueError
            If the kernels cannot use the array.
        """
        interface = getattr(array, "__cuda_array_interface__", None)
        found = None if interface is None else _from_interface(interface, name, written)
        if found is None:
            if not hasattr(array, "__dlpack__"):
                raise TypeError(
                    f"{name} is {type(array).__name__}, expected an array with "
                    "__cuda_array_interface__ or __dlpack__"
                )
            found = _from_dlpack(array, name, self.stream)
        if dtype and found.dtype != dtype:
            raise TypeError(f"{name} is {found.dtype}, expected {dtype}")
        if shape is not None and found.shape != shape:
            raise ValueError(f"{name} has shape {found.shape}, expected {shape}")
        self.arrays.append(array)
        # The interface has no stream 0.
        if found.stream:
            self.streams.add(found.stream)
        return found

    def read_rows(self, array: Any, prefix: str, weight: DeviceArray) -> DeviceArray:
        """Read the row indices of a weight's gradient."""
        if not weight.shape:
            raise ValueError(f"{prefix}rows are given, and the weight has no dimension")
        rows = self.read(array, prefix + "rows", "int64", written=False)
        if len(rows.shape) != 1 or rows.shape[0] > weight.shape[0]:
            raise ValueError(
                f"{prefix}rows have shape {rows.shape}, expected one dimension of at most "
                f"{weight.shape[0]}, as the weight has rows"
            )
        return rows
