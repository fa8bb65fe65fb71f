# SPDX-License-Identifier: Apache-2.0
"""Train small models with low-precision states, and compare their losses with float32 states.

    python benchmarks/low_precision_losses.py
    python benchmarks/low_precision_losses.py --optimizer adamax lion --model digits --seeds 2

Three models: the convolutional net of examples/train_mnist.py on MNIST's digits; a transformer on
text of a random order-2 Markov chain; a matrix factorization of ratings. Each optimizer that has
states trains each model with each type of state, from the same initial weights and with the same
batches for the same seed. The data are the same for all seeds: what differs between seeds is the
initial weights, the order of the batches, and the random bits that states are rounded by. Every
array has low-precision states, however small.

The learning rates in RATES were chosen for float32 states, by ``--choose-rates``, with two seeds
that are not among those compared. One training more with float32 states, 'perturbed', begins with
weights that differ by a millionth: it shows how far apart two trainings of the same type are.

The loss of data that were not trained with is compared, seed by seed. Results go to a file after
each training, and those that it already has are not repeated. ``benchmarks/tables.py --write`` puts
them into docs/mixed-precision.md. Needs MXNet 2 and ``pip install 'mxadamax[examples]'``.
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax

# isort: split
import argparse
import functools
import hashlib
import itertools
import json
import math
import runpy
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import nn

from mxadamax import _native
from mxadamax.dtypes import STATE_TYPES
from mxadamax.optimizers.info import OPTIMIZERS
from mxadamax.optimizers.state_layout import arrays_of

RESULTS = Path(__file__).resolve().parent / "results" / "low-precision-losses.json"

SMALL_ARRAYS_NEED_A_PATTERN = True
"""Whether `state_dtype="int8"` leaves small arrays in float32, and `{".*": "int8"}` does not."""

FLOAT32, PERTURBED = "float32", "perturbed"
DTYPES = (FLOAT32, PERTURBED, "bfloat16", "float16", "int8")
"""Types of states; the first is what others are compared with."""

SEEDS = 5
SEEDS_OF_RATES = (1000, 1001)
PERTURBATION = 1e-6
LAST_PART = 0.1
"""The share of the steps whose losses are averaged as the training loss."""

Arrays = Tuple[np.ndarray, ...]


# Models


class Model(NamedTuple):
    """A model with its data.

    Parameters
    ----------
    make : callable
        Returns a network.
    data : callable
        Returns the arrays to train with, and those held out; the last of each is the target.
    loss : gluon.loss.Loss
        What is minimized.
    batch, steps : int
        The size of batches, and how many there are.
    """

    make: Callable[[], gluon.HybridBlock]
    data: Callable[[], tuple[Arrays, Arrays]]
    loss: gluon.loss.Loss
    batch: int
    steps: int


EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "train_mnist.py"


@functools.lru_cache(maxsize=None)
def example() -> dict[str, Any]:
    """Return what the example defines."""
    return runpy.run_path(str(EXAMPLE))


def digits() -> tuple[Arrays, Arrays]:
    """Return 4000 images with their labels, and 1000 more."""
    images, labels = example()["read_digits"]()
    images = (images / 255.0).astype("float32").reshape(-1, 1, 28, 28)
    order = np.random.RandomState(0).permutation(len(labels))
    held_out, train = order[:1000], order[1000:]
    return (images[train], labels[train]), (images[held_out], labels[held_out])


SYMBOLS, LENGTH = 32, 16


def text() -> tuple[Arrays, Arrays]:
    """Return lines of a Markov chain, without their last symbol and without their first.

    The logits of a symbol are a sum of one term for each of the two symbols before it.
    """
    random = np.random.RandomState(0)
    terms = 1.5 * random.standard_normal((2, SYMBOLS, SYMBOLS))
    lines = random.randint(0, SYMBOLS, (4096 + 1024, LENGTH + 1))
    for k in range(2, LENGTH + 1):
        logits = terms[0, lines[:, k - 2]] + terms[1, lines[:, k - 1]]
        # The largest of logits with Gumbel noise is a draw from their softmax.
        lines[:, k] = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
    lines = lines.astype("int32")
    train, held_out = lines[:4096], lines[4096:]
    return (train[:, :-1], train[:, 1:]), (held_out[:, :-1], held_out[:, 1:])


class Attention(gluon.HybridBlock):
    """Causal self-attention."""

    def __init__(self, units: int, heads: int):
        super().__init__()
        self.units, self.heads = units, heads
        self.inputs = nn.Dense(3 * units, in_units=units, flatten=False)
        self.output = nn.Dense(units, in_units=units, flatten=False)

    def forward(self, x: Any) -> Any:
        """Mix each position with those before it."""
        # (batch, position, 3 * units) to (3, batch, head, position, units / heads)
        x = self.inputs(x).reshape(-1, LENGTH, 3, self.heads, self.units // self.heads)
        query, key, value = x.transpose(2, 0, 3, 1, 4)
        scores = mx.np.matmul(query, key.swapaxes(2, 3)) / math.sqrt(self.units / self.heads)
        later = mx.np.triu(mx.np.full((LENGTH, LENGTH), -1e9, dtype="float32"), 1)
        mixed = mx.np.matmul(mx.npx.softmax(scores + later), value)
        return self.output(mixed.transpose(0, 2, 1, 3).reshape(-1, LENGTH, self.units))


class Transformer(gluon.HybridBlock):
    """A decoder of one layer, normalized before attention and before the feed-forward net."""

    def __init__(self, units: int = 32, heads: int = 2):
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, units)
        self.positions = gluon.Parameter(shape=(LENGTH, units), init=mx.init.Normal(0.5))
        self.attention = Attention(units, heads)
        self.feed_forward = nn.HybridSequential()
        self.feed_forward.add(
            nn.Dense(2 * units, in_units=units, flatten=False, activation="relu"),
            nn.Dense(units, in_units=2 * units, flatten=False),
        )
        self.norms = nn.HybridSequential()
        self.norms.add(*(nn.LayerNorm(in_channels=units) for _ in range(3)))
        self.output = nn.Dense(SYMBOLS, in_units=units, flatten=False)

    def forward(self, x: Any) -> Any:
        """Return the logits of the next symbol at each position."""
        x = self.symbols(x) + self.positions.data()
        x = x + self.attention(self.norms[0](x))
        x = x + self.feed_forward(self.norms[1](x))
        return self.output(self.norms[2](x))


USERS, ITEMS = 200, 150


def ratings() -> tuple[Arrays, Arrays]:
    """Return pairs of users and items with their ratings: of rank 4, with biases and noise."""
    random = np.random.RandomState(0)
    users, items = (random.standard_normal((count, 4)) for count in (USERS, ITEMS))
    biases = [0.5 * random.standard_normal(count) for count in (USERS, ITEMS)]
    pairs = np.stack([random.randint(0, USERS, 16000), random.randint(0, ITEMS, 16000)], axis=1)
    user, item = pairs.T
    exact = (users[user] * items[item]).sum(axis=1) / 2 + biases[0][user] + biases[1][item]
    found = (exact + 0.3 * random.standard_normal(exact.size)).astype("float32")
    pairs = pairs.astype("int32")
    return (pairs[:12000], found[:12000]), (pairs[12000:], found[12000:])


class Factorization(gluon.HybridBlock):
    """A product of embeddings of users and items, with a bias for each and one for all."""

    def __init__(self, units: int = 6):
        super().__init__()
        self.units = units
        # The last column is the bias.
        self.users = nn.Embedding(USERS, units, weight_initializer=mx.init.Normal(0.3))
        self.items = nn.Embedding(ITEMS, units, weight_initializer=mx.init.Normal(0.3))
        self.user_biases = nn.Embedding(USERS, 1, weight_initializer="zeros")
        self.item_biases = nn.Embedding(ITEMS, 1, weight_initializer="zeros")
        self.bias = gluon.Parameter(shape=(1,), init="zeros")

    def forward(self, pairs: Any) -> Any:
        """Return a rating for each pair."""
        user, item = pairs[:, 0], pairs[:, 1]
        product = (self.users(user) * self.items(item)).sum(axis=1, keepdims=True)
        biases = self.user_biases(user) + self.item_biases(item)
        return (product + biases + self.bias.data()).reshape(-1)


MODELS = {
    "digits": Model(
        lambda: example()["make_net"]("cnn"),
        functools.lru_cache(maxsize=None)(digits),
        gluon.loss.SoftmaxCrossEntropyLoss(),
        *(32, 375),
    ),
    "text": Model(
        Transformer,
        functools.lru_cache(maxsize=None)(text),
        gluon.loss.SoftmaxCrossEntropyLoss(),
        *(16, 400),
    ),
    "ratings": Model(
        Factorization,
        functools.lru_cache(maxsize=None)(ratings),
        gluon.loss.L2Loss(),
        *(256, 470),
    ),
}


# Optimizers


def with_states() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the optimizers that have low-precision states, with their options, by short names."""
    found = {}
    for info in OPTIMIZERS:
        options = {**info.options, **info.bench_options}
        rule = _native.rules[mx.optimizer.create(info.name, **options).rule]
        if rule.states and rule.supports_low_precision_state:
            found[info.bench or info.name[: -len("_ext")]] = (info.name, options)
    return found


