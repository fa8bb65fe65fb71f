# SPDX-License-Identifier: Apache-2.0
"""A CIFAR classifier of GluonCV on synthetic images, as its train_cifar10.py trains it."""

import mxnet as mx
import numpy as np
from gluoncv.model_zoo import get_model
from mxnet import autograd, gluon
from printing import print_result

BATCH = 16

for name, options in (
    ("nag", {"learning_rate": 0.1, "wd": 0.0001, "momentum": 0.9}),
    ("sgd", {"learning_rate": 0.1, "wd": 0.0001, "momentum": 0.9}),
    ("adam", {"learning_rate": 0.001}),
):
    mx.random.seed(0)
    rng = np.random.RandomState(0)
    net = get_model("cifar_resnet20_v1", classes=10)
    net.initialize(mx.init.Xavier())
    net.hybridize()
    trainer = gluon.Trainer(net.collect_params(), name, options)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    losses = []
    for step in range(8):
        if step == 5:
            trainer.set_learning_rate(trainer.learning_rate * 0.1)
        images = mx.nd.array(rng.standard_normal((BATCH, 3, 32, 32)))
        labels = mx.nd.array(rng.randint(0, 10, BATCH))
        with autograd.record():
            loss = loss_of(net(images), labels)
        loss.backward()
        trainer.step(BATCH)
        losses.append(loss.mean().asscalar())
    print_result(name, losses, net.collect_params())
