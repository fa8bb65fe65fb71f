# SPDX-License-Identifier: Apache-2.0
"""What the command line says where the package itself cannot be imported."""

import contextlib
import sys
from pathlib import Path
from types import TracebackType
from typing import Optional, Type


def is_the_command_line() -> bool:
    """Whether this process is ``mxadamax`` or ``python -m mxadamax``."""
    if sys.argv[:1] != ["-m"]:
        return bool(sys.argv) and Path(sys.argv[0]).name == "mxadamax"
    # While Python looks for the module, its name is nowhere else.
    with contextlib.suppress(OSError):
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
        return (b"-m", b"mxadamax") in zip(words, words[1:])
    return False


def explain_where_the_import_fails() -> None:
    """On the command line, end with this report where importing the package fails.

    ``python -m mxadamax`` imports the package before any of its modules, so only the package can
    see to that. Other processes are left alone.
    """
    if not is_the_command_line():
        return
    # Now: it asks the package for its version.
    from .info import report_of_this_process, tell

    def explain(
        kind: Type[BaseException], error: BaseException, traceback: Optional[TracebackType]
    ) -> None:
        # Were this to fail, Python would print both.
        sys.excepthook = sys.__excepthook__
        if not isinstance(error, Exception):
            sys.__excepthook__(kind, error, traceback)
            return
        report = report_of_this_process()
        if not any(str(error) in problem for problem in report.problems):
            report.problems.insert(0, f"import mxadamax fails: {kind.__name__}: {error}")
        tell(report, "--json" in sys.argv)

    sys.excepthook = explain
