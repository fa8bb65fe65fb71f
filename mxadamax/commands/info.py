# SPDX-License-Identifier: Apache-2.0
"""``mxadamax info``: print what is installed, and how to fix each problem.

Users run it when something is broken, so it needs neither MXNet, nor NumPy, nor the compiled
module.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
from typing import Any, Dict, List, Optional

from .. import __version__
from .._mxnet.importing import import_mxnet, import_numpy, missing
from .._mxnet.installation import (
    different_versions,
    distributions,
    how_to_repair,
    over_each_other,
)
from .._mxnet.versions import MXNETS, PYTHONS, SUPPORTED, is_tried
from ..native_module import PACKAGE, load
from .machine import cpu_model, omp_threads


class Report:
    """The findings of `mxadamax info`.

    Parameters
    ----------
    facts : dict
        Names and values, for a table and for JSON.
    problems : list of str
        Problems, each with its fix.
    hints : list of str
        Possible improvements.
    """

    def __init__(self) -> None:
        self.facts: Dict[str, Any] = {}
        self.problems: List[str] = []
        self.hints: List[str] = []

    def __str__(self) -> str:
        return json.dumps(vars(self), indent=1)


def look_at_python(report: Report) -> None:
    """Check Python's version."""
    version = sys.version_info
    report.facts["mxadamax"] = f"{__version__}, in {PACKAGE}"
    report.facts["Python"] = ".".join(map(str, version[:3]))
    oldest, newest = (".".join(map(str, bound)) for bound in PYTHONS)
    report.facts["Pythons supported"] = f"{oldest} to {newest}"
    if version[:2] > PYTHONS[1]:
        report.hints.append(
            f"Python {report.facts['Python']} has not been tried; mxadamax verify compares every "
            f"optimizer there. Tried are {oldest} to {newest}"
        )


def look_at_numpy(report: Report) -> None:
    """Check NumPy's version."""
    report.facts["NumPy"] = None
    try:
        version = import_numpy().__version__
    except ImportError as error:
        report.problems.append(str(error))
        return
    report.facts["NumPy"] = version
    if [1, 24] <= list(map(int, version.split(".")[:2])) < [2]:
        report.hints.append(
            f"NumPy {version} has no numpy.bool, which MXNet's import needs: import mxadamax "
            "before mxnet"
        )


def look_at_mxnet(report: Report) -> None:
    """Check MXNet's version, flavour and features."""
    installed = distributions()
    report.facts["MXNets supported"] = list(MXNETS)
    report.facts["MXNet's packages"] = installed
    report.facts["MXNet"] = None
    # A broken MXNet can raise anything.
    try:
        if not import_mxnet():
            raise missing()
        mxnet = sys.modules["mxnet"]
        report.facts["MXNet"] = version = str(mxnet.__version__)
        features = mxnet.runtime.Features()
        report.facts["MXNet compiled with"] = [k for k, found in features.items() if found.enabled]
        look_at_interface(report, version)
    except Exception as error:
        report.problems.append(str(error))
    else:
        look_at_files(report, installed)


def look_at_files(report: Report, installed: List[str]) -> None:
    """Check that the files of an MXNet that can be imported are of one version and flavour."""
    different = different_versions()
    if different:
        report.problems.append(f"{different}: {how_to_repair()}")
    elif len(installed) > 1:
        report.problems.append(over_each_other(installed))


def look_at_interface(report: Report, version: str) -> None:
    """Check that MXNet has the interface that this package needs."""
    wrong: Optional[str] = "mxadamax cannot be imported with it"
    if "mxadamax._mxnet.engine" in sys.modules:
        try:
            sys.modules["mxadamax._mxnet.engine"].native()
            wrong = None
        except ImportError as error:
            wrong = str(error)
    if is_tried(version):
        # A failing import of the package is reported elsewhere.
        if wrong and "mxadamax._mxnet.engine" in sys.modules:
            report.problems.append(wrong)
    elif wrong or version.split(".")[0] not in ("1", "2"):
        report.problems.append(
            f"MXNet {version} is not one of those supported{f' ({wrong})' if wrong else ''}: "
            f"pip install 'mxnet=={MXNETS[0]}' or 'mxnet=={MXNETS[1]}'"
        )
    else:
        report.hints.append(
            f"MXNet {version} has not been tried. It has all that is called; mxadamax verify "
            f"compares every optimizer with it. Tried are {SUPPORTED}"
        )


