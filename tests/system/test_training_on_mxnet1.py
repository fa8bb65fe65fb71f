# SPDX-License-Identifier: Apache-2.0
"""Programs of MXNet 1 train with these optimizers to the bits of the built-ins, after every step.

One is written as GluonCV's ``train_cifar10.py``, one as MXNet's example of a factorization machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from bits import assert_same_bits
from common import leaves, network_shapes, parameters_of
from mxnet import autograd, gluon
from mxnet.gluon import nn

from mxadamax._mxnet.compatibility import IS_MXNET_1

pytestmark = pytest.mark.skipif(not IS_MXNET_1, reason="programs of MXNet 1")


@pytest.fixture(autouse=True)
def shapes():
    with network_shapes():
        yield


def arrays_of(weights: dict[str, mx.nd.NDArray], updater: Any) -> dict[str, np.ndarray]:
    """Weights and states as they are now."""
    found = {name: weight.asnumpy() for name, weight in weights.items()}
    for index, state in updater.states.items():
        arrays = enumerate(leaves(state))
        found.update({f"state {index}, {k}": array.asnumpy() for k, array in arrays})
    return found


def assert_same_training(
    first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]
) -> None:
    """Fail unless both have the same bits after each step, and have learned something."""
    assert len(first) == len(second)
    for step, (found, wanted) in enumerate(zip(first, second), 1):
        assert found.keys() == wanted.keys()
        for name, array in found.items():
            assert_same_bits(array, wanted[name], f"step {step}, {name}")
    for name, array in first[-1].items():
        assert np.isfinite(array).all() and not np.array_equal(array, first[0][name]), name


# Images.

CLASSES, BATCH = 10, 16


class Residual(gluon.HybridBlock):
    """Two convolutions, and the input added to what they give."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        with self.name_scope():
            self.body = nn.HybridSequential(prefix="")
            for step in (stride, 1):
                self.body.add(nn.Conv2D(channels, 3, step, 1, use_bias=False), nn.BatchNorm())
            self.shortcut = nn.Conv2D(channels, 1, stride, use_bias=False)

    def hybrid_forward(self, F, x):  # noqa: N803
        return F.Activation(self.body(x) + self.shortcut(x), act_type="relu")


def resnet() -> gluon.HybridBlock:
    net = nn.HybridSequential()
    with net.name_scope():
        net.add(nn.Conv2D(8, 3, 1, 1, use_bias=False), nn.BatchNorm())
        net.add(Residual(8, 1), Residual(16, 2))
        net.add(nn.GlobalAvgPool2D(), nn.Dense(CLASSES))
    return net


def train_cifar10(optimizer: str, hybridize: bool) -> Iterator[dict[str, np.ndarray]]:
    mx.random.seed(1)
    random = np.random.RandomState(2)
    images = random.standard_normal((3 * BATCH, 3, 32, 32)).astype("float32")
    labels = random.randint(0, CLASSES, len(images)).astype("int32")
    data = gluon.data.DataLoader(
        gluon.data.ArrayDataset(images, labels), BATCH, last_batch="discard"
    )

    net, ctx = resnet(), [mx.cpu()]
    if hybridize:
        net.hybridize()
    net.initialize(mx.init.Xavier(), ctx=ctx)
    options = {"learning_rate": 0.1, "wd": 1e-4, "momentum": 0.9}
    trainer = gluon.Trainer(net.collect_params(), optimizer, options)
    loss_of, accuracy = gluon.loss.SoftmaxCrossEntropyLoss(), mx.metric.Accuracy()
    for epoch in range(3):
        accuracy.reset()
        if epoch in (1, 2):
            trainer.set_learning_rate(trainer.learning_rate * 0.1)
        for batch in data:
            x, y = (gluon.utils.split_and_load(part, ctx_list=ctx) for part in batch)
            with autograd.record():
                output = [net(part) for part in x]
                losses = [loss_of(*pair) for pair in zip(output, y)]
            for loss in losses:
                loss.backward()
            trainer.step(BATCH)
            accuracy.update(y, output)
            weights = {name: p.data() for name, p in parameters_of(net).items()}
            yield arrays_of(weights, trainer._updaters[0])


