# SPDX-License-Identifier: Apache-2.0
"""The machine code of the kernels for GPUs: how they read and write memory, and what they do not do.

Needs no GPU, but the compiled module, and NVIDIA's cuobjdump and nvdisasm.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from mxadamax import _native

FLOAT32, FLOAT64, HALF, LOW_PRECISION = "0", "1", "2", ""
VARIANTS = {FLOAT32, FLOAT64, HALF}

REGISTERS = {FLOAT32: 80, FLOAT64: 104, HALF: 96, LOW_PRECISION: 96}
"""What a thread may use; a multiprocessor has 65536, and a block has 256 threads.

That is at least two blocks. Float32 has four, but for the rules with norms of two terms.
"""
WITH_NORMS = ("Lamb", "Lans")


class Kernel(NamedTuple):
    """A kernel of a rule, named as the compiler does."""

    architecture: str
    function: str
    rule: str
    variant: str

    @classmethod
    def of(cls, architecture, function):
        """Nothing for a kernel of no rule."""
        found = re.search(r"\d(update)INS_(.*)ELNS0_7VariantE(\d)E", function)
        low_precision = re.search(r"\d(update_low_precision)INS_(.*)EEv", function)
        if low_precision:
            return cls(architecture, *low_precision.groups(), LOW_PRECISION)
        return cls(architecture, *found.groups()) if found else None


def tool(name):
    """Where one of NVIDIA's programs is: on the path, or in a Python package."""
    try:
        files = importlib.metadata.files(f"nvidia-cuda-{name}") or []
    except importlib.metadata.PackageNotFoundError:
        return shutil.which(name)
    return next((str(file.locate()) for file in files if file.name == name), None)


