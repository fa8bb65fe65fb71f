# SPDX-License-Identifier: Apache-2.0
"""The driver in C++, which tests kernels, codecs, chunks and threads apart from Python."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native"
CSRC = ROOT / "csrc"

pytestmark = pytest.mark.skipif(
    shutil.which("c++") is None or not CSRC.is_dir(), reason="needs a compiler and the sources"
)


FLAGS = [
    *("-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fopenmp"),
    *(f"-I{CSRC}", f"-I{CSRC / 'cpu'}", f"-I{NATIVE}", "-DMXADAMAX_KERNELS=kernels_baseline"),
]
"""For the plainest instruction set, hardly optimized."""


def compile_with(*arguments, **options):
    subprocess.run(["c++", *FLAGS, *map(str, arguments)], check=True, timeout=600, **options)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """All of the driver but the kernels."""
    folder = tmp_path_factory.mktemp("objects")
    sources = [*sorted(NATIVE.glob("test_*.cc")), NATIVE / "main.cc"]
    sources += [CSRC / "cpu" / name for name in ("instruction_set.cc", "update.cc")]
    compile_with("-c", *sources, cwd=folder)
    return sorted(folder.glob("*.o"))


def compiled(folder, objects, change=lambda kernels: kernels):
    """The driver, with changed kernels."""
    kernels = folder / "kernels.cc"
    kernels.write_text(change((CSRC / "cpu" / "kernels.cc").read_text()))
    driver = folder / "driver"
    compile_with(kernels, *objects, "-o", driver)
    return driver


def run(driver, *tests):
    environment = {k: v for k, v in os.environ.items() if k != "MXADAMAX_INSTRUCTION_SET"}
    return subprocess.run(
        [str(driver), *tests],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
    )


def test_the_driver_passes(tmp_path, objects):
    done = run(compiled(tmp_path, objects))
    assert done.returncode == 0, done.stderr
    passed = re.findall(r"^(\w+): passed$", done.stdout, re.MULTILINE)
    assert passed == ["rules", "kernels", "codecs", "update"]


def test_the_driver_can_fail(tmp_path, objects):
    """A loop that forgets the last element of a long array, and a test that does not exist."""
    wrong = ("i < count; ++i) {\n    T state", "i < count - (count > 40); ++i) {\n    T state")
    driver = compiled(tmp_path, objects, lambda kernels: kernels.replace(*wrong))
    done = run(driver, "rules")
    assert done.returncode == 1
    assert re.search(r"test_rules.cc:\d+: .*adamax", done.stderr)
    assert run(driver, "nonsense").returncode == 1


def test_mutants_are_found_in_every_rule():
    """scripts/mutate_rules.py reads each header, and what it lets survive is there."""
    script = runpy.run_path(str(ROOT / "scripts" / "mutate_rules.py"))
    done = subprocess.run(
        [sys.executable, script["__file__"], "--list"], capture_output=True, text=True, check=True
    )
    listed = [re.fullmatch(r"(\w+\.h):\d+: (.*)", line) for line in done.stdout.splitlines()]
    rules = {header.name for header in (CSRC / "rules").glob("*.h")} - {"all.h"}
    assert {found[1] for found in listed} == rules
    assert script["EQUIVALENT"].keys() <= {f"{found[1]}: {found[2]}" for found in listed}
