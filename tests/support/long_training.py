# SPDX-License-Identifier: Apache-2.0
"""Train for long with everything on, and tell what came out of each step by a number.

As a program it waits for trainings to do, as lines of JSON with the arguments of `digests`, so that
one process per instruction set and number of threads does for all.
"""

from __future__ import annotations

import functools
import json
import sys
import zlib
from collections.abc import Sequence
from typing import Any

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax  # noqa: F401

# isort: split
import mxnet as mx
import numpy as np
from common import SPECIAL, gradients, leaves, nd
from family import WITH_BUILT_IN, Member

from mxadamax.conversion import master_first
from mxadamax.optimizers.arithmetic import SERIES

STEPS = 300
SHAPES = [(n,) for n in (0, 1, 2, 15, 16, 17, 31, 32, 33, 1003, 100_003)] + [(331, 101)]
"""Around the widths of vectors, and so many elements that several threads share them."""

KINDS = ("float32", "float64", "masters")
"""The last for float16 weights with float32 masters."""

OPTIONS = {"wd": 0.013, "clip_gradient": 0.37, "rescale_grad": 1 / 3, "learning_rate": 0.0123}
SETS = 7
"""How many sets of gradients come in turn."""


@functools.lru_cache(maxsize=2)
def sets_of_gradients(dtype: str, special: Sequence[float]) -> list[list[mx.nd.NDArray]]:
    """With NaN and others in 3 % of the elements of every second array, after the first steps.

    They stay in a state, and one in a norm is in all of an array.
    """
    rng = np.random.RandomState(3)
    chosen = [rng.permutation(grad.size)[: 1 + grad.size // 33] for grad in map(np.empty, SHAPES)]
    sets = []
    for number, grads in enumerate(gradients(SHAPES, dtype, SETS)):
        for grad, at in list(zip(grads, chosen))[1::2] if number > 2 else ():
            grad.flat[at] = rng.choice(special, len(at))
        if 0 not in special:
            # Some are too small for float16.
            for grad in grads:
                grad[grad == 0] = np.finfo(dtype).tiny
        sets.append([nd(grad) for grad in grads])
    return sets


def options_of(member: Member, kind: str) -> dict[str, Any]:
    """The options of both optimizers."""
    schedule = mx.lr_scheduler.FactorScheduler(step=7, factor=0.9, stop_factor_lr=1e-5)
    more = {"multi_precision": kind == "masters", "lr_scheduler": schedule}
    return {**OPTIONS, **more, **member.options, **member.fixed_order}


def digest(arrays: Sequence[np.ndarray], found: int = 0) -> int:
    """A number that tells arrays apart. Of NaN only that it is one counts."""
    for array in arrays:
        array[np.isnan(array)] = np.nan
        found = zlib.crc32(array, found)
    return found


def train(member: Member, optimizer: mx.optimizer.Optimizer, kind: str) -> list[int]:
    """The digest of weights and states after each step."""
    dtype = "float16" if kind == "masters" else kind
    special = tuple(SPECIAL)
    if ("zeros", SERIES) in member.exceptions:
        special = tuple(x for x in special if x != 0)
    sets = sets_of_gradients(dtype, special)
    rng = np.random.RandomState(1)
    weights = [nd(np.asarray(rng.standard_normal(shape), dtype)) for shape in SHAPES]
    indices = list(range(len(weights)))
    optimizer.set_lr_mult({k: 0.5 + 0.3 * k for k in indices[::2]})
    optimizer.set_wd_mult({k: 0.7 * k for k in indices[::3]})
    update = mx.optimizer.get_updater(optimizer)
    built_in = type(optimizer).__module__.startswith("mxnet.")
    name = type(optimizer).__name__.lower() if built_in else ""
    found = []
    for step in range(STEPS):
        # The built-ins overwrite gradients.
        grads = [grad.copy() if built_in else grad for grad in sets[step % SETS]]
        update(list(indices), grads, list(weights))
        arrays = [*weights]
        for index in indices:
            arrays += leaves(master_first(update.states[index], name))
        found.append(digest([array.asnumpy() for array in arrays]))
    # There was something to compare.
    assert np.isfinite(weights[SHAPES.index((100_003,))].asnumpy()).all()
    assert len(set(found)) == STEPS
    return found


def digests(number: int, kind: str, more: dict[str, Any]) -> list[int]:
    """What `train` finds for ours, the `number`-th of `WITH_BUILT_IN`, with more options."""
    member = WITH_BUILT_IN[number]
    return train(member, member.create(**{**options_of(member, kind), **more}), kind)


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    with mx.util.np_shape(True):
        for line in sys.stdin:
            print(json.dumps(digests(*json.loads(line))), file=answers, flush=True)
