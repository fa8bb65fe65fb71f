# SPDX-License-Identifier: Apache-2.0
"""``mxadamax convert``: convert saved states for another optimizer."""

import argparse

from ..checkpoints import convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Convert a file of Trainer.save_states or mxadamax.save_states for the corresponding "
        "optimizer. The file is unpickled: convert only files that you trust."
    )
    parser.add_argument("old", help="file to read")
    parser.add_argument("new", help="file to write; it may be the same")
    parser.add_argument(
        "--to",
        required=True,
        metavar="NAME",
        help="the optimizer to convert for, such as adamax_ext or adamax",
    )
    parser.add_argument(
        "--drop-averages", action="store_true", help="omit the averages of ema_decay"
    )


def run(given: argparse.Namespace) -> int:
    """Convert a file and print a summary."""
    print(convert(given.old, given.new, given.to, given.drop_averages))
    return 0
