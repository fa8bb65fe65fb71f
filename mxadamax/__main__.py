# SPDX-License-Identifier: Apache-2.0
"""The command line: ``mxadamax``, or ``python -m mxadamax``."""

import argparse
import importlib
import sys
from typing import Optional, Sequence

import mxadamax_hook

from . import __version__
from ._mxnet.importing import missing

COMMANDS = {
    "info": "print what is installed, and how to fix each problem",
    "verify": "compare every optimizer with the installed MXNet, bit for bit",
    "bench": "time the optimizers beside MXNet's and PyTorch's",
    "convert": "convert saved states of a built-in to ours, or back",
    "run": "run a program with MXNet's optimizers accelerated",
    "install-hook": "let a variable of the environment accelerate programs",
    "remove-hook": "undo install-hook",
}
"""The modules of `mxadamax.commands`, and what the hook runs itself, with a summary of each."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        The exit status: 0, or 1 if the command failed or found a problem.
    """
    # The hook of `import_diagnostics` is for failures before this.
    sys.excepthook = sys.__excepthook__
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv[:1] == ["run"]:
        # Its options end where the program's begin, which is for the hook to say.
        mxadamax_hook.run(argv[1:])
    parser = argparse.ArgumentParser(prog="mxadamax", description="Tools for the optimizers.")
    parser.add_argument("--version", action="version", version=f"mxadamax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = {}
    try:
        for name, summary in COMMANDS.items():
            command = commands.add_parser(name, help=summary)
            # Importing the other commands can take seconds.
            if argv[:1] == [name]:
                module = f"{__package__}.commands.{name.replace('-', '_')}"
                modules[name] = importlib.import_module(module)
                modules[name].add_arguments(command)
        given = parser.parse_args(argv, argparse.Namespace(argv=argv))
        status: int = modules[given.command].run(given)
    except (ImportError, OSError, ValueError) as error:
        message = missing() if getattr(error, "name", None) == "mxnet" else error
        print(f"mxadamax {argv[0]}: {message}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
