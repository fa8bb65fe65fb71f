# SPDX-License-Identifier: Apache-2.0
"""Timing contenders in turn."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from typing import Any, Callable, Dict, Iterator, List, Sequence

import mxnet as mx
from rich.console import Console
from rich.progress import Progress

from .cases import CASES, Builder, Case, Contender

Samples = Dict[str, List[float]]

BUILDS = 5
"""How often a case is built: how fast memory is depends on where the system had some left."""

WARM_UP_ROUNDS = 2
SETTLE_SECONDS = 0.003
"""Before each call: OpenMP's threads go on spinning for a while after their work is done."""


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keep Python's garbage collector from running inside what is timed."""
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
    """One call in milliseconds."""
    contender.prepare()
    time.sleep(SETTLE_SECONDS)
    start = time.perf_counter()
    contender.call()
    return (time.perf_counter() - start) * 1e3


def release_memory() -> None:
    """Give back to the system what MXNet and the C library keep of memory no longer used."""
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
        How many times.

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
        What to time.
    rounds : int
        How many times.
    advance : callable
        Called after each round.

    Returns
    -------
    dict
        For each contender its times in milliseconds.
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
    """Measure the cases named, and show how far it has got."""
    samples = {}
    # A progress bar that refreshes by itself does so on a thread, inside what is timed.
    with Progress(console=console, auto_refresh=False, transient=True) as progress:
        for name in names:
            rounds = repeat or CASES[name].rounds
            task = progress.add_task(name, total=rounds)
            progress.refresh()

            def advance(task: Any = task) -> None:
                progress.advance(task)
                progress.refresh()

            samples[name] = measure(CASES[name], rounds, advance)
    return samples