OPTIMIZERS_WITH_STATES = with_states()


def offers(optimizer: str, dtype: str) -> bool:
    """Return whether an optimizer has states of a type."""
    name, options = OPTIMIZERS_WITH_STATES[optimizer]
    rule = _native.rules[mx.optimizer.create(name, **options).rule]
    return dtype != "int8" or bool(rule.supports_int8_state)


FIRST_RATES: Mapping[str, float] = {
    **{"adamax": 0.01, "adam": 0.003, "amsgrad": 0.003, "adamw": 0.003, "nadam": 0.003},
    **{"adabelief": 0.003, "rmsprop": 0.003, "adagrad": 0.03, "adadelta": 3.0},
    **{"sgd-momentum": 0.03, "nag": 0.03, "lion": 0.001, "lamb": 0.01, "signum": 0.001},
    **{"lars-momentum": 3.0, "lans": 0.01},
}
"""Where ``--choose-rates`` begins; elsewhere with an optimizer's default."""

RATES: Mapping[str, Mapping[str, float]] = {
    "digits": {
        **{"adamax": 0.01, "adam": 0.003, "amsgrad": 0.003, "adamw": 0.01},
        **{"nadam": 0.003, "adabelief": 0.01, "rmsprop": 0.003, "adagrad": 0.03},
        **{"adadelta": 1.0, "sgd-momentum": 0.03, "nag": 0.03, "lion": 0.001},
        **{"lamb": 0.003, "signum": 0.001, "lars-momentum": 3.0, "lans": 0.01},
    },
    "text": {
        **{"adamax": 0.03, "adam": 0.01, "amsgrad": 0.01, "adamw": 0.01},
        **{"nadam": 0.03, "adabelief": 0.03, "rmsprop": 0.01, "adagrad": 0.1},
        **{"adadelta": 10.0, "sgd-momentum": 0.1, "nag": 0.3, "lion": 0.003},
        **{"lamb": 0.01, "signum": 0.003, "lars-momentum": 3.0, "lans": 0.01},
    },
    "ratings": {
        **{"adamax": 0.1, "adam": 0.03, "amsgrad": 0.03, "adamw": 0.03},
        **{"nadam": 0.03, "adabelief": 0.3, "rmsprop": 0.03, "adagrad": 0.3},
        **{"adadelta": 10.0, "sgd-momentum": 1.0, "nag": 1.0, "lion": 0.01},
        **{"lamb": 0.01, "signum": 0.01, "lars-momentum": 3.0, "lans": 0.01},
    },
}
"""The learning rates, by model and optimizer."""


