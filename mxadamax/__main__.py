# SPDX-License-Identifier: Apache-2.0
"""The command line: ``python -m mxadamax``."""

import argparse
import sys
from typing import Optional, Sequence

from .checkpoints import convert


def _add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "convert",
        help="turn saved states of a built-in into ours, or back",
        description=(
            "Turn a file that Trainer.save_states or mxadamax.save_states has written into one "
            "with which the corresponding optimizer goes on. The file is unpickled: convert only "
            "files that you trust."
        ),
    )
    parser.add_argument("old", help="file to read")
    parser.add_argument("new", help="file to write; it may be the same")
    parser.add_argument(
        "--to", required=True, metavar="NAME", help="who goes on, such as adamax_ext or adamax"
    )
    parser.add_argument(
        "--drop-averages", action="store_true", help="leave out the averages of ema_decay"
    )
    parser.set_defaults(run=lambda a: print(convert(a.old, a.new, a.to, a.drop_averages)))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit status: 0, or 1 where the command says on stderr why it could not.
    """
    parser = argparse.ArgumentParser(prog="mxadamax", description="Tools beside the optimizers.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_convert(commands)
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except (OSError, ValueError) as error:
        print(f"mxadamax {given.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
