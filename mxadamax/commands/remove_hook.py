# SPDX-License-Identifier: Apache-2.0
"""``mxadamax remove-hook``: remove what ``mxadamax install-hook`` has written."""

import argparse

from .install_hook import hook_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command: there are none."""
    parser.description = "Remove the file that mxadamax install-hook has written."


def run(given: argparse.Namespace) -> int:
    """Remove the file, if it is there."""
    path = hook_path()
    if path.exists():
        path.unlink()
        print(f"removed {path}")
    else:
        print(f"there is no {path}")
    return 0
