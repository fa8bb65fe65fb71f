# SPDX-License-Identifier: Apache-2.0
"""Bind the native code to the MXNet library that this process has loaded."""

import ctypes
import functools
import sys
from types import FrameType, ModuleType
from typing import Optional

from mxnet.base import _LIB
from mxnet.ndarray import sparse, zeros

from .. import _native
from .compatibility import C_FUNCTIONS
from .versions import SUPPORTED


@functools.lru_cache(maxsize=None)
def native() -> ModuleType:
    """Bind the native code to MXNet, once, and return it.

    This cannot happen at import: a parameter server imports this package while MXNet itself is only
    half imported.

    Raises
    ------
    ImportError
        If this MXNet lacks a function that is needed, or has an unknown array layout.
    """

    def address_of(name: str) -> int:
        name = C_FUNCTIONS.get(name, name)
        try:
            return ctypes.cast(getattr(_LIB, name), ctypes.c_void_p).value or 0
        except AttributeError:
            raise ImportError(
                f"mxadamax: this MXNet library has no function {name}; supported are {SUPPORTED}"
            ) from None

    _native.bind(address_of)
    _native.register_device_backend(_kernels_for_devices)
    array, other = zeros((2,)), zeros((2,))
    if not _native.share_memory(array, array[0:1]) or _native.share_memory(array, other):
        raise ImportError(
            f"mxadamax: this MXNet lays out its arrays differently; supported are {SUPPORTED}"
        )
    # If this finds nothing, row_sparse gradients are refused.
    numbers = [[7, 123_456_789], [11, 987_654_321], [13, 555_555_555]]
    shape = (1 << 30, 1)
    arrays = [sparse.row_sparse_array(([[1.0], [2.0]], rows), shape=shape) for rows in numbers]
    for array in arrays:
        array.wait_to_read()
    _native.find_row_indices(list(zip(arrays, numbers)))
    return _native


def _kernels_for_devices() -> ModuleType:
    from .. import cuda

    return cuda.kernels()


def inside_kvstore_update() -> bool:
    """Return whether the caller runs in a key-value store's update.

    MXNet calls that through C and drops exceptions that Python raises there.
    """
    frame: Optional[FrameType] = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "updater_handle" and "kvstore" in code.co_filename:
            return True
        frame = frame.f_back
    return False
