# SPDX-License-Identifier: Apache-2.0
"""The driver in C++, which tests kernels, codecs, chunks and threads apart from Python."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "tests" / "native"
CSRC = ROOT / "csrc"

pytestmark = pytest.mark.skipif(
    shutil.which("c++") is None or not CSRC.is_dir(), reason="needs a compiler and the sources"
)


def compiled(folder, change=lambda kernels: kernels):
    """The driver with the kernels of the plainest instruction set, compiled without optimization."""
    kernels = folder / "kernels.cc"
    kernels.write_text(change((CSRC / "cpu" / "kernels.cc").read_text()))
    driver = folder / "driver"
    subprocess.run(
        [
            *("c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fopenmp"),
            *(f"-I{CSRC}", f"-I{CSRC / 'cpu'}", f"-I{NATIVE}"),
            "-DMXADAMAX_KERNELS=kernels_baseline",
            *map(str, [*sorted(NATIVE.glob("test_*.cc")), NATIVE / "main.cc", kernels]),
            *(str(CSRC / "cpu" / name) for name in ("instruction_set.cc", "update.cc")),
            *("-o", str(driver)),
        ],
        check=True,
        timeout=600,
    )
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


def test_the_driver_passes(tmp_path):
    done = run(compiled(tmp_path))
    assert done.returncode == 0, done.stderr
    passed = re.findall(r"^(\w+): passed$", done.stdout, re.MULTILINE)
    assert passed == ["rules", "kernels", "codecs", "update"]


def test_the_driver_can_fail(tmp_path):
    """A loop that forgets the last element of a long array, and a test that does not exist."""
    wrong = ("i < count; ++i) {\n    T state", "i < count - (count > 40); ++i) {\n    T state")
    driver = compiled(tmp_path, lambda kernels: kernels.replace(*wrong))
    done = run(driver, "rules")
    assert done.returncode == 1
    assert re.search(r"test_rules.cc:\d+: .*adamax", done.stderr)
    assert run(driver, "nonsense").returncode == 1
