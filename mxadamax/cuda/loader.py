# SPDX-License-Identifier: Apache-2.0
"""Load the compiled CUDA kernels."""

import importlib
from types import ModuleType

MODULE = "mxadamax._cuda"

NOT_BUILT = (
    "mxadamax was built without CUDA kernels: install nvcc of CUDA 11.2 or later, and build "
    "mxadamax with the CMake option MXADAMAX_CUDA=ON"
)


def kernels() -> ModuleType:
    """Return the compiled kernels.

    Raises
    ------
    ImportError
        If mxadamax was built without a CUDA compiler.
    """
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError:
        raise ImportError(NOT_BUILT) from None
