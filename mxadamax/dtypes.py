# SPDX-License-Identifier: Apache-2.0
"""Define the dtypes of the kernels: csrc/common/dtype.h in Python. Needs only NumPy."""

from typing import Any, Mapping, NamedTuple, Tuple

import numpy

BFLOAT16 = numpy.dtype([("bfloat16", numpy.uint16)])
"""MXNet's dtype of this name."""


class DType(NamedTuple):
    """A dtype.

    Parameters
    ----------
    numpy : numpy.dtype
        Its NumPy dtype.
    dlpack_code : int
        Its DLPack type code: 0 for integers, 1 for unsigned ones, 2 for floating point, 4 for
        bfloat16.
    """

    numpy: Any
    dlpack_code: int

    @property
    def item_size(self) -> int:
        """Return the bytes of one number."""
        return int(self.numpy.itemsize)


DTYPES: Mapping[str, DType] = {
    "float32": DType(numpy.dtype("float32"), 2),
    "float64": DType(numpy.dtype("float64"), 2),
    "float16": DType(numpy.dtype("float16"), 2),
    "bfloat16": DType(BFLOAT16, 4),
    "int8": DType(numpy.dtype("int8"), 0),
    "uint8": DType(numpy.dtype("uint8"), 1),
    "int64": DType(numpy.dtype("int64"), 0),
}
"""All dtypes by name; int64 is that of row indices."""

DLPACK_TYPES: Mapping[Tuple[int, int], str] = {
    (dtype.dlpack_code, 8 * dtype.item_size): name for name, dtype in DTYPES.items()
}
"""The names of the dtypes, by DLPack code and bits."""

WEIGHT_TYPES = ("float32", "float64", "float16", "bfloat16")
"""The dtypes of weights."""

STATE_TYPES: Mapping[str, Any] = {
    name: DTYPES[name].numpy for name in ("float16", "bfloat16", "int8")
}
"""The values of `state_dtype`."""
