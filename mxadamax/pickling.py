# SPDX-License-Identifier: Apache-2.0
"""Pickle optimizers by stable names, so this version loads the files of every version."""

import importlib
import sys
from typing import Any, Dict, Type, Union

FORMAT = 2
"""The format of a pickled optimizer; 0 for files of version 0.1.

In files of format 1 and 0, one `state_dtype` is that of every parameter.
"""

_IN = {"AMSGrad": "adam"}
"""The module in `mxadamax.optimizers` of each class that is not in the module of its name."""

_MOVED = {
    **{
        name: f"optimizers.{name}"
        for name in (
            *("adabelief", "adadelta", "adagrad", "adam", "adamax"),
            *("adamw", "nadam", "nag", "rmsprop", "sgd"),
        )
    },
    "optimizer": "optimizers.base",
    "parameter_server": "pickling",
}
"""The modules that files of version 0.1 name, and their present names."""


def alias_moved_modules() -> None:
    """Make modules importable by their names in version 0.1."""
    for before, now in _MOVED.items():
        sys.modules[f"mxadamax.{before}"] = sys.modules[f"mxadamax.{now}"]


def name_of(cls: Type[Any]) -> Union[str, Type[Any]]:
    """Return the representation of a class in a file: its name, if it is in this package."""
    return cls.__name__ if cls.__module__.startswith("mxadamax.optimizers.") else cls


def new(cls: Union[str, Type[Any]]) -> Any:
    """Create an empty optimizer for unpickling.

    A pickle names this function before the class. So a parameter server that cannot find the class
    has imported this package by then, and ends.

    Parameters
    ----------
    cls : str or type
        The result of `name_of`.
    """
    found: Any = cls
    if isinstance(cls, str):
        # A server can get here during the import of this package, before it has classes.
        module = importlib.import_module(f"mxadamax.optimizers.{_IN.get(cls, cls.lower())}")
        found = getattr(module, cls)
    return found.__new__(found)


def check_format(state: Dict[str, Any]) -> Dict[str, Any]:
    """Return the attributes of a pickled optimizer, converted to the present format.

    Raises
    ------
    ValueError
        If a newer version wrote the file.
    """
    state = dict(state)
    found = state.pop("_format", 0)
    if type(found) is not int or found > FORMAT:
        raise ValueError(
            f"mxadamax: this file has format {found!r}, of a newer version; this one reads up to "
            f"{FORMAT}: install the newer one here too"
        )
    if found < 2 and state.get("state_dtype") is not None:
        # Of small arrays and of embeddings as well.
        state["state_dtype"] = {".*": state["state_dtype"]}
    if "_ledgers" in state:
        state["_step_trackers"] = state.pop("_ledgers")
    return state
