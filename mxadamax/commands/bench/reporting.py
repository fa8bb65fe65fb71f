# SPDX-License-Identifier: Apache-2.0
"""Report results as tables and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from typing import Any

import mxnet as mx
import numpy as np
from rich.table import Table

from ... import __version__, _native
from ..machine import cpu_model, omp_threads
from .cases import CASES, torch
from .measuring import Samples


def machine() -> dict[str, Any]:
    """Describe the machine and the versions that the figures depend on."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "omp_threads": omp_threads(),
        "instruction_set": _native.instruction_set,
        "python": platform.python_version(),
        "mxnet": mx.__version__,
        "numpy": np.__version__,
        "torch": None if torch is None else torch.__version__,
        "mxadamax": __version__,
    }


def medians_of(samples: Samples) -> dict[str, float]:
    """Return the median of each contender."""
    return {name: statistics.median(times) for name, times in samples.items()}


def ratio(samples: Samples, numerator: str, *denominators: str) -> str:
    """Format the ratio of one contender's time to the sum of others'.

    It is the median of the rounds' ratios: what slows the machine down for a while slows all
    contenders of a round.
    """
    if not {numerator, *denominators} <= samples.keys():
        return ""
    rounds = zip(samples[numerator], *(samples[name] for name in denominators))
    return f"{statistics.median(ours / sum(others) for ours, *others in rounds):.2f}"


def limit_of(samples: Samples) -> str:
    """Return the slower of the baselines: what an update cannot take less than."""
    medians = medians_of(samples)
    baselines = ("bandwidth_baseline", "arithmetic_baseline")
    return max(baselines, key=lambda name: medians.get(name, 0))


def case_table(name: str, samples: Samples) -> Table:
    """Format the contenders of one case, the fastest first."""
    rounds = len(next(iter(samples.values())))
    title = f"{name}: {CASES[name].elements():,} parameters, {rounds} rounds"
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    ours = CASES[name].ours
    for header in ("median ms", "min ms", f"/ {ours}", "/ baseline"):
        table.add_column(header, justify="right")
    medians = medians_of(samples)
    for contender in sorted(medians, key=medians.__getitem__):
        table.add_row(
            contender,
            f"{medians[contender]:.3f}",
            f"{min(samples[contender]):.3f}",
            ratio(samples, contender, ours),
            ratio(samples, contender, "bandwidth_baseline"),
            style="bold" if contender == ours else None,
        )
    return table


def summary_table(samples: dict[str, Samples]) -> Table:
    """Format the main ratios of all cases."""
    table = Table(title="Medians of ratios", title_justify="left")
    table.add_column("case", no_wrap=True)
    for header in (
        "MXNet / ours",
        "torch / ours",
        "ours / baseline",
        "ours / (limit + no_op)",
        "ours / no_op",
    ):
        table.add_column(header, justify="right")
    for name, times in samples.items():
        case, limit = CASES[name], limit_of(times)
        table.add_row(
            name,
            ratio(times, case.built_in, case.ours),
            ratio(times, case.torch, case.ours),
            ratio(times, case.ours, "bandwidth_baseline"),
            ratio(times, case.ours, limit, "no_op"),
            ratio(times, case.ours, "no_op"),
        )
    return table


def as_json(samples: dict[str, Samples]) -> dict[str, Any]:
    """Return all measurements, with the machine."""
    return {
        "machine": machine(),
        "parameters": {name: CASES[name].elements() for name in samples},
        "cases": {
            name: {
                contender: {
                    "median_ms": statistics.median(times),
                    "min_ms": min(times),
                    "samples_ms": times,
                }
                for contender, times in contenders.items()
            }
            for name, contenders in samples.items()
        },
    }
