# SPDX-License-Identifier: Apache-2.0
"""Take steps whose gradients hold a number that is not finite."""

import math
from contextlib import contextmanager
from unittest import mock

from common import nd
from gate import Gate, gated

from mxadamax.optimizers.step_tracker import StepTracker

SHAPES = [(17,), (), (0,), (3, 4, 5), (40000,), (1,)]
"""The first can be gated; one is larger than a chunk; one has no dimensions, one no elements."""


STEPS = 10


BAD = {
    0: (0, 0, math.nan),
    3: (4, -1, math.inf),
    4: (4, 20011, -math.inf),
    7: (1, 0, math.nan),
}
"""Step: parameter, element and value."""


@contextmanager
def counted_outcomes():
    """How many outcomes each step was handed over with."""
    counts = []
    original = StepTracker.possible_skips

    def outcomes(self, indices):
        found = original(self, indices)
        counts.append(len(found))
        return found

    with mock.patch.object(StepTracker, "possible_skips", outcomes):
        Gate.opened.clear()
        try:
            yield counts
        finally:
            Gate.opened.set()


def flat(state):
    """The arrays of a state, however nested."""
    if state is None:
        return []
    return [leaf for x in state for leaf in flat(x)] if isinstance(state, tuple) else [state]


def spoiled(grads, parameter, element, value):
    """The same but for one number."""
    grads = [grad.copy() for grad in grads]
    grads[parameter].reshape(-1)[element] = value
    return grads


def push(run, grads, gate=False, indices=None):
    """A step that nothing waits for."""
    indices = run.indices if indices is None else indices
    arrays = [nd(grad) for grad in grads]
    if gate:
        arrays[0] = gated(arrays[0])
    run.updater(list(indices), arrays, [run.weights[k] for k in indices])


def copies(run):
    """Weights, states and averages as they are after the last step, without waiting for it."""
    arrays = list(run.weights)
    for index in run.indices:
        arrays += flat(run.updater.states.get(index))
    return [array.copy() for array in arrays]
