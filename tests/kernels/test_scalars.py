# SPDX-License-Identifier: Apache-2.0
"""Scalars reach the kernels as MXNet's own operators receive them."""

import random
import struct

import mxnet as mx
import numpy as np
import pytest
from common import nd

import mxadamax
from mxadamax import _native

pytestmark = pytest.mark.quick


def samples(count, seed):
    rng = random.Random(seed)
    values = [0.0, -0.0, 1.0, 0.1, 1e-8, 0.999, 1 - 0.999, 2**-52, 123456789.125, 1e22, 1e16, 5e-5]
    for _ in range(count):
        values.append(rng.uniform(-1, 1))
        values.append(10 ** rng.uniform(-30, 30))
        values.append(rng.uniform(0, 0.01) / (1 - 0.9 ** rng.randint(1, 1000)))
    return values


def bits(value):
    return struct.pack("<d", value)


def test_double_precision():
    one = mx.nd.ones((1,), dtype="float64")
    off = 0
    for value in samples(400, seed=0):
        assert bits(_native.as_mxnet_reads(value)) == bits((one * value).asscalar()), value
        off += _native.as_mxnet_reads(value) != value
    # Else this file tests nothing: MXNet's reader does not round correctly.
    assert off > 50


def test_single_precision():
    huge = mx.nd.ones((1,), dtype="float64") * 1e300
    for value in map(abs, samples(400, seed=1)):
        clipped = mx.nd.clip(huge, -value, value).asscalar()
        assert _native.as_mxnet_reads_float32(value) == clipped, value


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinities(value):
    assert _native.as_mxnet_reads(value) == value
    assert _native.as_mxnet_reads_float32(value) == value


def test_scalars_of_one_parameter_are_not_those_of_the_one_before():
    """Each value is converted once for parameters in a row; zero is a value like others."""
    optimizer = mxadamax.SGD(learning_rate=0.1, wd=0.5)
    optimizer.set_wd_mult(dict(enumerate([1, 0, 0, 2, 0, 1])))
    optimizer.set_lr_mult(dict(enumerate([1, 1, 0, 0, 2, 1])))
    weights = [nd(np.ones(2, "float32")) for _ in range(6)]
    optimizer.update(
        list(range(6)), weights, [nd(np.ones(2, "float32")) for _ in range(6)], [None] * 6
    )
    expected = [0.85, 0.9, 1.0, 1.0, 0.8, 0.85]
    assert [w.asnumpy()[0] for w in weights] == pytest.approx(expected)
