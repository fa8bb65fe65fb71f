# SPDX-License-Identifier: Apache-2.0
"""A long training compressed: many steps of many tensors, with memory, handles and bits watched.

    python scripts/soak.py                      100,000 steps of 200 tensors
    python scripts/soak.py --steps 2000         what time permits

Fails where memory or open files grow after the first tenth, or where a weight or state differs from
float32 arithmetic in NumPy, which follows a sample of the tensors through all steps.
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax

# isort: split
import argparse
import gc
import os
import sys
import time

import mxnet as mx
import numpy as np

FACTOR, BETA1, BETA2, EPSILON, RATE = (0.5, 0.9, 0.999, 1e-8, 0.002)
GRADIENTS = 7
"""How many sets of gradients come in turn."""
WAIT = 20
"""After how many steps all are waited for."""


def resident() -> int:
    """Memory of this process in KiB."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)


def arrays() -> int:
    """How many arrays of MXNet there are."""
    gc.collect()
    return sum(isinstance(found, mx.nd.NDArray) for found in gc.get_objects())


class Oracle:
    """AdaMax for one tensor in NumPy's float32, in the order of docs/optimizers.md."""

    def __init__(self, weight: np.ndarray):
        self.weight = weight.copy()
        self.mean, self.norm = np.zeros_like(weight), np.zeros_like(weight)

    def step(self, grad: np.ndarray, t: int) -> None:
        f = np.float32
        grad = grad * f(FACTOR)
        self.mean = f(BETA1) * self.mean + f(1 - BETA1) * grad
        self.norm = np.maximum(f(BETA2) * self.norm, np.abs(grad))
        rate = f(mxadamax._native.as_mxnet_reads(RATE / (1 - BETA1**t)))
        self.weight = self.weight - rate * (self.mean / (self.norm + f(EPSILON)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    arguments = parser.parse_args()
    rng = np.random.RandomState(0)
    shapes = [(int(rng.randint(1, 40)), int(rng.randint(1, 40))) for _ in range(arguments.tensors)]
    start = [rng.standard_normal(s).astype("float32") for s in shapes]
    values = [[rng.standard_normal(s).astype("float32") for s in shapes] for _ in range(GRADIENTS)]
    sample = range(0, arguments.tensors, max(arguments.tensors // 5, 1))
    oracles = {k: Oracle(start[k]) for k in sample}
    optimizer = mxadamax.Adamax(learning_rate=RATE, rescale_grad=FACTOR)
    updater = mx.optimizer.get_updater(optimizer)
    weights = [mx.nd.array(w) for w in start]
    given = [[mx.nd.array(g) for g in grads] for grads in values]
    indices = list(range(len(weights)))

    def watch() -> tuple[int, int, int]:
        mx.nd.waitall()
        return resident(), arrays(), len(os.listdir("/proc/self/fd"))

    begin, seen, step = time.monotonic(), [], 0
    every = max(arguments.steps // 20, 1)
    while step < arguments.steps and time.monotonic() - begin < arguments.seconds:
        found = values[step % GRADIENTS]
        # New handles in every step, as Gluon hands them over.
        grads = [grad.detach() for grad in given[step % GRADIENTS]]
        updater(list(indices), grads, list(weights))
        step += 1
        # As a training does that looks at its loss. Steps that wait to be done take memory, and one
        # that never waits may run ahead by any number of them.
        if step % WAIT == 0:
            mx.nd.waitall()
        for k, oracle in oracles.items():
            oracle.step(found[k], step)
        if step % every == 0:
            seen.append((step, *watch()))
            print("step {}: {} KiB, {} arrays, {} files".format(*seen[-1]), flush=True)
    seen.append((step, *watch()))

    print(f"{step} steps of {len(weights)} tensors in {time.monotonic() - begin:.0f} s")
    differ = [
        k
        for k, oracle in oracles.items()
        for mine, theirs in zip(
            (weights[k], *updater.states[k]), (oracle.weight, oracle.mean, oracle.norm)
        )
        if mine.asnumpy().tobytes() != theirs.tobytes()
    ]
    settled = [entry for entry in seen if entry[0] >= step // 10]
    first, last = settled[0], settled[-1]
    growth = last[1] - first[1]
    print(
        f"from step {first[0]} on: {growth} KiB, {last[2] - first[2]} arrays, "
        f"{last[3] - first[3]} files; {len(oracles)} tensors compared, {len(differ)} differ"
    )
    if differ or growth > 4096 or last[2] > first[2] or last[3] > first[3]:
        sys.exit("soak: something has grown, or differs")


if __name__ == "__main__":
    main()
