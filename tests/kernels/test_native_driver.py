# SPDX-License-Identifier: Apache-2.0
"""Build the driver in C++, which tests kernels, codecs, chunks and threads without Python; ctest runs it."""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mxadamax import _native

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

pytestmark = pytest.mark.skipif(
    not all(shutil.which(x, path=PATH) for x in ("c++", "cmake")) or not CSRC.is_dir(),
    reason="needs a compiler, CMake and the sources",
)


def run(*command, check=True):
    environment = {k: v for k, v in os.environ.items() if k != "MXADAMAX_INSTRUCTION_SET"}
    return subprocess.run(
        list(map(str, command)),
        env={**environment, "PATH": PATH},
        capture_output=True,
        text=True,
        timeout=280,
        check=check,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what the driver is built from, and its build folder."""
    tree = tmp_path_factory.mktemp("driver")
    for name in ("csrc", "tests/native"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("CMakeLists.txt", "tests/support/oracle.py"):
        (tree / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    run(
        *("cmake", "-S", tree, "-B", tree / "build", "-DMXADAMAX_DRIVER=ON"),
        *("-DMXADAMAX_BASELINE_ONLY=ON", f"-DPython_EXECUTABLE={sys.executable}"),
    )
    run("cmake", "--build", tree / "build")
    return tree


def ctest(tree, *arguments):
    return run(
        *("cmake", "-E", "chdir", tree / "build"),
        *("ctest", "--output-on-failure", *arguments),
        check=False,
    )


def test_the_driver_passes(tree):
    done = ctest(tree)
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"Test +#\d: (\w+) \.+ +Passed", done.stdout)
    assert passed == ["rules", "kernels", "codecs", "sums", "update"]


def test_the_driver_can_fail(tree):
    """A loop that forgets the last element of a long array, and a test that does not exist."""
    driver = tree / "build" / "tests" / "native" / "native_driver"
    assert run(driver, "nonsense", check=False).returncode == 1
    kernels = tree / "csrc" / "cpu" / "kernels.cc"
    right = kernels.read_text()
    wrong = right.replace(
        "i < count; ++i) {\n    T state", "i < count - (count > 40); ++i) {\n    T state"
    )
    assert wrong != right
    kernels.write_text(wrong)
    try:
        run("cmake", "--build", tree / "build")
        done = ctest(tree, "-R", "rules")
    finally:
        kernels.write_text(right)
    assert done.returncode != 0
    assert re.search(r"test_rules.cc:\d+: .*adamax, float32, case 0", done.stdout)


def test_kernels_have_no_code_that_the_linker_could_share(tmp_path):
    """Without optimization, which inlines what need not be, and with nothing that runs at loading."""
    sets = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mf16c"]
    run(
        *("c++", "-std=c++17", "-O0", f"-I{CSRC}", "-DMXADAMAX_KERNELS=kernels_here"),
        *(sets if platform.machine() == "x86_64" else []),
        *("-c", CSRC / "cpu" / "kernels.cc", "-o", tmp_path / "kernels.o"),
    )
    listed = run("nm", "--demangle", "--defined-only", tmp_path / "kernels.o").stdout
    symbols = re.findall(r"^[0-9a-f]+ (\w) (.*)$", listed, re.M)
    shared = [name for kind, name in symbols if kind in "TWi"]
    assert shared == ["mxadamax::cpu::kernels_here()"]
    assert not [name for _, name in symbols if name.startswith("_GLOBAL__sub_I")]


def test_mutants_are_found_in_every_rule():
    """scripts/mutate_rules.py reads each header, and what it lets survive is there."""
    script = runpy.run_path(str(ROOT / "scripts" / "mutate_rules.py"))
    done = subprocess.run(
        [sys.executable, script["__file__"], "--list"], capture_output=True, text=True, check=True
    )
    listed = [re.fullmatch(r"(\w+\.h):\d+: (.*)", line) for line in done.stdout.splitlines()]
    rules = {header.name for header in (CSRC / "rules").glob("*.h")} - {"all.h"}
    assert {found[1] for found in listed} == rules
    kept = [rule for header in rules for rule in script["rules_of"](header)]
    assert sorted(kept) == sorted(script["rules_of"]("all.h"))
    assert len(kept) == len(_native.rules)
    assert script["EQUIVALENT"].keys() <= {f"{found[1]}: {found[2]}" for found in listed}
