# SPDX-License-Identifier: Apache-2.0
"""Import MXNet, also with a newer NumPy and Python than it supports, or say why that fails."""

import sys
import warnings
from types import ModuleType

from ..shared_library import fault, what_to_install
from .installation import different_versions, how_to_repair, library, location

NUMPY = "numpy<1.24" if sys.version_info < (3, 12) else "numpy>=1.26,<2"
"""The NumPy that MXNet works with on this Python, for pip."""


def import_mxnet() -> bool:
    """Import MXNet, and return whether it is installed.

    Raises
    ------
    ImportError
        If there is no NumPy, or if the import of NumPy or MXNet fails, with what to do.
    """
    numpy = import_numpy()
    if "mxnet" not in sys.modules:
        _check_library()
    # MXNet's import needs this name. NumPy 1.24 to 1.26 lack it, and warn on access.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lacks_bool = not hasattr(numpy, "bool")
    if lacks_bool:
        numpy.bool = bool  # type: ignore[attr-defined]
    try:
        import mxnet  # noqa: F401
    except Exception as error:
        if lacks_bool:
            del numpy.bool
        if isinstance(error, ModuleNotFoundError) and error.name == "mxnet":
            return False
        raise _failed(error) from error
    # A folder without __init__.py, and a script of this name, can be imported too.
    if "mxnet.base" not in sys.modules:
        raise ImportError(f"mxadamax: {location()} is not MXNet: {how_to_repair()}")
    return True


def import_numpy() -> ModuleType:
    """Import NumPy and return it.

    Raises
    ------
    ImportError
        If there is none, or if its import fails.
    """
    try:
        import numpy
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "numpy":
            raise ImportError(
                "mxadamax needs NumPy: install it with MXNet by pip install 'mxadamax[mxnet]', or "
                "alone, which is enough for mxadamax.cuda"
            ) from None
        raise ImportError(
            f"mxadamax: NumPy cannot be imported ({_summary(error)}): install it for this Python: "
            f"{sys.executable} -m pip install --force-reinstall '{NUMPY}'"
        ) from error
    return numpy


def missing() -> ImportError:
    """Return the error of what needs MXNet where there is none."""
    return ImportError(
        f"mxadamax needs Apache MXNet: {how_to_repair()}; only mxadamax.cuda works without"
    )


def _check_library() -> None:
    """Refuse a library that the system would not load, or by which it would end this process."""
    file = library()
    found = fault(file) if file else ""
    if found:
        raise ImportError(f"mxadamax: MXNet's library {file} {found}: {how_to_repair()}")


def _failed(error: Exception) -> ImportError:
    """Return an error that says that it is MXNet whose import fails, why, and what to do."""
    here = location()
    return ImportError(
        f"mxadamax: MXNet cannot be imported{f' from {here}' if here else ''} ({_summary(error)}), "
        f"nor by python -c 'import mxnet': {_what_to_do(error)}"
    )


def _what_to_do(error: Exception) -> str:
    import numpy

    if isinstance(error, Warning):
        return "it warns, and warnings are errors here: ignore those in modules of MXNet"
    if isinstance(error, OSError):
        return what_to_install(_text_of(error), otherwise=how_to_repair())
    if int(numpy.__version__.split(".")[0]) >= 2:
        return f"it needs NumPy 1, found NumPy {numpy.__version__}: pip install '{NUMPY}'"
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("mxnet"):
        # Python 3.12 and later come without distutils.
        package = "setuptools" if error.name == "distutils" else error.name
        return f"it needs {error.name}: pip install {package}"
    different = different_versions()
    return f"{different}: {how_to_repair()}" if different else how_to_repair()


def _summary(error: Exception) -> str:
    """Return the kind of an error and the first line of its text."""
    line = _text_of(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"


def _text_of(error: Exception) -> str:
    inner = error.args[0] if error.args else None
    # MXNet wraps the loader's error, and MXNet 2 one of libquadmath with an argument per letter.
    return "".join(map(str, inner.args)) if isinstance(inner, OSError) else str(error)
