# SPDX-License-Identifier: Apache-2.0
"""``mxadamax bench``: time the optimizers, MXNet's, PyTorch's, and the bandwidth baseline.

The contenders of a case run in turn, one call each per round, so other load on the machine affects
all of them alike. The memory that a contender happens to get can change its time by half and more,
so each case is built several times, each time in another order. Compare medians within one run,
never between runs.

Contenders
----------
adamax_ext, adamax, adam
    Gluon's Trainer with this package's AdaMax and with the built-ins.
no_op
    Gluon's Trainer with an optimizer that does nothing: the cost of Trainer itself.
bandwidth_baseline
    A compiled loop that makes the reads and writes of adamax_ext, in one call and on the same
    arrays, and computes almost nothing: the limit that memory sets.
arithmetic_baseline
    The same loop with as many divisions and square roots for each element as the optimizer has, and
    with the passes that find its norms, for those optimizers that memory bandwidth does not limit.
torch adamax, torch adam
    PyTorch's AdaMax (foreach) and Adam (fused), if PyTorch is installed.

The family-... cases time the other optimizers in the same way, each against a bandwidth baseline
with as many arrays as it reads and writes, and with Gluon's Trainer as well as this package's.
AMSGrad, which MXNet does not have, is timed beside ``adam``. PyTorch's are the fused ones if it has
them, else the foreach ones.

half-25m has float16 weights and gradients, with float32 master weights. In embedding-1000-rows, a
row-sparse gradient holds 1000 rows of a million; an untimed step comes before each timed one, so
that steps of a tenth of a millisecond do not depend on the time since the last one. 50-steps times
fifty steps together, each with other rows, and waits once after the last. In options-25m and
options-adam-25m, each contender is the optimizer with one more option; those named ``gluon clip``,
of this package and built-in, call gluon.utils.clip_global_norm before the step.

The trainer-... cases have mxadamax.Trainer beside Gluon's.

The sizes-... cases are single arrays of a thousand to 25 million numbers.

The accelerated-... cases compare built-ins with themselves under mxadamax.accelerate(), from one
number to 100 million and from one parameter to 20,000: no "MXNet / ours" should be below 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Sequence

from rich.console import Console

from ..machine import omp_threads
from .cases import CASES, cases_named, torch, torch_is_broken
from .measuring import run_cases
from .reporting import as_json, case_table, machine, summary_table


def positive(text: str) -> int:
    """Parse a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def known_cases(text: str) -> list[str]:
    """Parse the name or prefix of cases."""
    names = cases_named(text)
    if not names:
        raise argparse.ArgumentTypeError(f"there is no case {text!r}, only {', '.join(CASES)}")
    return names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--only",
        nargs="+",
        type=known_cases,
        metavar="NAME",
        default=[list(CASES)],
        help="cases to run, or prefixes such as sizes or family; the cases are " + ", ".join(CASES),
    )
    parser.add_argument(
        "--repeat",
        type=positive,
        metavar="N",
        help="rounds per case; by default fewer for large cases",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all measurements to this file"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot the results as PNG, SVG or PDF"
    )
    parser.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="FILE",
        help="plot a file of --json instead of measuring",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="OpenMP threads; by default MXNet decides, and uses half of the processors",
    )


def chosen(given: argparse.Namespace) -> list[str]:
    """Return the selected cases, once each."""
    return list(dict.fromkeys(name for group in given.only for name in group))


def restart_with(threads: int, argv: Sequence[str]) -> None:
    """Restart with a number of OpenMP threads, which MXNet reads only during its import."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    os.execve(sys.executable, [sys.executable, "-m", "mxadamax", *argv], environment)


def check_matplotlib() -> None:
    """Raise ValueError if matplotlib is missing or broken."""
    try:
        importlib.import_module(f"{__name__}.plots")
    except Exception as error:
        if getattr(error, "name", None) == "matplotlib":
            raise ValueError("--plot needs matplotlib: pip install 'mxadamax[plot]'") from None
        raise ValueError(
            "--plot needs matplotlib, which is installed and cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error


def check(given: argparse.Namespace) -> None:
    """Raise errors now that would otherwise come after an hour."""
    if given.source and not given.plot:
        raise ValueError("--from needs --plot: it says what to draw")
    if given.plot:
        check_matplotlib()
    if given.plot and given.plot.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot: expected a name that ends in .png, .svg or .pdf: {given.plot}")
    if given.plot and not given.source:
        from .plots import panels_of

        panels_of(chosen(given))
    files: list[Path] = [file for file in (given.json, given.plot) if file is not None]
    for file in files:
        if not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder {file.parent} to write {file.name} to")


def run(given: argparse.Namespace) -> int:
    """Run the selected cases, and print, write and plot the results."""
    check(given)
    if given.source:
        draw(json.loads(given.source.read_text()), given.plot)
        return 0
    if given.threads and os.environ.get("OMP_NUM_THREADS") != str(given.threads):
        restart_with(given.threads, given.argv)
    if torch is not None:
        torch.set_num_threads(omp_threads())

    console = Console()
    if torch_is_broken:
        said = f"without PyTorch, which cannot be imported: {torch_is_broken}"
        console.print(said, markup=False, soft_wrap=True)
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()), soft_wrap=True)
    samples = run_cases(chosen(given), given.repeat, console)
    for name, times in samples.items():
        console.print(case_table(name, times))
    console.print(summary_table(samples))
    result = as_json(samples)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    if given.plot:
        draw(result, given.plot)
    return 0


def draw(result: dict[str, object], file: Path) -> None:
    """Plot results. Imports matplotlib only now."""
    from .plots import draw

    draw(result, file)