# Training


class Run(NamedTuple):
    """One training."""

    model: str
    optimizer: str
    dtype: str
    seed: int


@functools.lru_cache(maxsize=None)
def arrays(model: str) -> tuple[Arrays, Arrays]:
    """Return the data of a model as MXNet's arrays."""
    train, held_out = MODELS[model].data()
    return tuple(tuple(mx.np.array(x, dtype=x.dtype) for x in part) for part in (train, held_out))


def batches(count: int, size: int, random: np.random.RandomState) -> Iterator[np.ndarray]:
    """Yield positions without end: all in an order, then all in another."""
    while True:
        order = random.permutation(count)
        for k in range(0, count - size + 1, size):
            yield order[k : k + size]


def make_optimizer(run: Run, rate: float) -> mx.optimizer.Optimizer:
    """Make the optimizer of a training."""
    name, options = OPTIMIZERS_WITH_STATES[run.optimizer]
    options = {**options, "learning_rate": rate}
    if run.dtype not in (FLOAT32, PERTURBED):
        in_all = {".*": run.dtype} if SMALL_ARRAYS_NEED_A_PATTERN else run.dtype
        options.update(state_dtype=in_all, state_seed=run.seed)
    return mx.optimizer.create(name, **options)


def check_states(trainer: gluon.Trainer, dtype: str) -> None:
    """Fail unless all states are of the type that is measured."""
    expected = STATE_TYPES.get(dtype, np.dtype("float32"))
    for state in trainer._updaters[0].states.values():
        # Of 8 bits, only the first says so for certain.
        found = [x.dtype for x in arrays_of(state)][: 1 if dtype == "int8" else None]
        if any(x != expected for x in found):
            raise RuntimeError(f"states are {found}, expected {expected}")