@pytest.mark.parametrize("hybridize", [True, False])
def test_images_in_the_manner_of_gluoncv(hybridize):
    ours, theirs = (list(train_cifar10(x, hybridize)) for x in ("nag_ext", "nag"))
    assert_same_training(ours, theirs)


# Clicks.

FEATURES, FACTORS, ROWS, CLICKS = 300, 4, 25, 8


def factorization_machine() -> Any:
    """A symbol whose weights and their gradients are row_sparse, of data in csr."""
    x = mx.sym.Variable("data", stype="csr")
    v = mx.sym.Variable("v", shape=(FEATURES, FACTORS), stype="row_sparse", init=mx.init.Normal())
    w = mx.sym.Variable("w", shape=(FEATURES, 1), stype="row_sparse", init=mx.init.Normal())
    bias = mx.sym.Variable("bias", shape=(1,), init=mx.init.Zero())
    linear = mx.sym.broadcast_add(mx.sym.dot(x, w), bias)
    squares = mx.sym.dot(
        mx.sym.square(x), mx.sym._internal._square_sum(data=v, axis=1, keepdims=True)
    )
    of_pairs = mx.sym.sum(mx.sym.square(mx.sym.dot(x, v)), axis=1, keepdims=True) - squares
    return mx.sym.LogisticRegressionOutput(
        linear + 0.5 * of_pairs, mx.sym.Variable("label"), name="click"
    )


@pytest.fixture
def clicks(tmp_path):
    """A file with a few of the features in each line, as the example reads it."""
    random = np.random.RandomState(2)
    lines = []
    for _ in range(CLICKS * ROWS):
        features = np.sort(random.choice(FEATURES, 6, replace=False))
        numbers = (f"{feature}:{random.standard_normal():.4f}" for feature in features)
        lines.append(" ".join([str(random.randint(2)), *numbers]))
    file = tmp_path / "clicks.libsvm"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def train_clicks(
    file: str, optimizer: str, on_kvstore: bool, **options: Any
) -> Iterator[dict[str, np.ndarray]]:
    mx.random.seed(1)
    batches = mx.io.LibSVMIter(
        data_libsvm=file, data_shape=(FEATURES,), batch_size=ROWS, label_name="label"
    )
    module = mx.mod.Module(factorization_machine(), label_names=["label"])
    module.bind(batches.provide_data, batches.provide_label)
    module.init_params()
    options = {"learning_rate": 0.05, "rescale_grad": 1 / ROWS, **options}
    module.init_optimizer(mx.kv.create("local") if on_kvstore else None, optimizer, options)

    def fetch(rows: mx.nd.NDArray) -> None:
        """Fetch the rows of weights that a key-value store has."""
        if on_kvstore:
            module.prepare(batch, sparse_row_id_fn=lambda _: {"v": rows, "w": rows})

    for _ in range(3):
        batches.reset()
        for batch in batches:
            fetch(batch.data[0].indices)
            module.forward_backward(batch)
            gradients = dict(zip(module._param_names, module._exec_group.grad_arrays))
            assert [gradients[name][0].stype for name in ("v", "w")] == ["row_sparse"] * 2
            module.update()
            fetch(mx.nd.arange(FEATURES))
            of_module = module._exec_group.execs[0].arg_dict
            weights = {name: of_module[name] for name in ("v", "w")}
            assert [weight.stype for weight in weights.values()] == ["row_sparse"] * 2
            weights["bias"] = of_module["bias"]
            store = module._kvstore if on_kvstore else module
            yield arrays_of(weights, store._updater)


@pytest.mark.parametrize("on_kvstore", [False, True])
@pytest.mark.parametrize("options", [{}, {"wd": 1e-3}, {"lazy_update": False}], ids=str)
def test_a_factorization_machine(clicks, on_kvstore, options):
    own = {"aggregate_num": 1} if on_kvstore else {}
    ours = list(train_clicks(clicks, "adam_ext", on_kvstore, **options, **own))
    assert_same_training(ours, list(train_clicks(clicks, "adam", on_kvstore, **options)))
