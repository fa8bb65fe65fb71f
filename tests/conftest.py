"""MXNet with NumPy's shapes: arrays of size 0 and of no dimensions exist, as in Gluon 2."""

import mxadamax  # noqa: F401

import mxnet as mx
import pytest
from hypothesis import settings

# Whether a change lands must not depend on chance. Other examples every time, to search for more:
# pytest --hypothesis-profile=search
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def numpy_shapes():
    with mx.util.np_shape(True):
        yield
