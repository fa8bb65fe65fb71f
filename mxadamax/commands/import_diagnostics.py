# SPDX-License-Identifier: Apache-2.0
"""Explain on the command line why the package cannot be imported."""

import contextlib
import sys
from pathlib import Path
from types import TracebackType
from typing import Optional, Type


def is_the_command_line() -> bool:
    """Return whether this process is ``mxadamax`` or ``python -m mxadamax``."""
    if sys.argv[:1] != ["-m"]:
        return bool(sys.argv) and Path(sys.argv[0]).name == "mxadamax"
    # While Python looks for the module, sys.argv does not have its name.
    with contextlib.suppress(OSError):
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
        return (b"-m", b"mxadamax") in zip(words, words[1:])
    return False


def explain_where_the_import_fails() -> None:
    """Make the command line end with a report if the import of the package fails.

    ``python -m mxadamax`` imports the package before any of its modules, so the package itself has
    to install this hook. Does nothing in other processes.
    """
    if not is_the_command_line():
        return
    # Import it now: it reads the version of the package.
    from .info import report_of_this_process, tell

    def explain(
        kind: Type[BaseException], error: BaseException, traceback: Optional[TracebackType]
    ) -> None:
        # If the report failed, Python would print both errors.
        sys.excepthook = sys.__excepthook__
        if not isinstance(error, Exception):
            sys.__excepthook__(kind, error, traceback)
            return
        report = report_of_this_process()
        if not any(str(error) in problem for problem in report.problems):
            report.problems.insert(0, f"import mxadamax fails: {kind.__name__}: {error}")
        tell(report, "--json" in sys.argv)

    sys.excepthook = explain
