# SPDX-License-Identifier: Apache-2.0
"""Module.fit in the manner of face recognition: margins, several outputs, a metric, callbacks."""

import logging

import mxnet as mx
import numpy as np
from printing import print_result

logging.disable(logging.INFO)
CLASSES, BATCH, COUNT = 10, 16, 96


def network():
    data, label = mx.sym.Variable("data"), mx.sym.Variable("softmax_label")
    body = mx.sym.Convolution(data, num_filter=8, kernel=(3, 3), stride=(2, 2), name="conv1")
    body = mx.sym.BatchNorm(body, fix_gamma=False, name="bn1")
    body = mx.sym.LeakyReLU(body, act_type="prelu", name="relu1")
    body = mx.sym.FullyConnected(mx.sym.Flatten(body), num_hidden=16, name="embedding")
    weight = mx.sym.Variable("fc7_weight", shape=(CLASSES, 16), lr_mult=1.0)
    weight = mx.sym.L2Normalization(weight, mode="instance")
    embedding = mx.sym.L2Normalization(body, mode="instance") * 16
    logits = mx.sym.FullyConnected(embedding, weight, no_bias=True, num_hidden=CLASSES, name="fc7")
    margin = mx.sym.one_hot(label, depth=CLASSES, on_value=4.0, off_value=0.0)
    return mx.sym.SoftmaxOutput(logits - margin, label, name="softmax", normalization="valid")


for name, options, store in (
    ("sgd", {"momentum": 0.9, "wd": 5e-4, "rescale_grad": 1.0}, "device"),
    ("nag", {"momentum": 0.9, "wd": 5e-4}, "local"),
    ("adam", {"wd": 1e-4}, None),
):
    mx.random.seed(0)
    np.random.seed(0)
    rng = np.random.RandomState(0)
    images = rng.standard_normal((COUNT, 3, 16, 16)).astype("float32")
    labels = rng.randint(0, CLASSES, COUNT).astype("float32")
    data = mx.io.NDArrayIter(images, labels, BATCH)
    module = mx.mod.Module(network())
    losses = []

    def seen(param, losses=losses):
        if param.nbatch == 3:
            losses.append(param.eval_metric.get()[1])

    module.fit(
        data,
        num_epoch=2,
        eval_metric="ce",
        kvstore=store,
        optimizer=name,
        optimizer_params={
            "learning_rate": 0.05,
            "lr_scheduler": mx.lr_scheduler.MultiFactorScheduler([6, 9], 0.1, 0.05),
            **options,
        },
        initializer=mx.init.Xavier(),
        batch_end_callback=seen,
    )
    weights, others = module.get_params()
    print_result(f"{name}, {store}", losses, {**weights, **others})