def train(run: Run, rate: float, steps: int | None = None) -> dict[str, Any]:
    """Train a model. Returns the losses, and how long it took."""
    start = time.perf_counter()
    model = MODELS[run.model]
    steps = steps or model.steps
    training, held_out = arrays(run.model)
    for random in (mx.random, mx.np.random, np.random):
        random.seed(run.seed)
    net = model.make()
    net.initialize(mx.init.Xavier())
    net(training[0][:1])
    if run.dtype == PERTURBED:
        noise = np.random.RandomState(run.seed)
        for parameter in net.collect_params().values():
            if parameter.grad_req != "null":
                data = parameter.data().asnumpy()
                factor = 1 + PERTURBATION * noise.standard_normal(data.shape)
                parameter.set_data(mx.np.array(data * factor, dtype="float32"))
    net.hybridize()
    trainer = gluon.Trainer(net.collect_params(), make_optimizer(run, rate))
    losses = []
    order = batches(len(training[0]), model.batch, np.random.RandomState(run.seed))
    for step, chosen in zip(range(steps), order):
        positions = mx.np.array(chosen, dtype="int32")
        inputs, target = (x[positions] for x in training)
        with autograd.record():
            loss = model.loss(net(inputs), target)
        loss.backward()
        trainer.step(model.batch)
        if step >= steps - math.ceil(LAST_PART * steps):
            losses.append(loss.mean())
    check_states(trainer, run.dtype)
    inputs, target = held_out
    loss = float(model.loss(net(inputs), target).mean())
    return {
        **run._asdict(),
        "rate": rate,
        "train_loss": float(np.mean([float(x) for x in losses])),
        "held_out_loss": loss,
        "seconds": round(time.perf_counter() - start, 2),
    }


# Comparison


class Comparison(NamedTuple):
    """Losses of a type of state less those of float32, seed by seed.

    Parameters
    ----------
    mean, error : float
        The mean difference and its standard error.
    spread : float
        The standard deviation of float32's losses between seeds.
    """

    mean: float
    error: float
    spread: float

    @property
    def within_noise(self) -> bool:
        """Whether the difference is less than twice its error, or than the spread of float32."""
        return self.mean == 0 or abs(self.mean) < 2 * self.error or abs(self.mean) < self.spread


def compare(losses: Mapping[int, float], reference: Mapping[int, float]) -> Comparison:
    """Compare losses, by seed, with those of float32 states."""
    seeds = sorted(set(losses) & set(reference))
    differences = [losses[seed] - reference[seed] for seed in seeds]
    deviations = [np.nan, np.nan]
    if len(seeds) > 1:
        # A training can end at infinity.
        with np.errstate(invalid="ignore"):
            deviations = np.std([differences, [reference[seed] for seed in seeds]], axis=1, ddof=1)
    error, spread = (float(x) for x in deviations)
    return Comparison(float(np.mean(differences)), error / math.sqrt(len(seeds)), spread)


