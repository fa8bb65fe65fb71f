# SPDX-License-Identifier: Apache-2.0
"""Files of states without their optimizer are told from others, and there is a way to go on."""

from __future__ import annotations

import pickle

import mxnet as mx
import numpy as np
import pytest
from bits import assert_same_bits
from common import leaves, network_shapes
from mxnet import autograd, gluon

import mxadamax
from mxadamax.__main__ import main

OPTIONS = {"learning_rate": 0.01, "wd": 0.01, "clip_gradient": 0.5}


@pytest.fixture(autouse=True)
def shapes():
    with network_shapes():
        yield


def network() -> gluon.nn.Dense:
    net = gluon.nn.Dense(3, in_units=4)
    net.initialize(mx.init.Constant(0.1))
    return net


def train(net: gluon.nn.Dense, trainer: gluon.Trainer, steps: range) -> None:
    arrays = mx.np if mx.__version__ >= "2" else mx.nd
    for step in steps:
        inputs = np.random.RandomState(step).standard_normal((8, 4)).astype("float32")
        with autograd.record():
            loss = (net(arrays.array(inputs)) ** 2).sum()
        loss.backward()
        trainer.step(8)


def states_alone(trainer: gluon.Trainer) -> bytes:
    """As a Module writes them, and kvstore.save_optimizer_states by default."""
    return trainer._updaters[0].get_states(dump_optimizer=False)


def arrays_of(net: gluon.nn.Dense, trainer: gluon.Trainer) -> list[np.ndarray]:
    states = trainer._updaters[0].states
    arrays = [net.weight.data(), net.bias.data(), *leaves(states[0]), *leaves(states[1])]
    return [array.asnumpy() for array in arrays]


@pytest.mark.parametrize("name", ["adam_ext", "adamax_ext", "nadam_ext", "nag_ext"])
def test_the_way_that_the_message_names_goes_on_to_the_bit(name, tmp_path):
    # The product of momenta that the built-in counts is in the optimizer alone.
    own = {"numerics": "portable"} if name == "nadam_ext" else {}
    net = network()
    trainer = gluon.Trainer(net.collect_params(), name, {**OPTIONS, **own})
    train(net, trainer, range(4))
    file = tmp_path / "old.states"
    file.write_bytes(states_alone(trainer))
    net.save_parameters(str(tmp_path / "weights"))
    train(net, trainer, range(4, 8))

    other = network()
    other.load_parameters(str(tmp_path / "weights"))
    again = gluon.Trainer(other.collect_params(), name, {**OPTIONS, **own, "begin_num_update": 4})
    with pytest.raises(ValueError, match="old.states: holds only states, .*begin_num_update"):
        mxadamax.load_states(again, file)
    again.load_states(str(file))
    mxadamax.save_states(again, tmp_path / "both.states")

    last = gluon.Trainer(other.collect_params(), name, {**OPTIONS, **own})
    mxadamax.load_states(last, tmp_path / "both.states")
    train(other, last, range(4, 8))
    for found, expected in zip(arrays_of(other, last), arrays_of(net, trainer)):
        assert_same_bits(found, expected)


@pytest.mark.parametrize("content", [{}, {0: None}])
def test_convert_names_states_alone(content, tmp_path, capsys):
    old = tmp_path / "old.states"
    old.write_bytes(pickle.dumps(content))
    assert main(["convert", str(old), str(tmp_path / "new"), "--to", "adam_ext"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"mxadamax convert: {old}: holds only states, as written by Module")
    assert "begin_num_update" in error
    assert list(tmp_path.iterdir()) == [old]
