# SPDX-License-Identifier: Apache-2.0
"""Load the compiled CUDA kernels."""

import importlib
from types import ModuleType

from ..native_module import check, of_another_python, refuse

_NAME = "_cuda"

MODULE = f"mxadamax.{_NAME}"

NOT_BUILT = (
    "mxadamax was built without CUDA kernels: install nvcc of CUDA 11.2 or later, and build "
    "mxadamax with the CMake option MXADAMAX_CUDA=ON"
)


def kernels() -> ModuleType:
    """Return the compiled kernels.

    Raises
    ------
    ImportError
        If mxadamax was built without a CUDA compiler, or if the module cannot be loaded.
    """
    try:
        check(_NAME)
        return importlib.import_module(MODULE)
    except ModuleNotFoundError:
        raise missing() from None
    except ImportError as error:
        refuse(error, _NAME)


def missing() -> ImportError:
    """Return the error of a module that is not there."""
    return of_another_python(_NAME) or ImportError(NOT_BUILT)
