# SPDX-License-Identifier: Apache-2.0
"""What is installed with what, and what importing asks for and does to NumPy."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
from installed import installed_wheel
from packaging.requirements import Requirement

import mxadamax

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12")


# What pip is told.


def allows(requirements: List[str], python: str, name: str, version: str) -> bool:
    """Whether a package is asked for on a Python, and may have this version."""
    found = [
        requirement.specifier
        for requirement in map(Requirement, requirements)
        if requirement.name == name
        and (requirement.marker is None or requirement.marker.evaluate({"python_version": python}))
    ]
    return bool(found) and all(specifier.contains(version) for specifier in found)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("extra", "mxnet"), [("mxnet", "2.0.0b1"), ("mxnet1", "1.9.1")])
def test_numpy_is_one_that_mxnet_can_be_imported_with(extra, mxnet, python):
    assert f"mxnet=={mxnet}" in EXTRAS[extra]
    assert "mxadamax[mxnet-needs]" in EXTRAS[extra]
    needs = EXTRAS["mxnet-needs"]
    newest = python == "3.12"
    assert allows(needs, python, "numpy", "1.26.4") == newest
    assert allows(needs, python, "numpy", "1.23.5") != newest
    assert not allows(needs, python, "numpy", "1.24.0")
    assert not allows(needs, python, "numpy", "2.0.0")
    assert allows(needs, python, "setuptools", "80.0.0") == newest


@pytest.mark.parametrize(
    ("name", "python", "last"),
    [
        ("scikit-build-core", "3.8", "1.0.3"),
        ("pybind11", "3.8", "3.0.4"),
        ("setuptools", "3.8", "75.3.4"),
        ("setuptools", "3.9", "82.0.1"),
    ],
)
def test_old_pythons_are_built_with_what_still_supports_them(name, python, last):
    requirements = PROJECT["build-system"]["requires"]
    assert allows(requirements, python, name, last)
    for newer in range(PYTHONS.index(python) + 1, len(PYTHONS)):
        allowed = allows(requirements, PYTHONS[newer], name, "999")
        assert allowed or (name, PYTHONS[newer]) == ("setuptools", "3.9")
    assert not allows(requirements, python, name, "999")


def test_the_wheel_says_what_the_project_says():
    wheel = installed_wheel()
    assert wheel.version == mxadamax.__version__
    assert wheel.metadata["Requires-Python"] == PROJECT["project"]["requires-python"]
    assert set(wheel.metadata.get_all("Provides-Extra")) == set(EXTRAS)
    required = list(map(Requirement, wheel.requires))
    always = PROJECT["project"]["dependencies"]
    assert len(required) == len(always) + sum(map(len, EXTRAS.values()))
    of_extras = [requirement for requirement in required if "extra ==" in str(requirement.marker)]
    assert len(of_extras) == len(required) - len(always)


def test_the_wheel_holds_the_package_and_nothing_else():
    wheel = installed_wheel()
    files = [str(path) for path in wheel.files if "__pycache__" not in str(path)]
    inside = {path for path in files if ".dist-info/" not in path}
    native = {path for path in inside if re.fullmatch(r"mxadamax/_native\.[\w-]+\.so", path)}
    command = {path for path in inside if path.endswith("/bin/mxadamax")}
    assert (len(native), len(command)) == (1, 1)
    assert inside - native - command == {"mxadamax/LICENSE.pybind11"} | {
        str(path.relative_to(ROOT))
        for package in ("mxadamax", "mxadamax_hook")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".pyi", ".typed") and path.stem != "_native_testing"
    }


# What the import does.


def run(code: str, folder: Path, *options: str, **modules: str) -> "subprocess.CompletedProcess":
    """Run Python with modules of our making before all others."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    before = filter(None, [str(folder), os.environ.get("PYTHONPATH")])
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(before)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def error(done: "subprocess.CompletedProcess") -> str:
    assert done.returncode != 0, done.stdout
    return done.stderr.strip().splitlines()[-1]


# NumPy as 1.24 to 1.26 are: without the name, and with a warning for who asks for it.
WITHOUT_BOOL = """
import numpy
import warnings

vars(numpy).pop("bool", None)
others = numpy.__getattr__


def getattr_of_numpy(name):
    if name == "bool":
        warnings.warn(f"In the future `np.{name}` will be defined", FutureWarning, stacklevel=2)
        raise AttributeError(name)
    return others(name)


numpy.__getattr__ = getattr_of_numpy
"""


def test_numpy_bool_is_there_before_mxnet_asks_for_it(tmp_path):
    mxnet = "import numpy\nraise RuntimeError(numpy.bool is bool)"
    done = run("import mxadamax", tmp_path, sitecustomize=WITHOUT_BOOL, mxnet=mxnet)
    assert "(RuntimeError: True)" in error(done)


def test_numpy_gets_that_name_only_and_nothing_is_printed(tmp_path):
    code = """
import numpy
before = dict(vars(numpy))
import mxadamax
changed = {name for name, now in vars(numpy).items() if before.get(name, numpy) is not now}
print(*(name for name in changed if not isinstance(getattr(numpy, name), type(numpy))))
"""
    done = run(code, tmp_path, "-W", "default", sitecustomize=WITHOUT_BOOL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "bool"
    assert "In the future" not in done.stderr


def test_a_numpy_bool_that_exists_is_left_alone(tmp_path):
    numpy_2 = "import numpy\nnumpy.bool = numpy.bool_"
    mxnet = "import numpy\nraise RuntimeError(numpy.bool is numpy.bool_)"
    done = run("import mxadamax", tmp_path, sitecustomize=numpy_2, mxnet=mxnet)
    assert "(RuntimeError: True)" in error(done)


NUMPY_2 = "import numpy\nnumpy.__version__ = '2.1.3'\nnumpy.bool = numpy.bool_"
NEEDS_NUMPY_1 = r"it needs NumPy 1, found NumPy 2\.1\.3: pip install 'numpy(<1\.24|>=1\.26,<2)'"
WHAT_TO_INSTALL: Dict[str, Any] = {
    "numpy 2": (NUMPY_2, "raise AttributeError('np.PZERO was removed')", f".*: {NEEDS_NUMPY_1}"),
    "numpy 2, another error": (NUMPY_2, "raise TypeError('copy')", f".*: {NEEDS_NUMPY_1}"),
    "numpy 2, a missing module": (NUMPY_2, "import numpy.compat.gone", f".*: {NEEDS_NUMPY_1}"),
    "no distutils": (
        "",
        "raise ModuleNotFoundError('no distutils', name='distutils')",
        r".*: it needs distutils: pip install setuptools",
    ),
    "no numpy": (
        "import sys\nsys.modules['numpy'] = None",
        "",
        r"mxadamax needs NumPy: install it with MXNet by .*mxadamax\[mxnet\]'.*",
    ),
    # What nobody foresaw keeps its kind and its text, and is said to be MXNet's.
    "another attribute": (
        "",
        "raise AttributeError('another\\nand what to do')",
        r"mxadamax: MXNet cannot be imported from .* \(AttributeError: another\), nor by .*",
    ),
}


@pytest.mark.parametrize("case", WHAT_TO_INSTALL)
def test_what_is_missing_is_named(case, tmp_path):
    sitecustomize, mxnet, message = WHAT_TO_INSTALL[case]
    done = run("import mxadamax", tmp_path, sitecustomize=sitecustomize, mxnet=mxnet)
    assert re.fullmatch(f"ImportError: {message}", error(done))
