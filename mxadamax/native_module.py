# SPDX-License-Identifier: Apache-2.0
"""Load the compiled module, or explain why that fails. Needs neither MXNet nor NumPy."""

import importlib.util
import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import NoReturn, Optional

from .shared_library import fault, what_to_install

PACKAGE = Path(__file__).resolve().parent

_ANEW = (
    f"install mxadamax anew: {sys.executable} -m pip install --force-reinstall --no-deps WHEEL, "
    "with the wheel for this Python and processor or the folder of the sources"
)


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
    try:
        check()
        spec = _find("_native")
        if spec is None or spec.loader is None:
            raise ImportError
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        refuse(error)
    return module


def check(name: str = "_native") -> None:
    """Raise an ImportError if loading a compiled module could end this process: it is damaged."""
    spec = _find(name)
    # Another module can stand for one in a rehearsal.
    if spec is None or not isinstance(spec.loader, ExtensionFileLoader):
        return
    found = fault(Path(spec.loader.path))
    if found:
        raise ImportError(f"mxadamax: the compiled module {spec.origin} {found}: {_ANEW}")


def of_another_python(name: str) -> Optional[ImportError]:
    """Return the error of a compiled module that is there for other Pythons, and not for this."""
    others = ", ".join(sorted(path.name for path in PACKAGE.glob(f"{name}.*.so")))
    if not others or _find(name):
        return None
    return ImportError(
        f"mxadamax: {PACKAGE} holds {others}, compiled for another Python; this one loads "
        f"{name}{EXTENSION_SUFFIXES[0]}: {_where_to_go(name)}"
    )


def refuse(error: ImportError, name: str = "_native") -> NoReturn:
    """Raise an ImportError that says why a compiled module does not load and what to do."""
    spec = _find(name)
    if spec is None:
        raise of_another_python(name) or ImportError(
            f"mxadamax: {PACKAGE} holds the sources without the compiled module: "
            f"{_where_to_go(name)}"
        ) from None
    if error.path != spec.origin:
        # It was raised by `check`, or by the initialization of a module that was loaded.
        raise error
    raise ImportError(
        f"mxadamax: the compiled module {spec.origin} cannot be loaded ({error}): "
        f"{_what_to_do(str(error))}"
    ) from error


def _what_to_do(message: str) -> str:
    if re.search(r"\b(GLIBC|GLIBCXX|CXXABI)_[\d.]+' not found", message):
        return (
            "it was compiled on a newer system; compile it on this one, in the sources: "
            "pip install --force-reinstall --no-deps ."
        )
    return what_to_install(message, _ANEW)


def _find(name: str) -> Optional[ModuleSpec]:
    return PathFinder.find_spec(name, [str(PACKAGE)])


def _where_to_go(name: str) -> str:
    folders = dict.fromkeys(Path(entry).resolve() / "mxadamax" for entry in sys.path)
    for folder in folders:
        if folder != PACKAGE and PathFinder.find_spec(name, [str(folder)]):
            return (
                f"it hides what is installed in {folder}; start Python in another folder, without "
                f"{PACKAGE.parent} in PYTHONPATH"
            )
    if not (PACKAGE.parent / "pyproject.toml").exists():
        return _ANEW
    return (
        "install mxadamax with this Python, in the sources: "
        f"{sys.executable} -m pip install --editable ."
    )
