# SPDX-License-Identifier: Apache-2.0
"""The example with GluonTS, a library that makes its optimizer itself: the same losses as before."""

import importlib.util
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from common import network_shapes

import mxadamax

pytest.importorskip(
    "gluonts.mx",
    reason="needs GluonTS and MXNet 1: pip install 'gluonts[mxnet]' 'mxadamax[mxnet1]'",
    exc_type=ImportError,
)
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(mx.__version__ >= "2", reason="GluonTS runs on MXNet 1"),
]


def test_losses_are_those_of_the_built_in():
    path = Path(__file__).parents[2] / "examples" / "gluonts_deepar.py"
    spec = importlib.util.spec_from_file_location("gluonts_deepar", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    made = []

    def ours(**options):
        made.append(mxadamax.Adam(**options))
        return made[-1]

    with network_shapes():
        expected = example.train(mx.optimizer.Adam, epochs=2, batches=6)
        found = example.train(ours, epochs=2, batches=6)
    assert made[0].num_update == 12
    assert expected[1] < expected[0]
    # MXNet's fused operator rounds in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-4)
