# SPDX-License-Identifier: Apache-2.0
"""Lion computes what optax's computes.

The numbers are those of optax 0.2.8 with jax 0.10.2 on a processor: weights after 1, 10 and 100 steps, and the
moment at the end.
"""

import json
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

import mxadamax

pytestmark = pytest.mark.quick
FOUND_BY_OPTAX = json.loads(Path(__file__).with_suffix(".json").read_text())
OPTIONS = {
    "defaults": {},
    "decay": {"learning_rate": 0.0123, "beta1": 0.875, "beta2": 0.96, "wd": 0.3},
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_optax(name, fused):
    rng = np.random.RandomState(0)
    size = 24
    weight = mx.nd.array(np.ldexp(rng.randint(-255, 256, size).astype("f8"), -6), dtype="float32")
    optimizer = mxadamax.Lion(**OPTIONS[name], use_fused_step=fused)
    update = mx.optimizer.get_updater(optimizer)
    wanted = FOUND_BY_OPTAX[name]
    for step in range(1, 101):
        grad = np.ldexp(rng.randint(-255, 256, size).astype("f8"), rng.randint(-14, -4, size))
        update(0, mx.nd.array(grad, dtype="float32"), weight)
        if str(step) in wanted:
            np.testing.assert_allclose(weight.asnumpy(), wanted[str(step)], rtol=1e-6)
    np.testing.assert_allclose(update.states[0].asnumpy(), wanted["m"], rtol=1e-5, atol=1e-9)


def test_a_gradient_that_is_no_number_shows():
    """MXNet's sign of NaN is 0, with which the weight would be left as it is."""
    weight, grad = mx.nd.ones((3,)), mx.nd.array([float("nan"), 1, 0])
    mx.optimizer.get_updater(mxadamax.Lion(learning_rate=0.5))(0, grad, weight)
    found = weight.asnumpy()
    assert np.isnan(found[0])
    assert list(found[1:]) == [0.5, 1.0]
