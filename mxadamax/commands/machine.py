# SPDX-License-Identifier: Apache-2.0
"""What a process knows about the machine that it runs on."""

import contextlib
import ctypes
import platform
from pathlib import Path


def omp_threads() -> int:
    """How many threads OpenMP gives MXNet, this package and the benchmark's floor."""
    return int(ctypes.CDLL("libgomp.so.1").omp_get_max_threads())


def cpu_model() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
