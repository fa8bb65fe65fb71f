# SPDX-License-Identifier: Apache-2.0
"""Time contenders in turn."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from typing import Any, Callable, Dict, Iterator, List, Sequence

import mxnet as mx
from rich.console import Console
from rich.progress import Progress

from ...acceleration import decelerate
from .cases import CASES, Builder, Case, Contender

Samples = Dict[str, List[float]]

BUILDS = 5
"""Builds per case: the speed of memory depends on its placement."""

WARM_UP_ROUNDS = 2
SETTLE_SECONDS = 0.003
"""Pause before each call: OpenMP's threads spin for a while after their work."""


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed calls."""
    gc.collect()
    # Makes the collections between rounds cheap.
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def time_once(contender: Contender) -> float:
    """Time one call in milliseconds."""
    contender.prepare()
    time.sleep(SETTLE_SECONDS)
    start = time.perf_counter()
    contender.call()
    return (time.perf_counter() - start) * 1e3


def release_memory() -> None:
    """Return unused memory of MXNet and the C library to the system."""
    gc.collect()
    mx.nd.waitall()
    mx.cpu().empty_cache()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def time_build(builders: Sequence[Builder], rounds: int) -> Iterator[dict[str, float]]:
    """Build contenders and time them in turn.

    Parameters
    ----------
    builders : sequence of callable
        As in `Case`; contenders are built and run in this order.
    rounds : int
        Number of rounds.

    Yields
    ------
    dict
        The milliseconds of each contender in one round.
    """
    contenders: dict[str, Contender] = {}
    for build in builders:
        contenders.update(build())
    release_memory()
    with collector_off():
        for k in range(WARM_UP_ROUNDS + rounds):
            times = {name: time_once(contender) for name, contender in contenders.items()}
            gc.collect()
            if k >= WARM_UP_ROUNDS:
                yield times


def measure(case: Case, rounds: int, advance: Callable[[], None]) -> Samples:
    """Time the contenders of a case, over several builds.

    Parameters
    ----------
    case : Case
        The case to time.
    rounds : int
        Number of rounds.
    advance : callable
        Called after each round.

    Returns
    -------
    dict
        The times of each contender, in milliseconds.
    """
    samples: Samples = {}
    for build in range(min(BUILDS, rounds)):
        first = build * len(case.builders) // BUILDS
        builders = [*case.builders[first:], *case.builders[:first]]
        for times in time_build(builders, len(range(build, rounds, BUILDS))):
            for name, milliseconds in times.items():
                samples.setdefault(name, []).append(milliseconds)
            advance()
        release_memory()
    return samples


def run_cases(names: Sequence[str], repeat: int | None, console: Console) -> dict[str, Samples]:
    """Measure the named cases, with a progress bar."""
    samples = {}
    # An automatic refresh would run on a thread during timed calls.
    with Progress(console=console, auto_refresh=False, transient=True) as progress:
        for name in names:
            rounds = repeat or CASES[name].rounds
            task = progress.add_task(name, total=rounds)
            progress.refresh()

            def advance(task: Any = task) -> None:
                progress.advance(task)
                progress.refresh()

            samples[name] = measure(CASES[name], rounds, advance)
            decelerate()
    return samples
