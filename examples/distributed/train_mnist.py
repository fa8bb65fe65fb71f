# SPDX-License-Identifier: Apache-2.0
"""Train on MNIST's digits with several workers; the optimizer runs natively on parameter servers.

    cd examples/distributed
    python launch.py --workers 2 --servers 2 -- python train_mnist.py --kvstore dist_sync
    python train_mnist.py --parts 2

Each worker takes its part of every batch. The second command does the same in one process, with a
device of its own for each part: in ``dist_sync``, the weights of two workers equal its weights to
the last bit.
"""

from __future__ import annotations

# Before mxnet. Servers run this script too, and stop at the import of mxnet. If mxadamax is not
# installed, a server fails here and says so.
import mxadamax  # noqa: F401  registers the optimizers

# isort: split
import argparse
import faulthandler
import os
import sys
import traceback
from pathlib import Path
from typing import Iterator, Sequence

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

# The script of the same name one folder up has the data and the net.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from train_mnist import SameOrder, accuracy, arrays, load_digits, make_net


class PartOfBatches(gluon.data.Sampler):
    """The images of one part of every batch. An incomplete batch at the end is left out.

    Parameters
    ----------
    length : int
        Number of images.
    batch_size : int
        Of the whole batch; a multiple of `parts`.
    part, parts : int
        Which part, from 0, and of how many.
    seed : int
        Of the order, which is another one in each epoch; the same for all parts.
    """

    def __init__(self, length: int, batch_size: int, part: int, parts: int, seed: int):
        self._order = SameOrder(length, seed)
        self._batch_size = batch_size
        self._begin = batch_size * part // parts
        self._end = batch_size * (part + 1) // parts

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        for batch in range(len(self)):
            begin = batch * self._batch_size
            yield order[begin + self._begin : begin + self._end]

    def __len__(self) -> int:
        return len(self._order) // self._batch_size


def train(arguments: argparse.Namespace) -> None:
    """Train as one of several workers, or alone."""
    store = None
    parts, mine = arguments.parts, range(arguments.parts)
    name = f"{parts} parts"
    if "DMLC_ROLE" in os.environ:
        store = mx.kv.create(arguments.kvstore)
        parts, mine = store.num_workers, [store.rank]
        name = f"{arguments.kvstore} {store.rank}"
    devices = [mx.cpu(number) for number in range(len(mine))]

    train_data, test_data = load_digits(arguments.seed)
    mx.random.seed(arguments.seed)
    np.random.seed(arguments.seed)
    net = make_net("mlp")
    net.initialize(mx.init.Xavier(), devices)
    for device in devices:
        net(arrays.zeros((1, 1, 28, 28), ctx=device))
    net.hybridize()
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    options = {"learning_rate": arguments.learning_rate, "wd": arguments.wd}
    trainer = gluon.Trainer(
        net.collect_params(), arguments.optimizer, options, kvstore=store or "device"
    )

    batches = (len(train_data), arguments.batch_size)
    loaders = [
        gluon.data.DataLoader(
            train_data, batch_sampler=PartOfBatches(*batches, part, parts, arguments.seed)
        )
        for part in mine
    ]
    for epoch in range(1, arguments.epochs + 1):
        losses = []
        for pieces in zip(*loaders):
            # If a server dies, MXNet waits for it for ever; this ends the worker instead.
            faulthandler.dump_traceback_later(arguments.patience, exit=True)
            with autograd.record():
                parts_of_loss = [
                    loss_of(net(images.as_in_context(device)), labels.as_in_context(device))
                    for (images, labels), device in zip(pieces, devices)
                ]
            autograd.backward(parts_of_loss)
            # Of the whole batch: the servers add up what the workers send.
            trainer.step(arguments.batch_size)
            losses += [loss.asnumpy().mean() for loss in parts_of_loss]
        print(
            f"{name}: epoch {epoch}: loss {np.mean(losses):.4f}, "
            f"accuracy {accuracy(net, train_data):.4f} train, {accuracy(net, test_data):.4f} test",
            flush=True,
        )
    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
        weights = [parameter.data(devices[0]) for parameter in net.collect_params().values()]
        path = arguments.save / (f"worker-{store.rank}.npz" if store else "alone.npz")
        np.savez(path, *(weight.asnumpy() for weight in weights))


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kvstore",
        choices=["dist_sync", "dist_async", "dist_device_sync"],
        default="dist_sync",
        help="with launch.py",
    )
    parser.add_argument("--parts", type=int, default=1, help="of a batch, without launch.py")
    parser.add_argument("--optimizer", default="adamax_ext", metavar="NAME")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="of all workers together")
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--wd", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, metavar="DIRECTORY", help="where weights go")
    parser.add_argument(
        "--patience", type=float, default=300.0, metavar="SECONDS", help="for a step"
    )
    arguments = parser.parse_args(argv)
    parts = int(os.environ.get("DMLC_NUM_WORKER", arguments.parts))
    if parts < 1 or arguments.batch_size < 1 or arguments.batch_size % parts:
        parser.error(f"--batch-size must be a multiple of {parts}, got {arguments.batch_size}")
    train(arguments)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        # When a worker's key-value store goes, it waits for the other workers, and they wait for
        # this one: without this line, a worker that has failed would never end.
        traceback.print_exc()
        os._exit(1)
