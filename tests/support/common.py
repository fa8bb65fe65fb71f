# SPDX-License-Identifier: Apache-2.0
"""What several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ContextManager

import mxnet as mx
import numpy as np
from bits import SPECIAL, assert_same_bits  # noqa: F401

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.optimizers.scalars import update_scalars
from mxadamax.optimizers.state_layout import arrays_of

PACKAGE = Path(mxadamax.__file__).resolve().parents[1]
"""The folder that the package under test is in."""

SIZES = (0, 1, 2, 15, 16, 17, 31, 32, 33, 1000)
"""Around the widths of vectors, and without elements, in every position of a list."""

NUMPY_BOOL = """
import numpy
vars(numpy).setdefault("bool", bool)
"""
"""What programs on Python 3.12 begin with that import MXNet before this package."""

MXNET_FIRST = f"""{NUMPY_BOOL}
import mxnet as mx
import mxadamax
"""
"""How most programs begin."""


def nd(array: np.ndarray, ctx: mx.Context | None = None) -> mx.nd.NDArray:
    """A classic NDArray of any shape, of size 0 and of no dimensions as well."""
    return mx.np.array(array, dtype=array.dtype, ctx=ctx or mx.cpu()).as_nd_ndarray()


def environment_of_tests(**environment: str) -> dict[str, str]:
    """The environment of a process that a test starts: one thread, and the package under test."""
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """What a new Python process prints that runs this code, which can import what tests can."""
    paths = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"{MXNET_FIRST}\n{code}", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def network_shapes() -> ContextManager[None]:
    """MXNet 1's networks take a size of 0 for one that is not known yet, not as the others here."""
    return mx.util.np_shape(not IS_MXNET_1)


def parameters_of(net: mx.gluon.Block) -> dict[str, mx.gluon.Parameter]:
    """The parameters by the names that tell where in the net they are."""
    return net._collect_params_with_prefix() if IS_MXNET_1 else net.collect_params()


def next_scalars(optimizer: mx.optimizer.Optimizer) -> dict[str, object]:
    """What the rule of one of our optimizers is given for the next update of its parameter 0."""
    lrs, wds = optimizer._count_update([0])
    return update_scalars(optimizer, lrs, wds, optimizer._updates([0]))


def leaves(state: object) -> list[mx.nd.NDArray]:
    """The arrays of an optimizer state, however nested."""
    return list(arrays_of(state))


def gradients(
    shapes: Sequence[tuple[int, ...]],
    dtype: str,
    steps: int,
    special: Sequence[float] = (),
    seed: int = 0,
) -> Iterator[list[np.ndarray]]:
    """Random gradients of many magnitudes for each step, with `special` values among them."""
    rng = np.random.RandomState(seed)
    for _ in range(steps):
        grads = []
        for shape in shapes:
            grad = np.asarray(rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 2, shape), dtype)
            if special:
                kinds = rng.randint(0, 400, shape)
                for kind, value in enumerate(special):
                    grad = np.where(kinds == kind, np.asarray(value, dtype), grad)
            grads.append(np.asarray(grad, dtype))
        yield grads


class Run:
    """An optimizer with its updater and weights, as a Trainer holds them, without a Trainer."""

    def __init__(
        self, optimizer: mx.optimizer.Optimizer, weights: Sequence[np.ndarray], **params: object
    ):
        self.optimizer = optimizer
        self.updater = mx.optimizer.get_updater(optimizer)
        self.weights = [nd(weight) for weight in weights]
        self.indices = list(range(len(weights)))

    def step(self, grads: Sequence[np.ndarray]) -> None:
        """One update; checks that the gradients come out as they went in, but for the built-ins."""
        arrays = [nd(grad) for grad in grads]
        self.updater(list(self.indices), arrays, list(self.weights))
        if self.optimizer.__module__.startswith("mxadamax"):
            for array, grad in zip(arrays, grads):
                assert array.asnumpy().tobytes() == grad.tobytes()

    def assign(self, other: Run) -> None:
        """Take over the weights and states of another run."""
        for mine, theirs in zip(self.weights, other.weights):
            mine[:] = theirs
        for index in self.indices:
            if index in other.updater.states:
                state = self.optimizer.create_state(index, self.weights[index])
                for mine, theirs in zip(leaves(state), leaves(other.updater.states[index])):
                    mine[:] = theirs
                self.updater.states[index] = state
                self.updater.states_synced[index] = True

    def arrays(self) -> list[np.ndarray]:
        """Weights and states."""
        found = [weight.asnumpy() for weight in self.weights]
        for index in self.indices:
            found += [leaf.asnumpy() for leaf in leaves(self.updater.states.get(index))]
        return found


def assert_same_run(actual: Run, expected: Run, where: str = "") -> None:
    """Fail unless weights and states of both are the same bits."""
    for k, (a, b) in enumerate(zip(actual.arrays(), expected.arrays())):
        assert_same_bits(a, b, f"{where}, array {k}")
