# SPDX-License-Identifier: Apache-2.0
"""Updates by `reference_step`, without the native kernels: on any device, and what they refuse."""

import mxnet as mx
import numpy as np
import pytest
from bits import assert_same_bits
from common import leaves

import mxadamax

pytestmark = pytest.mark.quick

PLAIN = {"use_fused_step": False}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("fused", [False, True])
def test_states_are_where_the_weight_is(fused, dtype):
    """On another device than the default one, in the weight's dtype, averages as well."""
    device = mx.cpu(1)
    optimizer = mxadamax.Adam(ema_decay=0.5, use_fused_step=fused, multi_precision=True)
    weight = mx.nd.ones((3,), dtype=dtype, ctx=device)
    state = optimizer.create_state_multi_precision(0, weight)
    expected = np.float32 if dtype == "float16" else dtype
    for _ in range(2):
        optimizer.update_multi_precision([0], [weight], [weight * 0.5], [state])
        assert [a.context for a in leaves(state)] == [device] * len(leaves(state))
        assert {np.dtype(a.dtype) for a in leaves(state)} == {np.dtype(expected)}
    assert weight.context == device and weight.dtype == np.dtype(dtype)


@pytest.mark.parametrize("state_dtype", ["int8", "float16"])
def test_states_low_precision_are_where_the_weight_is(state_dtype):
    weight = mx.nd.ones((3,), ctx=mx.cpu(1))
    state = mxadamax.Adam(state_dtype={".*": state_dtype}).create_state(0, weight)
    assert {a.context for a in leaves(state)} == {mx.cpu(1)}
    if state_dtype == "int8":
        assert state[2].dtype == np.float32


def test_the_average_of_a_weight_in_double_precision_is_exact():
    """Its share of a third has more digits than float32 holds."""
    optimizer = mxadamax.SGD(learning_rate=1.0, ema_decay=2 / 3, **PLAIN)
    fused = mxadamax.SGD(learning_rate=1.0, ema_decay=2 / 3)
    weights = [mx.nd.ones((2,), dtype="float64", ctx=mx.cpu(1)) for _ in range(2)]
    states = [o.create_state(0, w) for o, w in zip((optimizer, fused), weights)]
    for step in range(5):
        for o, w, s in zip((optimizer, fused), weights, states):
            o.update([0], [w], [mx.nd.full((2,), 0.1 * step, dtype="float64", ctx=mx.cpu(1))], [s])
        assert_same_bits(leaves(states[0])[-1].asnumpy(), leaves(states[1])[-1].asnumpy())


@pytest.mark.parametrize(
    ("which", "value", "said"),
    [
        ("weight", [1.0], "weight is list, expected an NDArray"),
        ("gradient", None, "gradient is NoneType, expected an NDArray"),
        ("gradient", np.ones(2), "gradient is ndarray, expected an NDArray"),
    ],
)
def test_what_is_no_array(which, value, said):
    optimizer = mxadamax.SGD(param_idx2name={1: "bias"}, **PLAIN)
    weights, grads = [mx.nd.ones((2,)), mx.nd.ones((2,))], [mx.nd.ones((2,)), mx.nd.ones((2,))]
    (weights if which == "weight" else grads)[1] = value
    with pytest.raises(ValueError, match=f"^sgd_ext: parameter 1 \\('bias'\\): {said}$"):
        optimizer.update([0, 1], weights, grads, [None, None])
    assert weights[0].asnumpy().tolist() == [1, 1]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("options", "rate", "said"),
    [
        ({"decoupled_wd": True, "wd": 19.0}, 1e308, "1 - lr \\* wd is -inf"),
        ({"wd": 19.0, "lr_mult": 10.0}, 1e308, "lr is inf"),
    ],
)
def test_scalars_that_are_not_finite(options, rate, said, fused):
    options = dict(options)
    multiplier = options.pop("lr_mult", 1.0)
    optimizer = mxadamax.SGD(learning_rate=rate, use_fused_step=fused, **options)
    optimizer.set_lr_mult({1: multiplier})
    weights = [mx.nd.ones((2,)), mx.nd.ones((2,))]
    first = 1 if multiplier != 1.0 else 0
    message = f"^sgd_ext: parameter {first}: {said}, expected a finite number$"
    with pytest.raises(ValueError, match=message):
        optimizer.update([0, 1], weights, [w.copy() for w in weights], [None, None])
    assert [w.asnumpy().tolist() for w in weights] == [[1, 1], [1, 1]]


def test_several_rates_in_one_step_and_bias_corrections_of_their_own():
    """Parameters that have been updated unequally often are counted each by itself."""
    optimizers = [mxadamax.Adam(learning_rate=0.1, use_fused_step=f) for f in (True, False)]
    found = []
    for optimizer in optimizers:
        optimizer.lr_scheduler = lambda t: 0.1 / t
        weights = [mx.nd.ones((2,)) for _ in range(3)]
        states = [optimizer.create_state(i, w) for i, w in enumerate(weights)]
        for indices in ([0], [0, 1, 2], [2, 1], [2, 0, 1]):
            optimizer.update(
                indices,
                [weights[i] for i in indices],
                [mx.nd.full((2,), 0.5 + i) for i in indices],
                [states[i] for i in indices],
            )
        assert optimizer._index_update_count == {0: 3, 1: 3, 2: 3}
        assert optimizer.num_update == 3
        found.append(np.stack([w.asnumpy() for w in weights]))
    assert_same_bits(*found)
    # Alone, each by the rates that it was given.
    for index, rates in ((0, (0.1, 0.05, 0.1 / 3)), (1, (0.05, 0.05, 0.1 / 3))):
        alone, weight = mxadamax.Adam(), mx.nd.ones((2,))
        state = alone.create_state(0, weight)
        for rate in rates:
            alone.set_learning_rate(rate)
            alone.update([0], [weight], [mx.nd.full((2,), 0.5 + index)], [state])
        assert_same_bits(found[0][index], weight.asnumpy())
