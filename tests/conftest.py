# SPDX-License-Identifier: Apache-2.0
"""MXNet with NumPy's shapes: arrays of size 0 and of no dimensions exist, as in Gluon 2.

Where there is no MXNet, only tests that need none are collected: those of the kernels for GPUs.
"""

import faulthandler
import os
import sys
from pathlib import Path

import pytest

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax  # noqa: F401

LONGEST = 300
"""Seconds. MXNet's engine waits without end for what it holds itself."""

STDERR = pytest.StashKey[int]()


def pytest_configure(config):
    """Keep a copy of stderr for what hangs, before output is captured."""
    config.stash[STDERR] = os.dup(2)
    # MXNet imports scikit-learn and SciPy where they are installed, which makes half of its import,
    # for what nobody here uses; and tests start some hundreds of processes.
    hidden = str(Path(__file__).parent / "support" / "hidden")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [hidden, os.environ.get("PYTHONPATH", "")])
    )


COMPILING = ("test_guide.py", "test_install.py", "test_native_driver.py")


def pytest_collection_modifyitems(items):
    """Begin with the longest tests: at the end, other processors would wait for them."""
    items.sort(key=lambda item: item.path.name not in COMPILING)


@pytest.fixture(autouse=True)
def ends_where_it_hangs(request):
    """End the process where it hangs, also inside C, and say where."""
    longest = 12 * LONGEST if request.node.get_closest_marker("long") else LONGEST
    faulthandler.dump_traceback_later(longest, exit=True, file=request.config.stash[STDERR])
    yield
    faulthandler.cancel_dump_traceback_later()


mx = sys.modules.get("mxnet")
if mx is not None:
    from hypothesis import settings

    # Whether a change lands must not depend on chance. Other examples every time, to search for
    # more: pytest --hypothesis-profile=search
    settings.register_profile("repeatable", derandomize=True)
    settings.register_profile("search", derandomize=False)
    settings.load_profile("repeatable")

    @pytest.fixture(autouse=True)
    def numpy_shapes():
        with mx.util.np_shape(True):
            yield

else:
    _need_none = {
        "test_cuda.py",
        "test_cuda_benchmark.py",
        "test_cuda_code.py",
        "test_cuda_describe.py",
        "test_without_mxnet.py",
    }
    collect_ignore = [
        str(path)
        for path in Path(__file__).parent.rglob("test_*.py")
        if path.name not in _need_none
    ]