def look_at_processor(report: Report) -> None:
    """Check which kernels run here, and on how many threads."""
    report.facts["processor"] = cpu_model()
    cores = len(os.sched_getaffinity(0))
    report.facts["processors to use"] = cores
    forced = os.environ.get("MXADAMAX_INSTRUCTION_SET")
    report.facts["MXADAMAX_INSTRUCTION_SET"] = forced
    try:
        native = load()
    except ImportError as error:
        report.facts["instruction set"] = None
        report.problems.append(str(error))
        return
    report.facts["instruction set"] = native.instruction_set
    report.facts["instruction sets available"] = list(native.instruction_sets)
    best = native.instruction_sets[-1]
    if native.instruction_set != best:
        report.hints.append(
            f"MXADAMAX_INSTRUCTION_SET={forced} is set: without it, {best} would be used"
        )
    report.facts["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS")
    with contextlib.suppress(OSError):
        threads = omp_threads()
        report.facts["OpenMP threads"] = threads
        if threads < cores:
            report.hints.append(
                f"{threads} of {cores} processors are used: OMP_NUM_THREADS={cores} uses all, for "
                "MXNet's operators too. MXNet leaves half of them alone by default, since two may "
                "share a core"
            )


def look_at_cuda(report: Report) -> None:
    """Describe the CUDA kernels."""
    try:
        cuda = importlib.import_module("mxadamax.cuda")
    except Exception:
        # The import of a broken package can raise anything.
        report.facts["CUDA"] = "not looked at, since mxadamax cannot be imported"
    else:
        found = cuda.describe()
        gpus = [gpu._asdict() for gpu in found.gpus]
        report.facts["CUDA"] = {**found._asdict(), "gpus": gpus}


def report_of_this_process() -> Report:
    """Check everything, even if some of it is broken."""
    report = Report()
    look_at_python(report)
    look_at_numpy(report)
    look_at_mxnet(report)
    look_at_processor(report)
    look_at_cuda(report)
    return report


def as_text(value: Any) -> str:
    """Format a fact for the table."""
    if value is None or value in ("", [], ()):
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {as_text(found)}" for name, found in value.items())
    return ", ".join(map(as_text, value)) if isinstance(value, (list, tuple)) else str(value)


def print_report(report: Report) -> None:
    """Print a table of the facts, then problems and hints."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except Exception as error:
        report.problems.append(
            f"rich cannot be imported ({error}), which the other commands need: pip install rich"
        )
        print_plainly(report)
        return

    console = Console()
    table = Table(show_header=False)
    for name, value in report.facts.items():
        # As text, so that brackets are not markup.
        table.add_row(name, Text(as_text(value)))
    console.print(table)
    for kind, lines, style in (
        ("problem", report.problems, "bold red"),
        ("hint", report.hints, "bold"),
    ):
        for line in lines:
            console.print(Text.assemble((f"{kind}: ", style), line), soft_wrap=True)
    if not report.problems:
        console.print("no problems found")


def print_plainly(report: Report) -> None:
    """Print a report in plain lines."""
    for name, value in report.facts.items():
        print(f"{name}: {as_text(value)}")
    for kind, lines in (("problem", report.problems), ("hint", report.hints)):
        for line in lines:
            print(f"{kind}: {line}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Print versions, instruction sets, threads, MXNet's features, and how to fix each problem. "
        "The exit status is 1 if there is a problem."
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(given: argparse.Namespace) -> int:
    """Print the report; return 1 if there is a problem."""
    return tell(report_of_this_process(), given.json)


def tell(report: Report, as_json: bool) -> int:
    """Print a report; return 1 if it has a problem."""
    if as_json:
        print(report)
    else:
        print_report(report)
    return 1 if report.problems else 0
