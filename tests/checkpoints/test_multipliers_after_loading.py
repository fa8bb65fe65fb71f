# SPDX-License-Identifier: Apache-2.0
"""After states are loaded, the multipliers of the program's parameters count, not the file's."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from bits import assert_same_bits
from common import network_shapes
from mxnet import autograd, gluon

import mxadamax

OPTIONS = {"learning_rate": 0.05, "wd": 0.1}


class Training:
    """A layer whose parameters have multipliers, as a program sets them, and its trainer."""

    def __init__(self, name: str, lr_mult: float, wd_mult: float) -> None:
        self.net = gluon.nn.Dense(3, in_units=4)
        self.net.initialize(mx.init.Constant(0.3))
        self.trainer = gluon.Trainer(self.net.collect_params(), name, dict(OPTIONS))
        self.set(lr_mult, wd_mult)

    def set(self, lr_mult: float, wd_mult: float) -> None:
        self.net.weight.lr_mult = lr_mult
        self.net.weight.wd_mult = wd_mult

    def step(self, number: int) -> None:
        arrays = mx.np if mx.__version__ >= "2" else mx.nd
        inputs = np.random.RandomState(number).standard_normal((8, 4)).astype("float32")
        with autograd.record():
            loss = (self.net(arrays.array(inputs)) ** 2).sum()
        loss.backward()
        self.trainer.step(8)

    def weights(self) -> list[np.ndarray]:
        return [self.net.weight.data().asnumpy(), self.net.bias.data().asnumpy()]


@pytest.mark.parametrize("name", ["adamax_ext", "adamw_ext", "sgd_ext"])
@pytest.mark.parametrize("loads", ["load_states", "Trainer.load_states"])
def test_the_programs_multipliers_count(name, loads, tmp_path):
    with network_shapes():
        first = Training(name, 0.5, 3.0)
        for number in range(3):
            first.step(number)
        file = str(tmp_path / "states")
        mxadamax.save_states(first.trainer, file)
        first.net.save_parameters(str(tmp_path / "weights"))

        # With others than the file's, one of them the one that no one has set.
        second = Training(name, 0.25, 1.0)
        second.net.load_parameters(str(tmp_path / "weights"))
        if loads == "load_states":
            mxadamax.load_states(second.trainer, file)
        else:
            second.trainer.load_states(file)
        first.set(0.25, 1.0)
        for number in range(3, 6):
            first.step(number)
            second.step(number)
            for expected, found in zip(first.weights(), second.weights()):
                assert_same_bits(found, expected)
