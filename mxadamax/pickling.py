# SPDX-License-Identifier: Apache-2.0
"""Settle by which names optimizers are pickled: files of every version load with this one."""

import importlib
import sys
from typing import Any, Dict, Type, Union

FORMAT = 1
"""The format of what a pickled optimizer says of itself; 0 for files of version 0.1."""

_IN = {"AMSGrad": "adam"}
"""In which module of `mxadamax.optimizers` a class is, where that has not its name."""

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
"""The modules whose names files of version 0.1 hold, and where they are now."""


def alias_moved_modules() -> None:
    """Let modules be found by the names that they had in version 0.1."""
    for before, now in _MOVED.items():
        sys.modules[f"mxadamax.{before}"] = sys.modules[f"mxadamax.{now}"]


def name_of(cls: Type[Any]) -> Union[str, Type[Any]]:
    """Return what stands for a class in a file: for one of this package its name in it."""
    return cls.__name__ if cls.__module__.startswith("mxadamax.optimizers.") else cls


def new(cls: Union[str, Type[Any]]) -> Any:
    """Begin an optimizer that is unpickled.

    By name, it comes before the class in what a worker sends. So where a server does not find the
    class, it has imported this package by then, and ends.

    Parameters
    ----------
    cls : str or type
        What `name_of` returned.
    """
    found: Any = cls
    if isinstance(cls, str):
        # A server can get here inside the import of this package, which has no classes yet.
        module = importlib.import_module(f"mxadamax.optimizers.{_IN.get(cls, cls.lower())}")
        found = getattr(module, cls)
    return found.__new__(found)


def check_format(state: Dict[str, Any]) -> Dict[str, Any]:
    """Return what a pickled optimizer says of itself as this version writes it.

    Raises
    ------
    ValueError
        For a file of a newer version.
    """
    state = dict(state)
    found = state.pop("_format", 0)
    if type(found) is not int or found > FORMAT:
        raise ValueError(
            f"mxadamax: this file has format {found!r}, of a newer version; this one reads up to "
            f"{FORMAT}: install the newer one here too"
        )
    if "_ledgers" in state:
        state["_step_trackers"] = state.pop("_ledgers")
    return state
