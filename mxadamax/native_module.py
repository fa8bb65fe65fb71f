# SPDX-License-Identifier: Apache-2.0
"""Load the compiled module, or explain why that fails. Needs neither MXNet nor NumPy."""

import importlib.util
import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path
from types import ModuleType
from typing import NoReturn

PACKAGE = Path(__file__).resolve().parent

_LIBRARIES = (
    (r"libgomp", "install GCC's OpenMP library: libgomp1 on Debian and Ubuntu, libgomp on Fedora"),
    (
        r"\b(GLIBC|GLIBCXX|CXXABI)_[\d.]+' not found",
        "it was compiled on a newer system; compile it on this one, in the sources: "
        "pip install --force-reinstall --no-deps .",
    ),
    ("", "install mxadamax anew, in the sources: pip install --force-reinstall --no-deps ."),
)
"""Patterns of the loader's messages, each with advice; the first match counts."""


def load() -> ModuleType:
    """Return the compiled module, even if the package around it cannot be imported.

    Raises
    ------
    ImportError
        If it cannot be loaded, with the message of `refuse`.
    """
    loaded = sys.modules.get("mxadamax._native")
    if loaded is not None:
        return loaded
    spec = PathFinder.find_spec("_native", [str(PACKAGE)])
    if spec is None or spec.loader is None:
        refuse(ImportError())
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        refuse(error)
    return module


def refuse(error: ImportError) -> NoReturn:
    """Raise an ImportError that says why the module does not load and what to do."""
    spec = PathFinder.find_spec("_native", [str(PACKAGE)])
    if spec is None:
        others = ", ".join(sorted(path.name for path in PACKAGE.glob("_native.*.so")))
        if others:
            raise ImportError(
                f"mxadamax: {PACKAGE} holds {others}, compiled for another Python; this one loads "
                f"_native{EXTENSION_SUFFIXES[0]}: {_where_to_go()}"
            ) from None
        raise ImportError(
            f"mxadamax: {PACKAGE} holds the sources without the compiled module: {_where_to_go()}"
        ) from None
    if error.path != spec.origin:
        # The module was loaded, and its initialization raised this.
        raise error
    advice = next(advice for pattern, advice in _LIBRARIES if re.search(pattern, str(error)))
    raise ImportError(
        f"mxadamax: the compiled module {spec.origin} cannot be loaded ({error}): {advice}"
    ) from error


def _where_to_go() -> str:
    folders = dict.fromkeys(Path(entry).resolve() / "mxadamax" for entry in sys.path)
    for folder in folders:
        if folder != PACKAGE and PathFinder.find_spec("_native", [str(folder)]):
            return (
                f"it hides what is installed in {folder}; start Python in another folder, without "
                f"{PACKAGE.parent} in PYTHONPATH"
            )
    return (
        "install mxadamax with this Python, in the sources: "
        f"{sys.executable} -m pip install --editable ."
    )
