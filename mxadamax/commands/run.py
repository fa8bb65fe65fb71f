# SPDX-License-Identifier: Apache-2.0
"""``mxadamax run``: run a program with MXNet's optimizers accelerated."""

import argparse

import mxadamax_hook


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command: all are read by the hook, which starts the program."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = mxadamax_hook.USAGE[len("usage: ") :]
    parser.description = mxadamax_hook.HELP.split("\n\n", 1)[1]
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(given: argparse.Namespace) -> int:
    """Become the program."""
    mxadamax_hook.run(given.argv[1:])
