# SPDX-License-Identifier: Apache-2.0
"""``mxadamax convert``: convert saved states for another optimizer."""

import argparse
import ast
from typing import Any, Tuple

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
    parser.add_argument(
        "--from",
        dest="optimizer",
        metavar="NAME",
        help="the optimizer that wrote a file of states alone (Module.save_optimizer_states, "
        "Updater.get_states()), such as adam",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="an option of that optimizer that is not its default, such as momentum=0.9; with "
        "begin_num_update, the number of updates so far, the new file has an optimizer, which "
        "Trainer.load_states needs",
    )


def _option(text: str) -> Tuple[str, Any]:
    """Parse an option: its value is a Python literal, or text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def run(given: argparse.Namespace) -> int:
    """Convert a file and print a summary."""
    named = {"optimizer": given.optimizer, "optimizer_params": dict(given.option)}
    print(convert(given.old, given.new, given.to, given.drop_averages, **named))
    return 0
