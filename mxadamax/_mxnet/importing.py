# SPDX-License-Identifier: Apache-2.0
"""Import MXNet, also with a newer NumPy and Python than it supports."""

import sys
import warnings
from typing import NoReturn

from .versions import SUPPORTED

MISSING = (
    "mxadamax needs Apache MXNet: install it with pip install 'mxadamax[mxnet]', or the flavour "
    f"for your machine of {SUPPORTED.replace(' and ', ' or ')}; only mxadamax.cuda works without"
)
"""The message if MXNet is not installed."""


def import_mxnet() -> bool:
    """Import MXNet, and return whether it is installed.

    Raises
    ------
    ImportError
        If MXNet or this package lacks another package, or has a wrong version of it.
    Exception
        Whatever a broken MXNet raises.
    """
    try:
        import numpy
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise ImportError(
            "mxadamax needs NumPy: install it with MXNet by pip install 'mxadamax[mxnet]', or "
            "alone, which is enough for mxadamax.cuda"
        ) from None
    # MXNet's import needs this name. NumPy 1.24 to 1.26 lack it, and warn on access.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lacks_bool = not hasattr(numpy, "bool")
    if lacks_bool:
        numpy.bool = bool  # type: ignore[attr-defined]
    try:
        import mxnet  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "mxnet":
            if lacks_bool:
                del numpy.bool  # type: ignore[attr-defined]
            return False
        if error.name == "distutils":
            raise ImportError(
                "mxadamax: MXNet needs distutils, which Python 3.12 and later do not have: "
                "install them with pip install setuptools"
            ) from error
        raise
    except AttributeError as error:
        if int(numpy.__version__.split(".")[0]) < 2:
            raise
        raise ImportError(
            f"mxadamax: MXNet needs NumPy 1, found NumPy {numpy.__version__}: install it with "
            f"pip install 'numpy<{'2' if sys.version_info >= (3, 12) else '1.24'}'"
        ) from error
    return True


def refuse_without_mxnet() -> NoReturn:
    """Raise an ImportError that says what to install."""
    raise ImportError(MISSING)
