# SPDX-License-Identifier: Apache-2.0
"""``mxadamax convert``: saved states for another optimizer."""

import argparse

from ..checkpoints import convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.description = (
        "Turn a file that Trainer.save_states or mxadamax.save_states has written into one with "
        "which the corresponding optimizer goes on. The file is unpickled: convert only files that "
        "you trust."
    )
    parser.add_argument("old", help="file to read")
    parser.add_argument("new", help="file to write; it may be the same")
    parser.add_argument(
        "--to", required=True, metavar="NAME", help="who goes on, such as adamax_ext or adamax"
    )
    parser.add_argument(
        "--drop-averages", action="store_true", help="leave out the averages of ema_decay"
    )


def run(given: argparse.Namespace) -> int:
    """Convert, and print what was converted."""
    print(convert(given.old, given.new, given.to, given.drop_averages))
    return 0
