# SPDX-License-Identifier: Apache-2.0
"""Row-sparse gradients: only the rows that they hold, or the result of the dense gradient."""

import ctypes

import mxnet as mx
import numpy as np
import pytest
from common import SPECIAL, assert_same_bits, gradients, leaves, network_shapes
from family import PORTABLE_FAMILY as FAMILY
from sparse_gradients import NOWHERE, row_sparse, some_rows

import mxadamax
from mxadamax import _native
from mxadamax._mxnet.compatibility import IS_MXNET_1, seed_all
from mxadamax._mxnet.engine import native

pytestmark = pytest.mark.quick

OPTIONS = {"wd": 0.013, "clip_gradient": 0.37, "rescale_grad": 1 / 3, "learning_rate": 0.0123}
SHAPES = [(50, 7), (40,), (9, 2, 3), (30000, 1), (5, 0), (0, 4)]

members = pytest.mark.parametrize("member", FAMILY, ids=str)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


class Sparse:
    """Weights with an optimizer, driven with gradients that hold some rows."""

    def __init__(self, optimizer, values, stype="default"):
        self.optimizer = optimizer
        self.weights = [mx.nd.array(v, dtype=v.dtype) for v in values]
        if stype != "default":
            self.weights = [w.tostype(stype) for w in self.weights]
        self.states = [optimizer.create_state(k, w) for k, w in enumerate(self.weights)]

    def step(self, grads):
        indices = list(range(len(grads)))
        self.optimizer.update_multi_precision(indices, self.weights, grads, self.states)

    def arrays(self):
        """For each parameter its weight and states."""
        return [
            [x.asnumpy() for x in (weight, *leaves(state))]
            for weight, state in zip(self.weights, self.states)
        ]


def start(shapes, dtype):
    rng = np.random.RandomState(1)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@members
@dtypes
@pytest.mark.parametrize("stype", ["default", "row_sparse"])
def test_like_the_dense_gradient(member, dtype, stype):
    shapes = SHAPES[:4] if stype == "default" else SHAPES[:3]
    options = {**OPTIONS, **member.options}
    if member.name == "ftrl_ext":
        # MXNet's leaves rows of a row_sparse weight alone.
        options["numerics"] = "portable"
    sparse = Sparse(member.create(**options), start(shapes, dtype), stype)
    dense = Sparse(member.create(**options), start(shapes, dtype))
    rng = np.random.RandomState(2)
    for grads in gradients(shapes, dtype, 6, special=SPECIAL):
        held = [row_sparse(g, some_rows(len(g), rng), g.shape) for g in grads]
        before = [g.asnumpy().tobytes() for g in held]
        sparse.step(held)
        dense.step([g.tostype("default") for g in held])
        for mine, theirs in zip(sparse.arrays(), dense.arrays()):
            for a, b in zip(mine, theirs):
                assert_same_bits(a, b)
        assert [g.asnumpy().tobytes() for g in held] == before


@members
@dtypes
def test_lazy_update_touches_the_rows_of_the_gradient_only(member, dtype):
    shapes = SHAPES[:4]
    options = {**OPTIONS, **member.options}
    lazy = Sparse(member.create(**options, lazy_update=True), start(shapes, dtype))
    rng = np.random.RandomState(2)
    for t, grads in enumerate(gradients(shapes, dtype, 6, special=SPECIAL)):
        rows = [some_rows(len(g), rng) for g in grads]
        before = lazy.arrays()
        # Those rows alone, as small dense weights of an optimizer that has counted as many steps.
        alone = Sparse(member.create(**options), [a[0][r] for a, r in zip(before, rows)])
        for state, arrays, r in zip(alone.states, before, rows):
            for leaf, values in zip(leaves(state), arrays[1:]):
                leaf[:] = mx.nd.array(values[r], dtype=dtype)
        alone.optimizer._index_update_count.update(dict.fromkeys(range(len(shapes)), t))
        if hasattr(alone.optimizer, "m_schedule"):
            alone.optimizer.m_schedule = lazy.optimizer.m_schedule

        lazy.step([row_sparse(g, r, g.shape) for g, r in zip(grads, rows)])
        alone.step([mx.nd.array(g[r], dtype=dtype) for g, r in zip(grads, rows)])
        for mine, theirs, old, r in zip(lazy.arrays(), alone.arrays(), before, rows):
            for a, b, unchanged in zip(mine, theirs, old):
                expected = unchanged.copy()
                expected[r] = b
                assert_same_bits(a, expected)


@pytest.mark.parametrize("lazy", [False, True])
def test_arrays_without_elements(lazy):
    with mx.util.np_shape(True):
        for shape in SHAPES[4:]:
            sparse = Sparse(mxadamax.Adam(lazy_update=lazy), [np.zeros(shape, "float32")])
            sparse.step([mx.nd.sparse.zeros("row_sparse", shape)])
            mx.nd.waitall()


