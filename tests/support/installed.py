# SPDX-License-Identifier: Apache-2.0
"""Find the wheel that the package under test was installed from."""

import importlib.metadata
from pathlib import Path

import pytest

import mxadamax


def installed_wheel() -> "importlib.metadata.Distribution":
    """The wheel that the package under test was installed from."""
    for found in importlib.metadata.distributions(name="mxadamax"):
        here = Path(str(found.locate_file("mxadamax/__init__.py"))).resolve()
        if found.read_text("WHEEL") and here == Path(mxadamax.__file__).resolve():
            return found
    pytest.skip("needs an installed wheel: nox -s quick")
