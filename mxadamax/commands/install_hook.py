# SPDX-License-Identifier: Apache-2.0
"""``mxadamax install-hook`` and ``remove-hook``: let a variable of the environment accelerate."""

import argparse
import sysconfig
from pathlib import Path

from mxadamax_hook import VARIABLE

NAME = "mxadamax_hook.pth"

LINE = f'import os; os.environ.get("{VARIABLE}") == "1" and __import__("mxadamax_hook").install()\n'
"""What Python runs at its start. It costs nothing where the variable is not set."""


def hook_path() -> Path:
    """Return where the file of the hook is, or would be: beside the installed packages."""
    return Path(sysconfig.get_path("purelib")) / NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command: there are none."""
    parser.description = (
        f"Write a file into this Python's packages, so that {VARIABLE}=1 in the environment is "
        "enough to accelerate every program. mxadamax remove-hook removes it."
    )


def run(given: argparse.Namespace) -> int:
    """Write the file."""
    hook_path().write_text(LINE)
    print(f"wrote {hook_path()}: set {VARIABLE}=1 to accelerate what this Python runs")
    return 0
