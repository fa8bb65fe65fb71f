# SPDX-License-Identifier: Apache-2.0
"""The types of arrays that the kernels know: csrc/common/dtype.h in Python. Needs NumPy alone."""

from typing import Any, Mapping, NamedTuple, Tuple

import numpy

BFLOAT16 = numpy.dtype([("bfloat16", numpy.uint16)])
"""What MXNet calls by this name."""


class DType(NamedTuple):
    """One type of numbers.

    Parameters
    ----------
    numpy : numpy.dtype
        What NumPy makes arrays of it with.
    dlpack_code : int
        How DLPack calls its kind: 0 for integers, 1 without sign, 2 for floating point, 4 for
        bfloat16.
    """

    numpy: Any
    dlpack_code: int

    @property
    def item_size(self) -> int:
        """The bytes of one number."""
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
"""All by their names; the last is that of row indices."""

DLPACK_TYPES: Mapping[Tuple[int, int], str] = {
    (dtype.dlpack_code, 8 * dtype.item_size): name for name, dtype in DTYPES.items()
}
"""Their names, by how DLPack calls them: code and bits."""

WEIGHT_TYPES = ("float32", "float64", "float16", "bfloat16")
"""What a weight can be of."""

STATE_TYPES: Mapping[str, Any] = {
    name: DTYPES[name].numpy for name in ("float16", "bfloat16", "int8")
}
"""What `state_dtype` can be."""
