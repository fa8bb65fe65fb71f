# SPDX-License-Identifier: Apache-2.0
"""Forecast with GluonTS's DeepAR, trained with this package's Adam in the place of MXNet's.

GluonTS makes its optimizer itself, as ``mx.optimizer.Adam``; for the time of a training that name
stands for :class:`mxadamax.Adam` here, and nothing else changes. The losses of both are equal up to
rounding: MXNet 1's fused Adam rounds in another order.

GluonTS runs on MXNet 1::

    pip install 'gluonts[mxnet]' 'mxadamax[mxnet1]'
    python examples/gluonts_deepar.py
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax

# isort: split
import argparse
import random
import time
from typing import Callable
from unittest import mock

import mxnet as mx
import numpy as np
from gluonts.dataset.common import ListDataset
from gluonts.mx import DeepAREstimator, Trainer
from gluonts.mx.trainer.callback import TrainingHistory

HOURS, HORIZON = 24 * 21, 24


def electricity_like(series: int, seed: int = 0) -> ListDataset:
    """Hourly series with a day and a week in them, of different sizes, and noise."""
    rng = np.random.RandomState(seed)
    hour = np.arange(HOURS)
    data = []
    for _ in range(series):
        day = np.sin(2 * np.pi * (hour + rng.uniform(0, 24)) / 24)
        week = 0.4 * np.cos(2 * np.pi * hour / (24 * 7))
        values = rng.uniform(5, 50) * (2 + day + week + 0.1 * rng.standard_normal(HOURS))
        data.append({"start": "2021-01-04 00:00", "target": values.astype("float32")})
    return ListDataset(data, freq="H")


def train(
    optimizer: Callable[..., mx.optimizer.Optimizer], epochs: int = 5, batches: int = 20
) -> list[float]:
    """Train DeepAR and return the loss of each epoch.

    Parameters
    ----------
    optimizer : type
        What GluonTS gets where it asks for ``mx.optimizer.Adam``.
    epochs, batches : int
        How long to train, and how many batches of 32 make an epoch.
    """
    random.seed(0)
    np.random.seed(0)
    mx.random.seed(0)
    history = TrainingHistory()
    estimator = DeepAREstimator(
        freq="H",
        prediction_length=HORIZON,
        context_length=HORIZON,
        num_cells=20,
        num_layers=1,
        trainer=Trainer(
            epochs=epochs, num_batches_per_epoch=batches, hybridize=True, callbacks=[history]
        ),
    )
    with mock.patch.object(mx.optimizer, "Adam", optimizer):
        estimator.train(electricity_like(20))
    return history.loss_history


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20, help="per epoch")
    arguments = vars(parser.parse_args(argv))

    losses = {}
    for name, optimizer in (("mxnet", mx.optimizer.Adam), ("mxadamax", mxadamax.Adam)):
        start = time.perf_counter()
        losses[name] = train(optimizer, **arguments)
        seconds = time.perf_counter() - start
        print(f"{name:8}: " + " ".join(f"{x:.4f}" for x in losses[name]) + f" ({seconds:.1f} s)")
    difference = max(abs(a - b) for a, b in zip(*losses.values()))
    print(f"the losses of both differ by {difference:.1e} at most")
    return losses


if __name__ == "__main__":
    main()