@pytest.fixture(scope="module")
def dump():
    """What cuobjdump says of the module."""
    module = importlib.util.find_spec("mxadamax._cuda")
    if module is None:
        pytest.skip("built without CUDA")
    tools = {name: tool(name) for name in ("cuobjdump", "nvdisasm")}
    for name, path in tools.items():
        if path is None:
            pytest.skip(f"{name} is not found; nvidia-cuda-{name} is a package with it")
    folder = str(Path(tools["nvdisasm"]).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([folder, os.environ["PATH"]])}

    def run(*options, file=module.origin, folder=None):
        return subprocess.run(
            [tools["cuobjdump"], *options, file],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stdout

    return run


@pytest.fixture(scope="module")
def needs(dump):
    """What each function needs of a GPU: architecture, name and text."""
    report = dump("--dump-resource-usage")
    lines = r"arch = (sm_\d+)|Function (\S+):\s+(REG:.*)"
    found, architecture = [], ""
    for code, function, text in re.findall(lines, report):
        if code:
            architecture = code
        else:
            found.append((architecture, function, text))
    return found


@pytest.fixture(scope="module")
def instructions(dump, tmp_path_factory):
    """How often each kernel for float32 and for 16-bit weights has each instruction.

    The others are not asked for: to read them all takes minutes.
    """
    folder = tmp_path_factory.mktemp("machine_code")
    dump("--extract-elf", "all", folder=folder)
    found = {}
    for file in folder.glob("*.cubin"):
        code = file.read_bytes()
        if not any(f"VariantE{variant}E".encode() in code for variant in (FLOAT32, HALF)):
            continue
        architecture = re.search(r"sm_\d+", file.name).group()
        counts = Counter()
        for line in dump("--dump-sass", file=file).splitlines():
            function = re.match(r"\s*Function : (\S+)", line)
            if function:
                counts = found.setdefault(Kernel.of(architecture, function.group(1)), Counter())
            instruction = re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", line)
            if instruction:
                counts[instruction.group(1)] += 1
    return found


def number_of(counts, pattern):
    return sum(count for name, count in counts.items() if re.fullmatch(pattern, name))


def test_every_rule_has_a_kernel_for_every_variant(needs):
    kernels = [Kernel.of(architecture, function) for architecture, function, _ in needs]
    for architecture in {architecture for architecture, *_ in needs}:
        here = [kernel for kernel in kernels if kernel and kernel[:2] == (architecture, "update")]
        assert len(set(here)) == len(here) == len(_native.rules) * len(VARIANTS)
        assert {kernel.variant for kernel in here} == VARIANTS
        here = [
            kernel
            for kernel in kernels
            if kernel and kernel[:2] == (architecture, "update_low_precision")
        ]
        assert len(set(here)) == len(here)
        assert len(here) == sum(
            rule.supports_low_precision_state for rule in _native.rules.values()
        )


def test_nothing_is_spilled(needs):
    for architecture, function, text in needs:
        assert re.search(r"STACK:0\b.*LOCAL:0\b", text), f"{architecture}, {function}: {text}"


def test_registers_leave_room_for_blocks(needs):
    checked = set()
    for architecture, function, text in needs:
        kernel = Kernel.of(architecture, function)
        if not kernel:
            continue
        checked.add(kernel.variant)
        has_norms = any(name in kernel.rule for name in WITH_NORMS)
        most = 64 if kernel.variant == FLOAT32 and not has_norms else REGISTERS[kernel.variant]
        assert int(re.search(r"REG:(\d+)", text).group(1)) <= most, kernel
    assert checked == {*VARIANTS, LOW_PRECISION}


@pytest.mark.parametrize(
    ("variant", "loads", "stores"),
    [
        # Besides the states: gradient, weight and average; the gradient is never written.
        (FLOAT32, lambda states: states + 3, lambda states: states + 2),
        # Eight numbers at a time, as one vector of 16 bits or as two of float32 with masters.
        (HALF, lambda states: 3 * (states + 1) + 3, lambda states: 3 * (states + 1) + 3),
    ],
    ids=["float32", "half"],
)
def test_vectors_of_16_bytes(variant, loads, stores, needs, instructions):
    """Each array is read and written by instructions of 128 bits, once each at least."""
    states = sorted(rule.states for rule in _native.rules.values())
    for architecture in {architecture for architecture, *_ in needs}:
        kernels = [
            counts
            for kernel, counts in instructions.items()
            if kernel and kernel[:2] == (architecture, "update") and kernel.variant == variant
        ]
        for moved, number in ((r"LDG\.E\.128(\..*)?", loads), (r"STG\.E\.128(\..*)?", stores)):
            found = sorted(number_of(counts, moved) for counts in kernels)
            assert len(found) == len(states)
            assert all(a >= number(b) for a, b in zip(found, states)), (found, states)


def test_products_and_sums_are_not_contracted(needs, instructions):
    """Division and square root are made of contracted steps; rules without them have none."""
    plain = {
        kernel: counts for kernel, counts in instructions.items() if kernel and kernel.rule in PLAIN
    }
    assert len(plain) == len({architecture for architecture, *_ in needs}) * 2 * len(PLAIN)
    for kernel, counts in plain.items():
        assert number_of(counts, r"[FD]FMA(\..*)?") == 0, (kernel, counts)


PLAIN = ("3Sgd", "11SgdMomentum", "3Nag")
"""Rules without division and square root, as the compiler names them."""


def test_arithmetic_is_that_of_ieee(dump):
    """In PTX, from which all machine code is made, every operation is named with its rounding.

    A product and a sum that are named so are never contracted, of whatever type. A reciprocal that is
    rounded to the nearest is the quotient.
    """
    operations = Counter(re.findall(r"^\s*(?:@!?%\w+ )?([a-z][\w.]*)", dump("-ptx"), re.MULTILINE))
    assert operations["div.rn.f32"] > 0
    assert operations["sqrt.rn.f32"] > 0
    bad = r"(fma|mad\.(rn|rz|f)|ex2|rcp\.(?!rn)|rsqrt).*|.*\.(approx|full|ftz)(\..*)?|(add|sub|mul)\.f\d+"
    assert [name for name in operations if re.fullmatch(bad, name)] == []