def comparisons(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each type of state of each optimizer and model."""
    losses: dict[tuple[str, str, str], dict[int, float]] = {}
    for run in runs:
        by_seed = losses.setdefault((run["model"], run["optimizer"], run["dtype"]), {})
        by_seed[run["seed"]] = run["held_out_loss"]
    rows = []
    for (model, optimizer, dtype), found in losses.items():
        reference = losses.get((model, optimizer, FLOAT32), {})
        if dtype == FLOAT32 or not set(found) & set(reference):
            continue
        result = compare(found, reference)
        rows.append(
            {
                **{"model": model, "optimizer": optimizer, "dtype": dtype},
                **{"rate": RATES[model][optimizer], "seeds": len(set(found) & set(reference))},
                **{"float32": float(np.mean(list(reference.values()))), "spread": result.spread},
                **{"difference": result.mean, "error": result.error},
                "within_noise": result.within_noise,
            }
        )
    return rows


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print each comparison, and how many differ by more than noise."""
    for row in rows:
        print(
            f"{row['model']:8} {row['optimizer']:14} {row['dtype']:10} float32 "
            f"{row['float32']:.4f} +- {row['spread']:.4f}, difference {row['difference']:+.4f} "
            f"+- {row['error']:.4f}, {row['seeds']} seeds"
            f"{'' if row['within_noise'] else ': DIFFERS'}"
        )
    for dtype in DTYPES[1:]:
        found = [row["within_noise"] for row in rows if row["dtype"] == dtype]
        print(f"{dtype}: {sum(found)} of {len(found)} within noise")


# Results


def kernels() -> str:
    """Return what tells the compiled kernels from others."""
    return hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()[:16]


def read(path: Path) -> list[dict[str, Any]]:
    """Read the trainings of a file; fails if other kernels wrote it."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if found["kernels"] != kernels():
        raise SystemExit(f"{path} is of other kernels: remove it, or name another by --output")
    return list(found["runs"])


def write(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Write comparisons and trainings, one in a line; the file is whole at any time."""
    head = json.dumps({"version": mxadamax.__version__, "kernels": kernels()})[:-1]
    rows, lines = (",\n".join(json.dumps(x) for x in found) for found in (comparisons(runs), runs))
    partial = path.with_suffix(".partial")
    partial.write_text(f'{head}, "table": [\n{rows}\n], "runs": [\n{lines}\n]}}\n')
    partial.replace(path)


def neighbour(rate: float, direction: int) -> float:
    """Return the next of the rates 0.1, 0.3, 1, 3, 10 and so on, up or down."""
    factor = 10**0.5 if direction > 0 else 10**-0.5
    found = rate * factor
    power = 10.0 ** math.floor(math.log10(found) + 0.1)
    return float(f"{power * (3 if found / power > 2 else 1):.0e}")


def choose_rate(model: str, optimizer: str) -> dict[float, float]:
    """Return the losses with float32 states by learning rate: the best one and both neighbours."""
    losses: dict[float, float] = {}

    def loss_at(rate: float) -> float:
        if rate not in losses:
            runs = [Run(model, optimizer, FLOAT32, seed) for seed in SEEDS_OF_RATES]
            found = float(np.mean([train(run, rate)["held_out_loss"] for run in runs]))
            losses[rate] = found if math.isfinite(found) else math.inf
        return losses[rate]

    name, options = OPTIMIZERS_WITH_STATES[optimizer]
    best = FIRST_RATES.get(optimizer) or mx.optimizer.create(name, **options).learning_rate
    while True:
        around = [best, neighbour(best, 1), neighbour(best, -1)]
        better = min(around, key=loss_at)
        if better == best:
            return dict(sorted(losses.items()))
        best = better


def choose_rates(models: Sequence[str], optimizers: Sequence[str]) -> None:
    """Print the losses at the rates that were tried, and the best as RATES has them."""
    for model in models:
        best = {}
        for optimizer in optimizers:
            found = choose_rate(model, optimizer)
            best[optimizer] = min(found, key=found.__getitem__)
            tried = {rate: round(loss, 4) for rate, loss in found.items()}
            print(model, optimizer, tried, flush=True)
        print(f'"{model}": {best}', flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(OPTIMIZERS_WITH_STATES)
    with_rates = [name for name in names if all(name in rates for rates in RATES.values())]
    parser.add_argument("--optimizer", nargs="+", default=with_rates, choices=names, metavar="NAME")
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many; default %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--choose-rates", action="store_true", help="try a grid of rates instead")
    arguments = parser.parse_args(argv)
    if arguments.choose_rates:
        choose_rates(arguments.model, arguments.optimizer)
        return
    runs = read(arguments.output)
    done = {Run(*(run[field] for field in Run._fields)) for run in runs}
    # All seeds of a comparison, one after another: what is there after a while is complete.
    wanted = itertools.product(
        arguments.model, arguments.optimizer, arguments.dtype, range(arguments.seeds)
    )
    for run in itertools.starmap(Run, wanted):
        if run in done or not offers(run.optimizer, run.dtype):
            continue
        result = train(run, RATES[run.model][run.optimizer])
        runs.append(result)
        write(arguments.output, runs)
        print(
            f"{run.model:8} {run.optimizer:14} {run.dtype:10} seed {run.seed}: "
            f"{result['train_loss']:.4f} in training, {result['held_out_loss']:.4f} held out, "
            f"{result['seconds']:.1f} s",
            flush=True,
        )
    report(comparisons(runs))


if __name__ == "__main__":
    main()
