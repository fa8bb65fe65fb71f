# SPDX-License-Identifier: Apache-2.0
"""Find the files of MXNet and say how to repair them. Imports neither MXNet nor NumPy."""

import ctypes
import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional

from .versions import SUPPORTED

if TYPE_CHECKING:
    from importlib.metadata import Distribution


def location() -> Optional[Path]:
    """Return the folder or the file that ``import mxnet`` imports."""
    spec = PathFinder.find_spec("mxnet")
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0] if folders else str(spec.origin))


def library() -> Optional[Path]:
    """Return the library that MXNet's import loads, by the order in which MXNet looks for it."""
    named = os.environ.get("MXNET_LIBRARY_PATH")
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep), str(location() or "")]
    files = [*filter(None, [named]), *(f"{folder}/libmxnet.so" for folder in folders if folder)]
    return next((Path(file) for file in files if os.path.isfile(file)), None)


def distributions() -> List[str]:
    """Return the names and versions of the distributions that have installed MXNet's files."""
    # Not at import, which it would slow down.
    import importlib.metadata

    here = location()
    return sorted(
        {
            f"{found.metadata['Name']} {found.version}"
            for found in importlib.metadata.distributions()
            if _has_mxnet(found)
            and (here is None or Path(str(found.locate_file("mxnet"))).resolve() == here.resolve())
        }
    )


def _has_mxnet(found: "Distribution") -> bool:
    """Return whether a distribution has a package `mxnet`, under whatever name of its own."""
    return "mxnet" in (found.read_text("top_level.txt") or "").split() or (
        "\nmxnet/__init__.py," in "\n" + (found.read_text("RECORD") or "")
    )


def different_versions() -> str:
    """Return how MXNet's Python files differ from its library, once imported; else empty."""
    libinfo, file = sys.modules.get("mxnet.libinfo"), library()
    if libinfo is None or file is None:
        return ""
    number = ctypes.c_int()
    ctypes.CDLL(str(file)).MXGetVersion(ctypes.byref(number))
    of_library = f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"
    of_python = str(getattr(libinfo, "__version__", ""))
    if re.match(r"[\d.]*", of_python)[0] == of_library:  # type: ignore[index]
        return ""
    return f"MXNet's Python files are of version {of_python}, and {file} is of {of_library}"


def how_to_repair() -> str:
    """Return what to do with what is installed to get an MXNet that is whole."""
    here, file, found = location(), library(), distributions()
    if here and here.is_file():
        return f"rename {here}, which hides MXNet"
    if here and file and file.parent != here:
        return f"take {file} out of LD_LIBRARY_PATH and MXNET_LIBRARY_PATH"
    if not found:
        return (
            "install it with pip install 'mxadamax[mxnet]', or the flavour for your machine of "
            f"{SUPPORTED.replace(' and ', ' or ')}"
        )
    if len(found) == 1:
        name = found[0].replace(" ", "==")
        return f"install MXNet anew: pip install --force-reinstall --no-deps {name}"
    return over_each_other(found)


def over_each_other(found: List[str]) -> str:
    """Return what to do with several distributions, whose files have overwritten each other."""
    return (
        f"{' and '.join(found)} are installed over each other: pip uninstall "
        f"{' '.join(name.split()[0] for name in found)}, then install one of them"
    )
