# SPDX-License-Identifier: Apache-2.0
"""Train a small network with a Trainer."""

import mxnet as mx
import numpy as np
from common import network_shapes, parameters_of
from mxnet import autograd, gluon

from mxadamax._mxnet.compatibility import gluon_arrays, seed_all

OPTIONS = {"learning_rate": 0.01, "wd": 0.01, "clip_gradient": 0.5}


BATCH = 16


def mlp():
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(20, activation="relu", in_units=12))
    net.add(gluon.nn.BatchNorm(in_channels=20))
    net.add(gluon.nn.Dense(3, in_units=20))
    return net, (12,)


class Training:
    """A model with its trainer; equal weights and data for equal seeds."""

    def __init__(
        self,
        make,
        optimizer,
        options=OPTIONS,
        devices=None,
        hybridize=True,
        grad_req="write",
        **trainer,
    ):
        seed_all(1)
        self.devices = devices or [mx.cpu()]
        with network_shapes():
            self.net, self.shape = make()
        for parameter in self.net.collect_params().values():
            if parameter.grad_req != "null":
                parameter.grad_req = grad_req
        self.net.initialize(mx.init.Xavier(), ctx=self.devices)
        if hybridize:
            self.net.hybridize()
        for device in self.devices:
            # MXNet puts the initialization of some layers off until then.
            self.predict(gluon_arrays.zeros((1, *self.shape), ctx=device))
        # An evaluation queues that a weight gets a layout of oneDNN's. MXNet crashes, also with its own
        # optimizers, where `asnumpy` reads the weight at that moment.
        mx.nd.waitall()
        self.params = parameters_of(self.net)
        self.loss = gluon.loss.SoftmaxCrossEntropyLoss()
        self.data = np.random.RandomState(2)
        if isinstance(optimizer, str):
            optimizer = mx.optimizer.create(optimizer, **options)
        self.trainer = gluon.Trainer(self.params, optimizer, **trainer)

    def predict(self, x):
        with network_shapes():
            return self.net(x)

    def backward(self):
        for device in self.devices:
            x = self.data.standard_normal((BATCH, *self.shape)).astype("float32")
            y = self.data.randint(0, 3, BATCH)
            x, y = gluon_arrays.array(x, ctx=device), gluon_arrays.array(y, ctx=device)
            with autograd.record():
                loss = self.loss(self.predict(x), y)
            loss.backward()

    def step(self, **options):
        self.backward()
        self.trainer.step(BATCH * len(self.devices), **options)

    def weights(self):
        return {
            f"{name} on {device}": p.data(device).asnumpy()
            for name, p in self.params.items()
            for device in self.devices
        }

    def states(self):
        updaters = self.trainer._updaters
        if self.trainer._update_on_kvstore:
            updaters = [self.trainer._kvstore._updater]
        return [[a.asnumpy() for i in sorted(u.states) for a in u.states[i]] for u in updaters]
