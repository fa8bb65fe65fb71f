# SPDX-License-Identifier: Apache-2.0
"""Updates of a single parameter, as optimizers that wrap another one make them, and of lists."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from common import assert_same_bits, gradients, leaves, nd
from family import FAMILY

import mxadamax

pytestmark = pytest.mark.quick

METHODS = ["update", "update_multi_precision", "step", "fused_step"]
INDICES = [0, 1, 17, np.int64(0), np.int32(5), "dense0_weight"]
SHAPES = [(3, 2), (), (0,)]


def arrays_of(weight, state):
    found = [weight]
    for leaf in leaves(state):
        found += leaves(leaf)
    return [array.asnumpy() for array in found if array is not None]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("index", INDICES, ids=repr)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("member", FAMILY, ids=str)
def test_a_single_parameter(member, method, index, shape):
    """Does what a list of one does, in weight, state and counts, step after step."""
    options = {"wd": 0.1, "clip_gradient": 0.7, "rescale_grad": 0.5}
    start = np.full(shape, 0.5, "float32")
    runs = []
    for _ in range(2):
        optimizer = mx.optimizer.create(member.name, **{**member.options, **options})
        optimizer.set_lr_mult({index: 2.0})
        weight = nd(start)
        runs.append((optimizer, weight, optimizer.create_state_multi_precision(index, weight)))
    (single, weight, state), (listed, other, other_state) = runs
    for t, (grad,) in enumerate(gradients([shape], "float32", 3)):
        getattr(single, method)(index, weight, nd(grad), state)
        getattr(listed, method)([index], [other], [nd(grad)], [other_state])
        for a, b in zip(arrays_of(weight, state), arrays_of(other, other_state)):
            assert_same_bits(a, b, f"step {t + 1}")
        assert single._index_update_count == listed._index_update_count == {index: t + 1}
        assert single.num_update == t + 1
    assert not weight.size or not np.array_equal(weight.asnumpy(), start)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [{"multi_precision": True}, {"ema_decay": 0.5}, {"multi_precision": True, "ema_decay": 0.5}],
    ids=str,
)
def test_a_state_that_is_a_tuple_in_a_tuple(options, method):
    optimizer = mxadamax.Adamax(0.25, **options)
    weight, grad = nd(np.ones(3, "float16")), nd(np.ones(3, "float16"))
    state = optimizer.create_state_multi_precision(0, weight)
    for t in range(1, 4):
        getattr(optimizer, method)(0, weight, grad, state)
        np.testing.assert_allclose(weight.asnumpy(), 1 - 0.25 * t, atol=1e-3)


def test_states_low_precision_are_rounded_the_same_for_an_index_of_numpy():
    found = []
    for index in (3, np.int64(3)):
        optimizer = mxadamax.Adamax(state_dtype={".*": "bfloat16"})
        weight = nd(np.linspace(-1, 1, 500, dtype="float32"))
        state = optimizer.create_state(index, weight)
        for (grad,) in gradients([(500,)], "float32", 5):
            optimizer.update(index, weight, nd(grad), state)
        found.append(weight.asnumpy())
    assert_same_bits(*found)


class Lookahead(mx.optimizer.Optimizer):
    """After every second step of the inner optimizer's, weights go half of the way back.

    Parameter by parameter, as wrappers are written.
    """

    def __init__(self, inner):
        super().__init__(learning_rate=inner.lr)
        self.inner = inner

    def create_state_multi_precision(self, index, weight):
        return weight.copy(), self.inner.create_state_multi_precision(index, weight)

    def update_multi_precision(self, indices, weights, grads, states):
        if not isinstance(indices, (list, tuple)):
            indices, weights, grads, states = [indices], [weights], [grads], [states]
        for index, weight, grad, (slow, state) in zip(indices, weights, grads, states):
            self.inner.update_multi_precision(index, weight, grad, state)
            if self.inner._index_update_count[index] % 2 == 0:
                slow += 0.5 * (weight - slow)
                weight[:] = slow


def test_a_wrapper_that_updates_one_by_one():
    weights = [nd(np.zeros(2, "float32")), nd(np.zeros(3, "float32"))]
    grads = [nd(np.full(2, -1.0, "float32")), nd(np.full(3, -1.0, "float32"))]
    updater = mx.optimizer.get_updater(Lookahead(mxadamax.SGD(learning_rate=1.0)))
    for expected in (1.0, 1.0, 2.0, 2.0):
        updater([0, 1], grads, weights)
        assert [w.asnumpy()[0] for w in weights] == [expected] * 2


KINDS = {
    "tuples": tuple,
    "generators": lambda items: (item for item in items),
    "iterators": iter,
    "views": lambda items: dict(enumerate(items)).values(),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_other_lists(kind, method):
    optimizer = mxadamax.Adamax(0.25)
    weights, grads = [nd(np.ones(3, "float32")) for _ in range(2)], []
    states = [optimizer.create_state(i, weight) for i, weight in enumerate(weights)]
    grads = [nd(np.ones(3, "float32")) for _ in range(2)]
    getattr(optimizer, method)(*map(kind, ([0, 1], weights, grads, states)))
    for weight in weights:
        np.testing.assert_allclose(weight.asnumpy(), 0.75, rtol=1e-6)
    assert optimizer._index_update_count == {0: 1, 1: 1}


def test_range_of_indices_and_no_parameters():
    optimizer = mxadamax.SGD(learning_rate=0.5)
    weights = [nd(np.ones(3, "float32")) for _ in range(2)]
    optimizer.update(range(2), weights, [w.copy() for w in weights], [None, None])
    assert [w.asnumpy()[0] for w in weights] == [0.5, 0.5]
    optimizer.update([], [], [], [])
    assert optimizer.num_update == 1


W, G, S = "weight", "gradient", "state"
REFUSED = [
    (([0, 1], [W], [G], [S]), "got 2 indices, 1 weights, 1 gradients and 1 states, expected the"),
    (([0], [W], [G, G], [S]), "got 1 indices, 1 weights, 2 gradients and 1 states, expected the"),
    (([0], [W], [G], []), "got 1 indices, 1 weights, 1 gradients and 0 states, expected the"),
    (([], [W], [G], [S]), "got 0 indices, 1 weights, 1 gradients and 1 states, expected the"),
    (([0, 1], W, [G, G], [S, S]), "weights must be a list with one for each parameter, got NDArr"),
    (([0], [W], G, [S]), "grads must be a list with one for each parameter, got NDArray"),
    (([0], [W], [G], S), "got 1 indices, 1 weights, 1 gradients and 2 states, expected the"),
    (([0], [W], [G], None), "states must be a list with one for each parameter, got NoneType"),
    (({0}, [W], [G], [S]), "indices must be an integer, a string or a list .*, got set"),
    ((None, W, G, S), "indices must be an integer, a string or a list .*, got NoneType"),
    ((0.0, W, G, S), "indices must be an integer, a string or a list .*, got float"),
    ((b"0", W, G, S), "indices must be an integer, a string or a list .*, got bytes"),
    ((np.array(0), W, G, S), "indices must be an integer, a string or a list .*, got ndarray"),
    ((mx.nd.array([0]), W, G, S), "indices must be an integer, a string or a list .*, got NDArray"),
    (([[0]], [W], [G], [S]), r"an index must be an integer or a string, got \[0\]"),
    (([mx.nd.array([0])], [W], [G], [S]), "an index must be an integer or a string, got \n"),
    (([None], [W], [G], [S]), "an index must be an integer or a string, got None"),
    ((0, [W], G, S), "parameter 0: weight is list, expected an NDArray"),
    ((0, W, [G], S), "parameter 0: gradient is list, expected an NDArray"),
    ((0, W, None, S), "parameter 0: gradient is NoneType, expected an NDArray"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_does_not_go_together_is_refused(arguments, message, method):
    """Before anything is written or counted; the message is that of both ways to compute."""
    optimizer = mxadamax.Adamax(0.25, use_fused_step=method != "step")
    arrays = {W: nd(np.ones((2, 3), "float32")), G: nd(np.ones((2, 3), "float32"))}
    arrays[S] = optimizer.create_state(0, arrays[W])

    def filled(argument):
        if isinstance(argument, list):
            return [filled(item) for item in argument]
        return arrays[argument] if isinstance(argument, str) else argument

    with pytest.raises(ValueError, match=f"^adamax_ext: {message}"):
        getattr(optimizer, method)(*map(filled, arguments))
    assert (optimizer.num_update, optimizer._index_update_count) == (0, {})
    assert np.all(arrays[W].asnumpy() == 1)
    assert not any(leaf.asnumpy().any() for leaf in arrays[S])
