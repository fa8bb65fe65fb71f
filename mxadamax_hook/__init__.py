# SPDX-License-Identifier: Apache-2.0
"""Accelerate MXNet's optimizers as soon as a program imports MXNet; and the command line's start.

This package stands apart because `mxadamax` imports MXNet, which programs prepare: some set
variables of the environment first. It needs the standard library only.
"""

import importlib
import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Dict, List, Mapping, NoReturn, Optional, Sequence

VARIABLE = "MXADAMAX_ACCELERATE"
"""Set to 1, the variable of the environment that switches the hook on."""

REPORT = "MXADAMAX_ACCELERATE_REPORT"
"""The variable that holds the number of the process that ends with a report."""

VERIFY = "MXADAMAX_ACCELERATE_VERIFY"
"""The variable that holds how many updates each process computes both ways."""

_SERVERS = ("mxnet.kvstore_server", "mxnet.kvstore.kvstore_server")
"""The modules of MXNet in whose import a parameter server runs, and never comes back."""


class _Finder(MetaPathFinder):
    """Finds MXNet like Python does, and accelerates it once it has been imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Optional[ModuleSpec]:
        """Return the specification of MXNet, whose loader goes on to accelerate; else None."""
        is_server = name in _SERVERS and os.environ.get("DMLC_ROLE") == "server"
        if name != "mxnet" and not is_server:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            if name == "mxnet" and os.environ.get("DMLC_ROLE") == "server":
                sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            _accelerate_around(spec.loader, before=is_server)
        elif spec is not None:
            _say("mxnet is a folder without MXNet; mxadamax info says what to do")
        return spec


def _accelerate_around(loader: Any, before: bool) -> None:
    """Let a loader accelerate MXNet before or after it runs its module."""
    run = loader.exec_module

    def exec_module(module: Any) -> None:
        del loader.exec_module
        if before:
            _accelerate()
        try:
            run(module)
        except Exception:
            if not before:
                _say("import mxnet fails; mxadamax info says why, and what to do")
            raise
        if not before:
            _accelerate()

    loader.exec_module = exec_module


def _accelerate() -> None:
    """Accelerate, or say why not: the program goes on in any case, as without this package."""
    try:
        acceleration = importlib.import_module("mxadamax.acceleration")
        acceleration.accelerate()
        acceleration.verify_first(int(os.environ.get(VERIFY) or 0))
        if os.environ.get(REPORT) == str(os.getpid()):
            acceleration.print_report_at_exit()
    except Exception as error:
        _say(f"{type(error).__name__}: {error}".partition("\n")[0])


def _say(why: str) -> None:
    print(f"mxadamax: not accelerated: {why}", file=sys.stderr)


def install() -> None:
    """Accelerate MXNet when it is imported; at once if it is already."""
    if "mxnet" in sys.modules:
        _accelerate()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def environment(before: Mapping[str, str], report: bool = False, verify: int = 0) -> Dict[str, str]:
    """Return the environment in which every process of Python accelerates MXNet.

    A folder with a `sitecustomize`, which Python imports at its start, comes first in PYTHONPATH.
    """
    folder = str(Path(__file__).resolve().parent)
    paths = [path for path in before.get("PYTHONPATH", "").split(os.pathsep) if path]
    found = {
        **before,
        VARIABLE: "1",
        "PYTHONPATH": os.pathsep.join([folder, *(path for path in paths if path != folder)]),
    }
    for name, value in ((REPORT, str(os.getpid()) if report else ""), (VERIFY, str(verify or ""))):
        found.pop(name, None)
        if value:
            found[name] = value
    return found


USAGE = "usage: mxadamax run [--report] [--verify N] SCRIPT ... | -m MODULE ..."

HELP = f"""{USAGE}

Run a program with MXNet's optimizers accelerated: the same numbers in less time.

  -h, --help  print this
  --report    at the end, print how many updates were native, and why others were not
  --verify N  compute the first N steps of each optimizer both ways, and end at a bit that differs
  SCRIPT      the program, with its arguments
  -m MODULE   a module to run as a program, with its arguments"""


def run(arguments: Sequence[str]) -> NoReturn:
    """Become the program: Python runs it in this process, as if it had been started plainly."""
    rest = list(arguments)
    report, verify = False, 0
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        option = rest.pop(0)
        if option in ("-h", "--help"):
            print(HELP)
            sys.exit(0)
        name, equals, value = option.partition("=")
        if option == "--report":
            report = True
        elif name == "--verify" and (equals or rest):
            number = value if equals else rest.pop(0)
            if not number.isdecimal() or int(number) < 1:
                _refuse(f"--verify must be a whole number from 1, got {number!r}")
            verify = int(number)
        else:
            _refuse(f"unknown option {option!r}; those of the program come after it")
    if not rest or rest == ["-m"]:
        _refuse("names no program")
    flags: List[str] = _flags_of_this_python()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(
        sys.executable, [sys.executable, *flags, *rest], environment(os.environ, report, verify)
    )


def _flags_of_this_python() -> List[str]:
    import subprocess

    return list(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]


def _refuse(message: str) -> NoReturn:
    print(f"mxadamax run: {message}\n{USAGE}", file=sys.stderr)
    sys.exit(2)


def main() -> int:
    """Start the command line; for ``mxadamax run`` without importing `mxadamax`."""
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2:])
    status: int = importlib.import_module("mxadamax.__main__").main()
    return status
