# SPDX-License-Identifier: Apache-2.0
"""GluonTS trains a DeepAR and a SimpleFeedForward, with the Adam that it makes itself."""

import random

import mxnet as mx
import numpy as np
from gluonts.dataset.common import ListDataset
from gluonts.mx import DeepAREstimator, SimpleFeedForwardEstimator, Trainer
from gluonts.mx.trainer.callback import Callback
from printing import print_result

HOURS = np.arange(24 * 21)


class Losses(Callback):
    """Keep the loss of each epoch, and the network."""

    def __init__(self):
        self.losses = []

    def on_train_epoch_end(self, epoch_no, epoch_loss, training_network, trainer):
        self.losses.append(epoch_loss)
        self.network = training_network
        return True


def series(rng):
    day = 2 + np.sin(2 * np.pi * HOURS / 24)
    values = rng.uniform(5, 50) * (day + 0.1 * rng.standard_normal(len(HOURS)))
    return {"start": "2021-01-04 00:00", "target": values.astype("float32")}


for name in ("DeepAR", "SimpleFeedForward"):
    random.seed(0)
    np.random.seed(0)
    mx.random.seed(0)
    rng = np.random.RandomState(0)
    data = ListDataset([series(rng) for _ in range(8)], freq="H")
    seen = Losses()
    trainer = Trainer(epochs=3, num_batches_per_epoch=10, learning_rate=1e-2, callbacks=[seen])
    if name == "DeepAR":
        estimator = DeepAREstimator(freq="H", prediction_length=24, trainer=trainer, num_cells=20)
    else:
        estimator = SimpleFeedForwardEstimator(prediction_length=24, trainer=trainer)
    estimator.train(data)
    print_result(name, seen.losses, seen.network.collect_params())
