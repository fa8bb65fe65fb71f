"""MXNet with NumPy's shapes: arrays of size 0 and of no dimensions exist, as in Gluon 2."""

import mxnet as mx
import pytest


@pytest.fixture(autouse=True)
def numpy_shapes():
    with mx.util.np_shape(True):
        yield
