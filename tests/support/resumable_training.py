# SPDX-License-Identifier: Apache-2.0
"""A training that goes on where it was killed.

``python resumable_training.py FOLDER STEPS`` trains to that step, writing a checkpoint to the folder
every few steps, and at the end the weights, averages and states to ``result.npz``. A checkpoint is
two files with the step in their names, ``0012.params`` and ``0012.states``. The states are written
last, so that a step of which they are there is complete.
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.checkpoints import load_states, save_states

# isort: split
import os
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

EVERY = 4
BATCH = 16
CLASSES = 5
FEATURES = 20


def array(values: np.ndarray):
    make = mx.nd.array if IS_MXNET_1 else mx.np.array
    return make(values, dtype=values.dtype)


def batch(step: int):
    """Points around the centers of classes; which, depends on the step only."""
    centers = np.random.RandomState(0).standard_normal((CLASSES, FEATURES))
    rng = np.random.RandomState(1000 + step)
    labels = rng.randint(0, CLASSES, BATCH)
    points = centers[labels] + 0.5 * rng.standard_normal((BATCH, FEATURES))
    return array(points.astype("float32")), array(labels.astype("float32"))


def last_checkpoint(folder: Path) -> int:
    """The step of the last one that is complete; 0 where there is none."""
    return max((int(path.stem) for path in folder.glob("[0-9]*.states")), default=0)


def save_checkpoint(folder: Path, step: int, net: gluon.Block, trainer: gluon.Trainer) -> None:
    """Write the checkpoint of a step, and remove older ones."""
    parameters = folder / f"{step:04}.params"
    net.save_parameters(str(parameters))
    # `save_states` forces its own file, and the folder, to the disk.
    with open(parameters, "rb") as stream:
        os.fsync(stream.fileno())
    save_states(trainer, folder / f"{step:04}.states")
    for path in [*folder.glob("[0-9]*.states"), *folder.glob("[0-9]*.params")]:
        if int(path.stem) < step:
            path.unlink()


def main(folder: Path, steps: int) -> None:
    np.random.seed(1)
    mx.random.seed(1)
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(16, activation="relu", in_units=FEATURES))
    net.add(gluon.nn.Dense(CLASSES, in_units=16))
    net.initialize(mx.init.Xavier(), ctx=mx.cpu())
    net.hybridize()
    optimizer = mxadamax.Adamax(
        learning_rate=0.05,
        lr_scheduler=mx.lr_scheduler.FactorScheduler(step=10, factor=0.8, base_lr=0.05),
        wd=0.01,
        clip_gradient=0.5,
        ema_decay=0.9,
    )
    trainer = gluon.Trainer(net.collect_params(), optimizer)
    loss = gluon.loss.SoftmaxCrossEntropyLoss()

    first = last_checkpoint(folder)
    if first:
        net.load_parameters(str(folder / f"{first:04}.params"), ctx=mx.cpu())
        load_states(trainer, folder / f"{first:04}.states")
        assert optimizer.num_update == first
    for step in range(first, steps):
        points, labels = batch(step)
        with autograd.record():
            losses = loss(net(points), labels)
        losses.backward()
        trainer.step(BATCH)
        if (step + 1) % EVERY == 0:
            save_checkpoint(folder, step + 1, net, trainer)
        print(f"step {step + 1}", flush=True)

    found = {f"weight {k}": p.data().asnumpy() for k, p in enumerate(trainer._params)}
    with mxadamax.averaged_weights(trainer):
        found.update({f"average {k}": p.data().asnumpy() for k, p in enumerate(trainer._params)})
    for k, ((m, u), _) in trainer._updaters[0].states.items():
        found.update({f"m {k}": m.asnumpy(), f"u {k}": u.asnumpy()})
    found["counts"] = np.array([optimizer.num_update, trainer.learning_rate])
    # In one step, as checkpoints are.
    np.savez(folder / "part.npz", **found)
    os.replace(folder / "part.npz", folder / "result.npz")


if __name__ == "__main__":
    # As the tests have it; on MXNet 1, weights are read as they were written.
    with mx.util.np_shape(True):
        main(Path(sys.argv[1]), int(sys.argv[2]))
