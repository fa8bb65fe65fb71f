# SPDX-License-Identifier: Apache-2.0
"""Adam ends at the worst point of a convex problem, AMSGrad goes to the best.

    python examples/amsgrad_counterexample.py
    MXNET_ENGINE_TYPE=NaiveEngine python examples/amsgrad_counterexample.py --steps 2000000

The problem is the synthetic one of S. J. Reddi, S. Kale, S. Kumar, *On the Convergence of Adam and
Beyond*, arXiv 1904.09237, for x in [-1, 1] with projection after each step, in two versions::

    online:      f_t(x) = 1010 x  for t mod 101 = 1,         otherwise -10 x
    stochastic:  f_t(x) = 1010 x  with a probability of 0.01, otherwise -10 x

On average f rises with x, so x = -1 is best and x = 1 worst. Adam forgets the rare large gradient
sooner than it meets the next, and so makes the steps of the frequent small ones, in the wrong
direction, larger; AMSGrad remembers the largest. As in the paper beta1 is 0.9 and beta2 0.99. For
the step size, which the paper does not name here, the script takes ``learning_rate / sqrt(t)``, for
which the paper bounds AMSGrad's regret. The first steps are about as long as the interval, so that
the starting point hardly matters.

In the stochastic version a gradient has a mean of 0.2 and a deviation of 101, so that about
(101 / 0.2)**2 = 255,000 steps have to pass before the slope can be told from chance at all. Adam is
at the wrong end long before; AMSGrad takes its time: over 100 runs its mean x is about -0.4 after
200,000 steps and -0.88 after 2,000,000. The naive engine makes them faster: with arrays this small,
handing work to other threads costs more than the work.
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax  # noqa: F401  registers adam_ext and amsgrad_ext

# isort: split
import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import mxnet as mx
import numpy as np
from tqdm import tqdm

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OPTIMIZERS = ("adam_ext", "amsgrad_ext")
BEST, WORST = -1.0, 1.0
RARE, FREQUENT, PERIOD = 1010.0, -10.0, 101
RUNS = 100
"""Runs of the stochastic version: as many as one in a probability of 0.01."""

REGRET_AT_WORST = {
    "online": (WORST - BEST) * (RARE + (PERIOD - 1) * FREQUENT) / PERIOD,
    "stochastic": (WORST - BEST) * (RARE + (RUNS - 1) * FREQUENT) / RUNS,
}


class InverseSquareRoot(mx.lr_scheduler.LRScheduler):
    """The learning rate divided by the square root of the number of the step."""

    def __call__(self, num_update: int) -> float:
        return self.base_lr / num_update**0.5


@dataclass
class Trace:
    """What one optimizer did on one version of the problem, at some of its steps.

    Parameters
    ----------
    optimizer : str
        Its name in MXNet's registry.
    version : {'online', 'stochastic'}
        Of the problem.
    steps : numpy.ndarray, shape (records,)
        Number of each step that is recorded.
    iterates : numpy.ndarray, shape (records, runs)
        The point after it.
    regrets : numpy.ndarray, shape (records, runs)
        Average regret up to it: the mean of ``f_t(x_t) - f_t(-1)``.
    """

    optimizer: str
    version: str
    steps: np.ndarray
    iterates: np.ndarray
    regrets: np.ndarray

    def __str__(self) -> str:
        return (
            f"{self.optimizer:12} {self.version:11} "
            f"x {self.iterates[-1].mean():+.3f}, average regret {self.regrets[-1].mean():.3f} "
            f"({REGRET_AT_WORST[self.version]:.3f} at x = 1)"
        )


def make_gradients() -> np.ndarray:
    """All gradients that a step can meet, of shape (2, RUNS, 1 + RUNS).

    The last axis is the point: first the online version, then the runs of the stochastic one. On
    the first axis the online version has its frequent and its rare gradient. On the second one run
    after the other has the rare one: drawn uniformly for each step, it gives every run the rare
    gradient with a probability of exactly 1 / RUNS, independently of its other steps. The runs
    themselves are not independent, which makes their mean vary less.
    """
    gradients = np.full((2, RUNS, 1 + RUNS), FREQUENT, dtype="float32")
    gradients[1, :, 0] = RARE
    gradients[:, np.arange(RUNS), 1 + np.arange(RUNS)] = RARE
    return gradients


def run(
    optimizer: str,
    steps: int,
    learning_rate: float = 1.0,
    correct_bias: bool = True,
    seed: int = 0,
    records: int = 200,
) -> tuple[Trace, Trace]:
    """Run both versions from x = 0; all of them are one vector and take one kernel call a step.

    Parameters
    ----------
    optimizer : {'adam_ext', 'amsgrad_ext'}
        Name in MXNet's registry.
    steps : int
        How many.
    learning_rate : float
        That of the first step; it falls with the root of their number.
    correct_bias : bool
        Option of the optimizer.
    seed : int
        Of the stochastic version.
    records : int
        How many steps to record, about.

    Returns
    -------
    online, stochastic : Trace
        The first with a single run.
    """
    updater = mx.optimizer.create(
        optimizer,
        learning_rate=None,
        lr_scheduler=InverseSquareRoot(learning_rate),
        beta1=0.9,
        beta2=0.99,
        correct_bias=correct_bias,
    )
    gradients = make_gradients()
    on_device = [[mx.nd.array(gradient) for gradient in half] for half in gradients]
    weight = mx.nd.zeros(1 + RUNS)
    state = updater.create_state(0, weight)
    draws = np.random.RandomState(seed).randint(RUNS, size=steps)

    iterate = weight.asnumpy()
    regret = np.zeros(iterate.shape)
    stride = max(1, steps // records)
    if stride > PERIOD:
        # Always before the rare gradient of the online version, where x is largest: at changing
        # places in the period, the picture would show beats.
        stride -= stride % PERIOD
    recorded, iterates, regrets = [], [], []
    # None shows the bar on a terminal only.
    for t, draw in enumerate(tqdm(draws, desc=optimizer, disable=None, leave=False), 1):
        which = int(t % PERIOD == 1), draw
        regret += gradients[which] * (iterate - BEST)
        updater.fused_step([0], [weight], [on_device[which[0]][draw]], [state])
        mx.nd.clip(weight, BEST, WORST, out=weight)
        iterate = weight.asnumpy()
        if t % stride == 0:
            recorded.append(t)
            iterates.append(iterate)
            regrets.append(regret / t)
    x, r, at = np.array(iterates), np.array(regrets), np.array(recorded)
    return (
        Trace(optimizer, "online", at, x[:, :1], r[:, :1]),
        Trace(optimizer, "stochastic", at, x[:, 1:], r[:, 1:]),
    )


def plot(traces: list[Trace], path: Path) -> None:
    """Draw average regret and iterate for both versions, as in figure 1 of the paper.

    Of the stochastic version it draws the mean of all runs, and the band that 80 % of them keep to.
    """
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True)
    for row, version in zip(axes, REGRET_AT_WORST):
        for trace in traces:
            if trace.version != version:
                continue
            for panel, values in zip(row, (trace.regrets, trace.iterates)):
                (line,) = panel.plot(trace.steps, values.mean(axis=1), label=trace.optimizer)
                if values.shape[1] > 1:
                    low, high = np.percentile(values, [10, 90], axis=1)
                    panel.fill_between(trace.steps, low, high, color=line.get_color(), alpha=0.2)
        # Early averages are over few steps and would hide all others.
        row[0].set(ylabel="$R_t / t$", ylim=(-0.25, 1.0), title=f"{version}: average regret")
        row[0].axhline(REGRET_AT_WORST[version], color="gray", linestyle=":", label="of x = 1")
        row[1].set(ylabel="$x_t$", ylim=(-1.1, 1.1), title=f"{version}: iterate")
        row[0].legend(loc="upper right")
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    for panel in axes[1]:
        panel.set_xlabel("step $t$")
        panel.ticklabel_format(axis="x", scilimits=(-3, 4))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> list[Trace]:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--learning-rate", type=float, default=1.0, help="of the first step")
    parser.add_argument(
        "--no-bias-correction",
        dest="correct_bias",
        action="store_false",
        help="moments as they are, which is algorithm 2 of the paper",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    arguments = vars(parser.parse_args(argv))
    output = arguments.pop("output")

    traces = []
    for optimizer in OPTIMIZERS:
        for trace in run(optimizer, **arguments):
            print(trace)
            traces.append(trace)
    output.mkdir(parents=True, exist_ok=True)
    plot(traces, output / "amsgrad_counterexample.png")
    print(f"plot: {output / 'amsgrad_counterexample.png'}")
    return traces


if __name__ == "__main__":
    main()
