# SPDX-License-Identifier: Apache-2.0
"""``mxadamax info``: print what is installed, and how to fix each problem.

Users run it when something is broken, so it needs neither MXNet, nor NumPy, nor the compiled
module.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from typing import Any, Dict, List, Optional

from .. import __version__
from .._mxnet.importing import MISSING
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
    if not PYTHONS[0] <= version[:2] <= PYTHONS[1]:
        report.problems.append(
            f"Python {report.facts['Python']} is not one of those supported: make an environment "
            f"with Python {oldest} to {newest}"
        )


def look_at_numpy(report: Report) -> None:
    """Check NumPy's version, and whether MXNet works with it."""
    fits = "numpy<1.24" if sys.version_info < (3, 12) else "numpy>=1.26,<2"
    try:
        numpy = importlib.import_module("numpy")
    except Exception as error:
        report.facts["NumPy"] = None
        report.problems.append(f"NumPy cannot be imported ({error}): pip install '{fits}'")
        return
    report.facts["NumPy"] = numpy.__version__
    if int(numpy.__version__.split(".")[0]) >= 2:
        report.problems.append(
            f"NumPy {numpy.__version__} is too new for MXNet: pip install '{fits}'"
        )


def flavours() -> List[str]:
    """Return the installed distributions of MXNet, with their versions."""
    return sorted(
        f"{name} {found.version}"
        for found in importlib.metadata.distributions()
        for name in [found.metadata["Name"] or ""]
        if name == "mxnet" or name.startswith("mxnet-cu") or name == "mxnet-native"
    )


def look_at_mxnet(report: Report) -> None:
    """Check MXNet's version, flavour and features."""
    installed = list(dict.fromkeys(flavours()))
    report.facts["MXNets supported"] = list(MXNETS)
    report.facts["MXNet's packages"] = installed
    if len(installed) > 1:
        report.problems.append(
            f"{' and '.join(installed)} are installed over each other: pip uninstall "
            f"{' '.join(name.split()[0] for name in installed)}, then install one of them"
        )
    if sys.version_info >= (3, 12) and importlib.util.find_spec("distutils") is None:
        report.problems.append("MXNet needs distutils: pip install setuptools")
    # A broken MXNet can raise anything.
    try:
        mxnet = importlib.import_module("mxnet")
        version = str(mxnet.__version__)
        enabled = [name for name, found in mxnet.runtime.Features().items() if found.enabled]
    except Exception as error:
        report.facts["MXNet"] = None
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == "mxnet"
        report.problems.append(
            MISSING if is_missing else f"import mxnet fails: {type(error).__name__}: {error}"
        )
        return
    report.facts["MXNet"] = version
    report.facts["MXNet compiled with"] = enabled
    look_at_interface(report, version)


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
