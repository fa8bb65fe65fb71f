# SPDX-License-Identifier: Apache-2.0
"""The package on a machine without MXNet, of which the kernels for GPUs need nothing."""

from __future__ import annotations

import importlib.util
import sys
import types

HAS_MXNET = importlib.util.find_spec("mxnet") is not None


def prepare() -> None:
    """Make modules of the package importable one by one, without what its own import brings along.

    Does nothing where there is MXNet.
    """
    if HAS_MXNET or "mxadamax" in sys.modules:
        return
    spec = importlib.util.find_spec("mxadamax")
    if spec is None:
        raise ImportError("mxadamax is not found")
    package = types.ModuleType("mxadamax")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["mxadamax"] = package
