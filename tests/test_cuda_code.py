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

from mxadamax import _native

import pytest

FLOAT32, VARIANTS = "0", set("012345")


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

    def run(option):
        return subprocess.run(
            [tools["cuobjdump"], option, module.origin],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stdout

    return run


@pytest.fixture(scope="module")
def instructions(dump):
    """How often each kernel for each architecture has each instruction.

    Keys are architecture, function, rule as the compiler names it, and variant; sums have neither of
    the last two.
    """
    found = {}
    counts = Counter()
    for line in dump("-sass").splitlines():
        code = re.match(r"\s*code for (sm_\d+)", line)
        if code:
            architecture = code.group(1)
        function = re.match(r"\s*Function : (\S+)", line)
        if function:
            name = re.search(
                r"\d(update|update_rows)INS_(.*)ELNS0_7VariantE(\d)E", function.group(1)
            )
            key = name.groups() if name else (function.group(1), "", "")
            counts = found.setdefault((architecture, *key), Counter())
        instruction = re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", line)
        if instruction:
            counts[instruction.group(1)] += 1
    return found


def number_of(counts, pattern):
    return sum(count for name, count in counts.items() if re.fullmatch(pattern, name))


def test_every_rule_has_a_kernel_for_every_variant(instructions):
    for architecture in {key[0] for key in instructions}:
        for function in ("update", "update_rows"):
            kernels = [key for key in instructions if key[:2] == (architecture, function)]
            assert len(kernels) == len(_native.rules) * len(VARIANTS)
            assert {variant for *_, variant in kernels} == VARIANTS


def test_nothing_is_spilled(dump):
    lines = re.findall(r"Function (\S+):\s+(REG:.*)", dump("--dump-resource-usage"))
    assert len(lines) >= 2 * len(_native.rules) * len(VARIANTS)
    for function, usage in lines:
        assert re.search(r"STACK:0\b.*LOCAL:0\b", usage), f"{function}: {usage}"


def test_vectors_of_16_bytes(instructions):
    """Each float32 array is read and written by instructions of 128 bits, once each at least."""
    expected = sorted(rule.states for rule in _native.rules.values())
    for architecture in {key[0] for key in instructions}:
        dense = (architecture, "update", FLOAT32)
        kernels = [counts for key, counts in instructions.items() if (*key[:2], key[3]) == dense]
        # Besides the states: gradient, weight and average; the gradient is never written.
        for moved, others in ((r"LDG\.E\.128(\..*)?", 3), (r"STG\.E\.128(\..*)?", 2)):
            found = sorted(number_of(counts, moved) for counts in kernels)
            assert len(found) == len(expected)
            wanted = [states + others for states in expected]
            assert all(a >= b for a, b in zip(found, wanted)), (found, wanted)


def test_products_and_sums_are_not_contracted(instructions):
    """Division and square root are made of contracted steps; rules without them have none."""
    plain = {key: counts for key, counts in instructions.items() if key[2] in PLAIN}
    assert len(plain) == len({key[0] for key in plain}) * 2 * len(PLAIN) * len(VARIANTS)
    for key, counts in plain.items():
        assert number_of(counts, r"[FD]FMA(\..*)?") == 0, (key, counts)


PLAIN = ("3Sgd", "11SgdMomentum", "3Nag")
"""Rules without division and square root, as the compiler names them."""


def test_arithmetic_is_that_of_ieee(dump):
    """In PTX, from which all machine code is made, every operation is named with its rounding."""
    operations = Counter(re.findall(r"^\s*(?:@!?%\w+ )?([a-z][\w.]*)", dump("-ptx"), re.MULTILINE))
    assert operations["div.rn.f32"] > 0
    assert operations["sqrt.rn.f32"] > 0
    bad = r"(fma|mad\.(rn|rz|f)|ex2|rcp|rsqrt).*|.*\.(approx|full|ftz)(\..*)?"
    assert [name for name in operations if re.fullmatch(bad, name)] == []
