# SPDX-License-Identifier: Apache-2.0
"""The types that the native modules say they have are those of what has been compiled."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, Optional, Tuple

import pytest

import mxadamax
from mxadamax import _native, _native_testing

PACKAGE = Path(mxadamax.__file__).resolve().parent
MODULES = {module.__name__.rpartition(".")[2]: module for module in (_native, _native_testing)}
INSTALLED = "site-packages" in PACKAGE.parts

# pybind11 makes classes with a metaclass of its own, and without a constructor where we give none.
ALLOWED = r"""
mxadamax\._native\.(FusedUpdate|BandwidthBaseline|ParameterGroups|Rule|StateCache|StepStatus|TrainerArrays)
mxadamax\._native\.(ParameterGroups|Rule)\.__init__
"""

Signature = Tuple[Tuple[str, Optional[str]], ...]
"""Names and defaults of parameters."""


def stub_signatures(module: str) -> Dict[str, Signature]:
    """Every function and method, by its name with that of its class."""
    found = {}
    # An installed package has but one of the stubs.
    stub = Path(__file__).resolve().parents[2] / "mxadamax" / f"{module}.pyi"
    for node in ast.parse(stub.read_text()).body:
        prefix, body = (
            (f"{node.name}.", node.body) if isinstance(node, ast.ClassDef) else ("", [node])
        )
        for function in body:
            if isinstance(function, ast.FunctionDef) and not function.decorator_list:
                found[prefix + function.name] = signature(function)
    return found


def signature(function: ast.FunctionDef) -> Signature:
    given = function.args
    assert not (given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg)
    names = [argument.arg for argument in given.args]
    without = len(names) - len(given.defaults)
    return tuple(zip(names, [None] * without + [ast.dump(default) for default in given.defaults]))


def compiled_signature(module: str, name: str) -> Signature:
    """What pybind11 writes above the documentation of a function."""
    function = MODULES[module]
    for part in name.split("."):
        function = getattr(function, part)
    line = function.__doc__.splitlines()[0]
    # How it writes types depends on its version: numpy.ndarray[numpy.float32] is none of Python's.
    nested = 1
    while nested:
        line, nested = re.subn(r"\[[^\[\]]*\]", "", line)
    inside = re.fullmatch(r"\w+\((.*)\) -> .*", line).group(1)
    found = []
    for argument in filter(None, inside.split(", ")):
        name, _, default = re.sub(r":[^=]*", "", argument).replace(" ", "").partition("=")
        found.append((name, ast.dump(ast.parse(default, mode="eval").body) if default else None))
    return tuple(found)


def test_there_is_something_to_compare():
    assert {"bind", "FusedUpdate.__init__", "FusedUpdate.push"} <= set(stub_signatures("_native"))
    assert {"update_numpy", "encode"} <= set(stub_signatures("_native_testing"))


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in MODULES for name in stub_signatures(module)]
)
def test_parameters_are_those_of_the_compiled_function(module, name):
    assert stub_signatures(module)[name] == compiled_signature(module, name)


def test_names_and_kinds_are_those_of_the_compiled_modules(tmp_path):
    pytest.importorskip("mypy", reason="compares by mypy's stubtest")
    # The stub of the module that only tests need is not installed.
    modules = ["_native"] if INSTALLED else list(MODULES)
    (tmp_path / "allowed").write_text(ALLOWED)
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\ncache_dir = {tmp_path}\n[mypy-mxnet.*]\nignore_missing_imports = True\n"
    )
    # An installed wheel is found as users' is, by its py.typed.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest", *(f"mxadamax.{name}" for name in modules)),
            *("--mypy-config-file", str(tmp_path / "mypy.ini")),
            *("--allowlist", str(tmp_path / "allowed")),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **({} if INSTALLED else {"MYPYPATH": str(PACKAGE.parent)}),
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
