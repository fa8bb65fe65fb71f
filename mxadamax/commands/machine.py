# SPDX-License-Identifier: Apache-2.0
"""Facts about the machine that a process runs on."""

import contextlib
import ctypes
import platform
from pathlib import Path


def omp_threads() -> int:
    """Return the number of OpenMP threads that MXNet, this package and the baseline use."""
    return int(ctypes.CDLL("libgomp.so.1").omp_get_max_threads())


def cpu_model() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
