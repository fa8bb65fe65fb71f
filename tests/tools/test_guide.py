# SPDX-License-Identifier: Apache-2.0
"""Add an optimizer to a copy of the tree as docs/adding-an-optimizer.md says, build it, and test it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ADDED, ROOT, blocks

from mxadamax._mxnet.compatibility import IS_MXNET_1

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
MOST_FILES = 6


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy with the optimizer of the guide, built for the baseline instruction set."""
    pytest.importorskip("pybind11")
    if (
        not all(shutil.which(x, path=PATH) for x in ("c++", "cmake"))
        or not (ROOT / "csrc").is_dir()
    ):
        pytest.skip("needs a compiler, CMake and the sources")
    tree = tmp_path_factory.mktemp("tree")
    unwanted = shutil.ignore_patterns("*.so", "__pycache__", "output")
    for name in ("csrc", "mxadamax", "tests", "docs", "benchmarks", "examples", "scripts"):
        shutil.copytree(ROOT / name, tree / name, ignore=unwanted)
    for path in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(path, tree)
    follow_guide(tree)
    build(tree)
    return tree


def follow_guide(tree: Path) -> None:
    """Make the changes that the blocks of the guide say, in as few files as it promises."""
    changed = set()
    for block in blocks():
        mark = re.match(ADDED, block.mark)
        if mark is None:
            continue
        path = tree / mark["file"]
        changed.add(path)
        if mark["how"] == "new":
            assert not path.exists()
            path.write_text(block.code)
            continue
        text = path.read_text()
        if mark["how"] == "end of":
            # An empty line of a block is one of the file.
            path.write_text(text + block.code)
            continue
        assert text.count(mark["where"]) == 1, block
        added = block.code.rstrip("\n")
        if mark["how"] == "after":
            added = f"{mark['where']}\n{added}"
        path.write_text(text.replace(mark["where"], added))
    assert 3 <= len(changed) <= MOST_FILES


def run(tree: Path, *command: object) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=tree,
        env={
            **os.environ,
            "PATH": PATH,
            "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "tests" / "support")]),
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    return done.stdout


def build(tree: Path) -> None:
    # The rules of the other MXNet take long to compile, and nothing here runs them.
    rules = tree / "csrc" / "rules" / "all.h"
    of_other = rf"\w+OfMxnet<?{2 if IS_MXNET_1 else 1}(<\w+>|(, \w+)?>)?,\s*"
    text, count = re.subn(of_other, "", rules.read_text())
    assert count > 10
    rules.write_text(text)
    pybind11 = run(tree, sys.executable, "-m", "pybind11", "--cmakedir").strip()
    run(
        tree,
        *("cmake", "-S", ".", "-B", "build", "-DMXADAMAX_CUDA=OFF", "-DMXADAMAX_BASELINE_ONLY=ON"),
        # Where there is one, the module that only tests need.
        "-DMXADAMAX_TESTING=ON",
        *("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"),
    )
    run(tree, "cmake", "--build", "build", "--parallel", "2")
    for module in (tree / "build").glob("*.so"):
        shutil.copy(module, tree / "mxadamax")


def test_the_optimizer_of_the_guide_passes_the_tests(tree):
    run(tree, sys.executable, "tests/optimizers/test_digests.py", "--record")
    said = run(
        tree,
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        # The kernels for GPUs are not built here.
        *("-k", "(qhm or QHM) and not cuda", "tests", "--ignore", "tests/tools/test_guide.py"),
    )
    passed = int(re.search(r"(\d+) passed", said)[1])
    assert passed >= 150, said
