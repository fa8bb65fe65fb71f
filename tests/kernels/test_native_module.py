# SPDX-License-Identifier: Apache-2.0
"""An import that finds no compiled module, or one that does not load, says what it found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import mxadamax
from mxadamax import _native, native_module

PACKAGE = Path(mxadamax.__file__).resolve().parent
NATIVE = f"_native{EXTENSION_SUFFIXES[0]}"
OTHER = "_native.cpython-27-x86_64-linux-gnu.so"

# What an editable install has put before the folders.
ONLY_FOLDERS = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
"""


def sources(folder: Path) -> Path:
    """A copy of the Python files."""
    copied = folder / "mxadamax"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copied


def installed(folder: Path) -> Path:
    """The package with its compiled module, as pip leaves it in site-packages."""
    copied = sources(folder)
    os.symlink(_native.__file__, copied / NATIVE)
    return copied


def run_in(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess:
    """Run Python in a folder, which it searches first, without the package under test."""
    places = [p for p in sys.path if p and not (Path(p) / "mxadamax").exists()]
    hook = folder.parent / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(ONLY_FOLDERS)
    return subprocess.run(
        [sys.executable, *(arguments or ("-c", "import mxadamax"))],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(hook), path, *places])),
            "COLUMNS": "500",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def error_in(folder: Path, path: str = "") -> str:
    done = run_in(folder, path=path)
    assert done.returncode == 1, done.stdout
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of sources."""
    found = tmp_path / "tree"
    sources(found)
    (found / "pyproject.toml").touch()
    return found


def test_sources_that_hide_what_is_installed(tree, tmp_path):
    """After ``pip install .``, in the folder that it was called in."""
    there = installed(tmp_path / "site")
    error = error_in(tree, path=str(there.parent))
    assert error == (
        f"ImportError: mxadamax: {tree}/mxadamax holds the sources without the compiled module: it "
        f"hides what is installed in {there}; start Python in another folder, without {tree} in "
        "PYTHONPATH"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_in(elsewhere, path=str(there.parent))
    assert done.returncode == 0, done.stderr


def test_sources_alone(tree):
    error = error_in(tree)
    assert error.startswith(f"ImportError: mxadamax: {tree}/mxadamax holds the sources without")
    assert error.endswith(f": {sys.executable} -m pip install --editable .")


@pytest.mark.parametrize("also_installed", [True, False])
def test_compiled_for_another_python(also_installed, tree, tmp_path):
    (tree / "mxadamax" / OTHER).write_bytes(b"")
    path = str(installed(tmp_path / "site").parent) if also_installed else ""
    error = error_in(tree, path=path)
    said = f"{tree}/mxadamax holds {OTHER}, compiled for another Python; this one loads {NATIVE}: "
    assert said in error
    assert ("it hides what is installed in" in error) == also_installed
    assert ("pip install --editable ." in error) != also_installed


def test_a_module_that_the_system_does_not_load(tree):
    file = tree / "mxadamax" / NATIVE
    file.write_bytes(b"no module")
    error = error_in(tree)
    said = rf"mxadamax: the compiled module {file} is damaged: it is no shared library: install mxadamax anew"
    assert re.search(said, error)
    done = run_in(tree, "-m", "mxadamax", "info")
    assert done.returncode == 1
    assert re.search(f"problem: {said}", done.stdout)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("of_the_loader", "advice"),
    [
        ("libgomp.so.1: cannot open shared object file", "install GCC's OpenMP library: libgomp1"),
        (
            "libquadmath.so.0: cannot open shared object file",
            "quadruple precision: libquadmath0 on",
        ),
        (
            "libother.so.3: cannot open shared object file",
            "that has libother.so.3, or install mxadamax anew",
        ),
        ("/lib/libc.so.6: version `GLIBC_2.34' not found (required by x.so)", "on a newer system"),
        ("libstdc++.so.6: version `GLIBCXX_3.4.29' not found", "compiled on a newer system"),
        ("libstdc++.so.6: version `CXXABI_1.3.13' not found", "compiled on a newer system"),
        ("x.so: undefined symbol: GLIBC", "install mxadamax anew"),
    ],
)
def test_advice_for_what_the_loader_says(of_the_loader, advice):
    error = ImportError(of_the_loader, name="_native", path=_native.__file__)
    with pytest.raises(ImportError) as refused:
        native_module.refuse(error)
    said = str(refused.value)
    assert said.startswith(f"mxadamax: the compiled module {_native.__file__} cannot be loaded (")
    assert of_the_loader in said and advice in said


def test_what_a_module_that_was_loaded_says_is_left_alone():
    said = "MXADAMAX_INSTRUCTION_SET: instruction set 'x' is not available here"
    with pytest.raises(ImportError, match=f"^{said}$"):
        native_module.refuse(ImportError(said))
