# SPDX-License-Identifier: Apache-2.0
"""Say why the system does not load a shared library. Needs the standard library only."""

import os
import re
import sys
from pathlib import Path

_HEADER = 64
"""The bytes of an ELF header of 64 bits."""

_PROCESSORS = {3: "i686", 21: "ppc64le", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""The numbers of processors in an ELF header."""

_PACKAGES = (
    (
        r"libgomp\.",
        "install GCC's OpenMP library: libgomp1 on Debian and Ubuntu, libgomp on Fedora",
    ),
    (
        r"libquadmath\.",
        "install GCC's library of quadruple precision: libquadmath0 on Debian and Ubuntu, "
        "libquadmath on Fedora",
    ),
    (
        r"lib(cu|nccl|nv)[\w-]*\.so",
        "install NVIDIA's driver, CUDA, cuDNN and NCCL of the versions that it was built with, or "
        "a flavour without CUDA",
    ),
)
"""Patterns of libraries that wheels do not bring along, each with what to install."""


def fault(file: Path) -> str:
    """Return what keeps a library from being loaded, by its header; empty if nothing is found.

    The system says of a library of another processor that there is no such file, and ends the
    process at one that is truncated.
    """
    try:
        with open("/proc/self/exe", "rb") as stream:
            own = stream.read(_HEADER)
        with open(file, "rb") as stream:
            header = stream.read(_HEADER)
            size = os.fstat(stream.fileno()).st_size
    except OSError:
        # The loader will say why it cannot read it.
        return ""
    if header[:4] != own[:4] or len(header) < _HEADER:
        return "is damaged: it is no shared library"
    if header[:6] + header[18:20] != own[:6] + own[18:20]:
        return (
            f"is for another processor: {_processor(header)}, and this Python is {_processor(own)}"
        )
    # The table of sections comes last. Only headers of 64 bits have it there.
    start, length, count = (_number(header, *at) for at in ((40, 48), (58, 60), (60, 62)))
    if header[4] == 2 and size < start + length * count:
        return f"is truncated: it has {size} bytes of {start + length * count}"
    return ""


def what_to_install(message: str, otherwise: str) -> str:
    """Return what to install for the library that a loader's message misses; else `otherwise`."""
    missing = re.match(r"([\w.+-]+): cannot open shared object file", message)
    if not missing:
        return otherwise
    known = (advice for pattern, advice in _PACKAGES if re.match(pattern, missing[1]))
    return next(known, f"install the package of this system that has {missing[1]}, or {otherwise}")


def _processor(header: bytes) -> str:
    number = _number(header, 18, 20)
    return _PROCESSORS.get(number, f"number {number} of ELF")


def _number(header: bytes, start: int, end: int) -> int:
    return int.from_bytes(header[start:end], sys.byteorder)