@pytest.mark.parametrize(
    "rows, message",
    [
        ([3, 60], "names row 60 of 50"),
        ([-1, 2], "names row -1 of 50"),
        ([5, 5], "names row 5 not in ascending order, once each"),
        ([7, 2], "names row 2 not in ascending order, once each"),
        ([49, 50], "names row 50 of 50"),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_rows_that_are_not_there(rows, message, lazy):
    """An error at the next wait, and no array of the step has been written."""
    values = [np.ones((4, 4), "float32"), np.ones((50, 7), "float32")]
    sparse = Sparse(mxadamax.Adamax(lazy_update=lazy), values)
    before = sparse.arrays()
    bad = mx.nd.sparse.row_sparse_array((np.ones((2, 7), "float32"), rows), shape=(50, 7))
    sparse.step([mx.nd.ones((4, 4)), bad])
    with pytest.raises(mx.MXNetError, match=f"a row_sparse gradient {message}"):
        mx.nd.waitall()
    for mine, old in zip(sparse.arrays(), before):
        for a, b in zip(mine, old):
            assert_same_bits(a, b)


def test_a_weight_that_lacks_rows():
    weight = mx.nd.sparse.row_sparse_array((np.ones((2, 3), "float32"), [1, 4]), shape=(6, 3))
    sparse = Sparse(mxadamax.Adamax(), [])
    sparse.optimizer.fused_step(
        [0], [weight], [mx.nd.ones((6, 3))], [sparse.optimizer.create_state(0, weight)]
    )
    with pytest.raises(
        mx.MXNetError, match="a row_sparse weight holds 2 rows, expected all of its 6"
    ):
        mx.nd.waitall()


def test_a_gradient_that_is_written_again_at_once():
    """The next backward pass queues its write while the update waits: reading rows must not wait."""
    shape = (1000, 64)
    rng = np.random.RandomState(0)
    optimizer = mxadamax.Adam(lazy_update=True)
    weight = mx.nd.ones(shape)
    state = optimizer.create_state(0, weight)
    grad = mx.nd.sparse.zeros("row_sparse", shape)
    other = Sparse(mxadamax.Adam(lazy_update=True), [np.ones(shape, "float32")])
    slow = mx.nd.ones((400, 400))
    fresh = []
    for _ in range(30):
        rows = np.flatnonzero(rng.rand(shape[0]) < 0.1)
        values = rng.standard_normal(shape).astype("float32")
        fresh.append(row_sparse(values, rows, shape))
    mx.nd.waitall()
    for new in fresh:
        mx.nd.dot(slow, slow)
        new.copyto(grad)
        optimizer.fused_step([0], [weight], [grad], [state])
    for new in fresh:
        other.step([new])
        mx.nd.waitall()
    assert_same_bits(weight.asnumpy(), other.weights[0].asnumpy())


def test_embedding_through_an_updater():
    """Row-sparse gradients as MXNet makes them, by way of the updater that Trainers use."""
    vocabulary, units = 200, 8
    weights, updaters = [], []
    for name in ("adam_ext", "adam"):
        rng = np.random.RandomState(0)
        weights.append(mx.nd.array(rng.standard_normal((vocabulary, units))))
        optimizer = mx.optimizer.create(name, lazy_update=True, wd=0.01, beta1=0.5, beta2=0.5)
        updaters.append(mx.optimizer.get_updater(optimizer))
    for _ in range(5):
        words = mx.nd.array(rng.randint(0, vocabulary, (16,)))
        for weight, updater in zip(weights, updaters):
            weight.attach_grad(stype="row_sparse")
            with mx.autograd.record():
                loss = (
                    mx.nd.Embedding(words, weight, vocabulary, units, sparse_grad=True) ** 2
                ).sum()
            loss.backward()
            assert weight.grad.stype == "row_sparse"
            updater(0, weight.grad, weight)
        np.testing.assert_allclose(weights[0].asnumpy(), weights[1].asnumpy(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("stype", ["default", "row_sparse"])
def test_multi_precision(stype):
    values = np.random.RandomState(0).standard_normal((20, 3)).astype("float16")
    rows = np.array([2, 3, 11])
    results = []
    for lazy in (True, False):
        optimizer = mxadamax.Adam(multi_precision=True, lazy_update=lazy, wd=0.1, ema_decay=0.9)
        weight = mx.nd.array(values, dtype="float16").tostype(stype)
        state = optimizer.create_state_multi_precision(0, weight)
        optimizer.update_multi_precision(
            [0], [weight], [row_sparse(values, rows, (20, 3))], [state]
        )
        results.append(weight.asnumpy())
        assert np.array_equal(results[-1], state[0].asnumpy().astype("float16"))
    moved = [np.any(result != values, axis=1) for result in results]
    assert np.array_equal(np.flatnonzero(moved[0]), rows)
    assert np.all(moved[1])


def test_csr_arrays():
    """By way of dense copies, as MXNet does it for operators that do not know them."""
    rng = np.random.RandomState(0)
    values, grad = (rng.standard_normal((6, 5)).astype("float32") for _ in range(2))
    grad[rng.rand(6, 5) < 0.5] = 0
    csr = Sparse(mxadamax.Adam(wd=0.1), [values], stype="csr")
    dense = Sparse(mxadamax.Adam(wd=0.1), [values])
    for _ in range(3):
        csr.step([mx.nd.array(grad).tostype("csr")])
        dense.step([mx.nd.array(grad)])
        assert csr.weights[0].stype == "csr"
        for a, b in zip(csr.arrays()[0], dense.arrays()[0]):
            assert_same_bits(a, b)
    assert csr.optimizer._index_update_count == {0: 3}


def test_readable_definition_takes_sparse_gradients():
    values = np.ones((6, 5), "float32")
    runs = [Sparse(mxadamax.Adam(use_fused_step=fused), [values]) for fused in (True, False)]
    for run in runs:
        run.step([row_sparse(values, np.array([1, 4]), (6, 5))])
    for a, b in zip(*(run.arrays()[0] for run in runs)):
        assert_same_bits(a, b)


def test_where_row_numbers_cannot_be_found():
    """An MXNet that keeps them elsewhere: row_sparse arrays are refused, the rest goes on."""
    native()
    known = mx.nd.sparse.row_sparse_array(([[1.0], [2.0]], [1, 5]), shape=(9, 1))
    known.wait_to_read()
    assert not _native.find_row_indices([(known, [1, NOWHERE])])
    try:
        sparse = Sparse(mxadamax.Adam(), [np.ones((9, 1), "float32")])
        with pytest.raises(
            ValueError, match="parameter 0: gradient is row_sparse, expected a dense"
        ):
            sparse.step([known])
        sparse.step([mx.nd.ones((9, 1))])
    finally:
        native.cache_clear()
        native()
    sparse.step([known])
    mx.nd.waitall()


class InMemory:
    """Looks like an array: a pointer to an object, which has vectors that lead to numbers."""

    def __init__(self, numbers, places, end=8, capacity=8):
        self.numbers = (ctypes.c_int64 * len(numbers))(*numbers)
        self.handles = (ctypes.c_void_p * 1)(ctypes.addressof(self.numbers))
        self.object = (ctypes.c_int64 * 80)()
        for place in places:
            begin = ctypes.addressof(self.handles)
            self.object[place : place + 3] = [begin, begin + end, begin + capacity]
        self.array = ctypes.c_void_p(ctypes.addressof(self.object))
        self.handle = ctypes.c_void_p(ctypes.addressof(self.array))


def test_memory_that_leads_to_row_numbers_by_accident():
    """What was freed did so once, in a place where it is for no other array: a crash later."""
    first, second = [7, 11], [3, 5]

    def found(*arrays):
        numbers = [list(array.numbers) for array in arrays]
        return _native.find_row_indices(list(zip(arrays, numbers)))

    native()
    try:
        assert found(InMemory(first, [8]), InMemory(second, [8]))
        assert found(InMemory(first, [2, 8]), InMemory(second, [8]))
        assert not found(InMemory(first, [2]), InMemory(second, [8]))
        assert not found(InMemory(first, []), InMemory(second, [8]))
        assert not found(InMemory(first, [8], end=0))
        assert not found(InMemory(first, [8], end=16))
        assert not found()
    finally:
        native.cache_clear()
        native()


def train_embedding(sparse_grad, devices, **options):
    """A net before and after some steps; its embedding has row_sparse gradients, or dense ones."""
    seed_all(0)
    contexts = [mx.cpu(k) for k in range(devices)]
    net = mx.gluon.nn.Sequential()
    net.add(
        mx.gluon.nn.Embedding(50, 6, sparse_grad=sparse_grad), mx.gluon.nn.Dense(3, in_units=24)
    )
    net.initialize(mx.init.Xavier(), ctx=contexts)

    def weights():
        return [p.data(c).asnumpy() for c in contexts for p in net.collect_params().values()]

    before = weights()
    trainer = mx.gluon.Trainer(net.collect_params(), mxadamax.Adamax(0.01, wd=0.01, **options))
    rng = np.random.RandomState(1)
    for _ in range(8):
        losses = []
        with mx.autograd.record():
            for context in contexts:
                words = mx.nd.array(rng.randint(0, 20, (5, 4)), ctx=context)
                losses.append((net(words) ** 2).sum())
        mx.autograd.backward(losses)
        trainer.step(5 * devices)
    return before, weights()


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 has no sparse gradients in Gluon")
@pytest.mark.parametrize("devices", [1, 2])
def test_embedding_in_gluon(devices):
    with network_shapes():
        before, dense = train_embedding(False, devices)
        _, sparse = train_embedding(True, devices)
        _, lazy = train_embedding(True, devices, lazy_update=True)
    for found, expected in zip(sparse, dense):
        assert_same_bits(found, expected)
    for table in range(0, len(dense), len(dense) // devices):
        # Words that never occur: weight decay moves them, but where all rows are updated only.
        assert not np.any(sparse[table][20:] == before[table][20:])
        assert_same_bits(lazy[table][20:], before[table][20:])
        assert not np.any(lazy[table][:20] == before[table][:20])
