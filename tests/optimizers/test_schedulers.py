# SPDX-License-Identifier: Apache-2.0
"""Learning rates that a scheduler decides, given to Gluon's Trainer with and without a rate."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
import pytest
from bits import assert_same_bits
from common import network_shapes
from family import built_in
from mxnet import autograd, gluon

import mxadamax  # noqa: F401

pytestmark = pytest.mark.quick

STEPS = 9


class HalfEveryOther(mx.lr_scheduler.LRScheduler):
    """One of a program's own, which looks at nothing but its argument."""

    def __call__(self, num_update: int) -> float:
        return float(self.base_lr) * (0.5 if num_update % 2 else 1.0)


SCHEDULERS = {
    "factor": lambda **rate: mx.lr_scheduler.FactorScheduler(step=2, factor=0.7, **rate),
    "steps": lambda **rate: mx.lr_scheduler.MultiFactorScheduler(step=[2, 5], factor=0.5, **rate),
    "poly": lambda **rate: mx.lr_scheduler.PolyScheduler(max_update=8, pwr=2, **rate),
    "cosine": lambda **rate: mx.lr_scheduler.CosineScheduler(
        max_update=8, warmup_steps=3, warmup_begin_lr=0.0001, **rate
    ),
    "own": HalfEveryOther,
}
GIVEN: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "nowhere": ({}, {}),
    "to the scheduler": ({"base_lr": 0.03}, {}),
    "to the optimizer": ({}, {"learning_rate": 0.02}),
    "to both": ({"base_lr": 0.03}, {"learning_rate": 0.03}),
}


def train(trainer_of: Any) -> tuple[list[float], list[list[np.ndarray]]]:
    """The rate and the weights after each step; a weight of one layer goes into two."""
    arrays = mx.np if mx.__version__ >= "2" else mx.nd
    net = gluon.nn.Dense(4, in_units=4)
    net.initialize(mx.init.Constant(0.2))
    net.bias.lr_mult = 0.5
    trainer = trainer_of(net.collect_params())
    rates, weights = [], []
    for step in range(STEPS):
        inputs = np.random.RandomState(step).standard_normal((8, 4)).astype("float32")
        with autograd.record():
            loss = (net(net(arrays.array(inputs))) ** 2).sum()
        loss.backward()
        trainer.step(8)
        rates.append(trainer.learning_rate)
        weights.append([net.weight.data().asnumpy(), net.bias.data().asnumpy()])
    return rates, weights


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["adamax", "adam", "nag"])
def test_as_the_built_in(name, scheduler, given):
    of_scheduler, of_optimizer = GIVEN[given]

    def options() -> dict[str, Any]:
        return {
            **of_optimizer,
            "lr_scheduler": SCHEDULERS[scheduler](**of_scheduler),
            "wd": 0.01,
        }

    with network_shapes():
        rates, weights = train(lambda p: gluon.Trainer(p, f"{name}_ext", options()))
        expected_rates, expected = train(lambda p: gluon.Trainer(p, built_in(name, **options())))
    assert rates == expected_rates
    assert len(set(rates)) > 1
    for found, wanted in zip(weights, expected):
        for a, b in zip(found, wanted):
            assert_same_bits(a, b)
