# SPDX-License-Identifier: Apache-2.0
"""The package where there is no MXNet: `mxadamax.cuda` works, everything else names MXNet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import mxadamax

pytestmark = pytest.mark.quick

PACKAGE = Path(mxadamax.__file__).resolve().parent

HIDE_MXNET = """
import sys

class HideMxnet:
    def find_spec(self, name, path=None, target=None):
        if name == "mxnet":
            raise ModuleNotFoundError("No module named 'mxnet'", name=name)

sys.meta_path.insert(0, HideMxnet())
"""


def run(code: str, *options: str):
    """Run code in a process of its own."""
    paths = [str(PACKAGE.parent), *filter(None, sys.path)]
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_hidden(code: str, folder: Path):
    """Run code where an import hook hides MXNet."""
    return run(HIDE_MXNET + code)


def run_alone(code: str, folder: Path):
    """Run code where this package and NumPy are all that is installed."""
    site = Path(numpy.__file__).resolve().parents[1]
    for path in (PACKAGE, site / "numpy", site / "numpy.libs"):
        if path.exists():
            os.symlink(path, folder / path.name)
    return run(f"import sys\nsys.path.insert(0, {str(folder)!r})\n{code}", "-S", "-E")


everywhere = pytest.mark.parametrize("run_without", [run_hidden, run_alone])


UPDATE = """
import sys
import numpy as np
from mxadamax import cuda
from mxadamax import _cuda_on_host, _native_testing

assert sys.modules.get("mxnet") is None
sys.modules["mxadamax._cuda"] = _cuda_on_host
assert cuda.kernels() is _cuda_on_host


class Shown:
    def __init__(self, array):
        self.__cuda_array_interface__ = {**array.__array_interface__, "version": 3}


scalars = dict(
    rescale_grad=1.0, clip_gradient=np.inf, wd=0.01, decay_factor=1.0, lr=0.1,
    beta1=0.9, one_minus_beta1=0.1, beta2=0.999, epsilon=1e-8,
)
expected = [np.linspace(1, 2, 33).astype("float32") for _ in range(2)]
expected += [np.zeros(33, "float32") for _ in range(2)]
found = [array.copy() for array in expected]
weight, grad, *states = map(Shown, found)
batch = cuda.Batch("adamax", [weight], [grad], [states])
for _ in range(3):
    batch.update(scalars)
    _native_testing.update_numpy("adamax", expected[:1], expected[1:2], [expected[2:]], scalars)
assert expected[0][0] < 1
assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]
print("updated")
"""


@everywhere
def test_cuda_updates_a_batch(run_without, tmp_path):
    if not list(PACKAGE.glob("_cuda_on_host*")):
        pytest.skip("built without the CMake option MXADAMAX_CUDA_ON_HOST")
    done = run_without(UPDATE, tmp_path)
    assert (done.stdout, done.stderr) == ("updated\n", "")


NAMES = """
import sys
import mxadamax
import mxadamax.cuda

assert mxadamax.__version__
for name in [*mxadamax.__all__, "Adam", "LAMB"]:
    try:
        getattr(mxadamax, name)
    except ImportError as error:
        assert str(error).startswith("mxadamax needs Apache MXNet: install "), error
    else:
        raise AssertionError(name)
assert not hasattr(mxadamax, "adamin")
print("all names")
from mxadamax import Adam
"""


@everywhere
def test_optimizers_say_what_to_install(run_without, tmp_path):
    done = run_without(NAMES, tmp_path)
    assert done.stdout == "all names\n", done.stderr
    last = done.stderr.strip().splitlines()[-1]
    # Where only the import is hidden, pip has installed it.
    what = (
        "MXNet anew: pip" if run_without is run_hidden else "it with pip install 'mxadamax[mxnet]'"
    )
    assert last.startswith(f"ImportError: mxadamax needs Apache MXNet: install {what}")


def test_numpy_is_left_alone(tmp_path):
    """Also one without the name that MXNet asks for."""
    code = """
import numpy

def getattr_of_numpy(name):
    raise AttributeError(name)

numpy.__getattr__ = getattr_of_numpy
vars(numpy).pop("bool", None)
before = set(vars(numpy))
import mxadamax
print(set(vars(numpy)) - before)
"""
    done = run_hidden(code, tmp_path)
    assert done.stdout == "set()\n", done.stderr
