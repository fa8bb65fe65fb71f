# SPDX-License-Identifier: Apache-2.0
"""Layers that share parameters: what belongs to one of them never reaches another.

MXNet 2 numbers such parameters in two ways. The updater of a device counts a shared one once, that
of a key-value store as often as layers use it.
"""

from __future__ import annotations

import pickle

import mxnet as mx
import numpy as np
import pytest
from common import assert_same_bits
from mxnet import autograd, gluon
from mxnet.gluon import nn

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1, gluon_arrays
from mxadamax.checkpoints import convert

pytestmark = [
    # MXNet initializes what is shared twice, and leaves files to be closed by chance.
    pytest.mark.filterwarnings("ignore:.*already initialized:UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WAYS = ("params",) if IS_MXNET_1 else ("weight", "share_parameters")
"""How two layers are made to share."""

PLACES = ("device", "store", "devices")
"""Where updates are made: on one device, on the key-value store of two, on each of two."""

CUT = 3
"""After how many steps trainings are interrupted."""


def layers_that_share(way):
    """Four dense layers of the same shape, of which the second shares with the first."""

    def dense(**options):
        return nn.Dense(4, in_units=4, activation="tanh", **options)

    a, c, d = dense(), dense(), dense()
    b = dense(params=a.params) if way == "params" else dense()
    if way == "weight":
        b.weight = a.weight
    elif way == "share_parameters":
        b.share_parameters(a.collect_params())
    return a, b, c, d


class Training:
    """A network of layers that share, and its trainer; all places give the same gradients."""

    def __init__(self, place, optimizer="adam_ext", way=WAYS[0], multipliers=True, **options):
        self.place = place
        self.devices = [mx.cpu(0)] if place == "device" else [mx.cpu(0), mx.cpu(1)]
        self.layers = layers_that_share(way)
        self.net = nn.HybridSequential()
        for layer in self.layers:
            self.net.add(layer)
        self.net.initialize(ctx=self.devices)
        rng = np.random.RandomState(0)
        for layer in self.layers:
            for parameter in (layer.weight, layer.bias):
                values = rng.standard_normal(parameter.shape).astype("float32")
                parameter.set_data(self.array(values, self.devices[0]))
        if multipliers:
            c, d = self.layers[2:]
            c.weight.wd_mult, c.bias.lr_mult = 0.0, 0.5
            d.weight.lr_mult, d.bias.lr_mult = 0.25, 0.0
        self.begin(optimizer, **options)

    def begin(self, optimizer, **options):
        on_store = self.place == "store"
        options = {"learning_rate": 0.01, "wd": 0.1, **options}
        if optimizer.endswith("_ext") and on_store:
            options["aggregate_num"] = 1
        # Two ways in which programs give parameters to a trainer.
        self.trainer = gluon.Trainer(
            self.net.collect_params(),
            optimizer,
            options,
            kvstore=None if self.place == "device" else "device",
            update_on_kvstore=None if self.place == "device" else on_store,
        )
        return self

    @staticmethod
    def array(values, device):
        return gluon_arrays.array(values, dtype=values.dtype, ctx=device)

    def go(self, *steps):
        for t in range(*steps):
            rng = np.random.RandomState(100 + t)
            batch = rng.standard_normal((3, 4)).astype("float32")
            with autograd.record():
                losses = [(self.net(self.array(batch, d)) ** 2).sum() for d in self.devices]
            autograd.backward(losses)
            # The sum over devices, divided by their number, has the same bits.
            self.trainer.step(2 * len(self.devices))
        return self

    def weights(self):
        return [
            parameter.data(device).asnumpy()
            for device in self.devices
            for layer in self.layers
            for parameter in (layer.weight, layer.bias)
        ]

    def averages(self):
        with mxadamax.averaged_weights(self.trainer):
            return self.weights()

    def give_weights(self, other):
        for mine, theirs in zip(self.layers, other.layers):
            mine.weight.set_data(theirs.weight.data(other.devices[0]))
            mine.bias.set_data(theirs.bias.data(other.devices[0]))
        return self


def assert_same_weights(found, wanted):
    names = [f"{layer}.{kind}" for layer in "abcd" for kind in ("weight", "bias")]
    for position, weight in enumerate(found):
        name = names[position % len(names)]
        assert_same_bits(weight, wanted[position % len(names)], name)


def keys_of_states(training):
    if training.place == "store":
        return sorted(training.trainer._kvstore._updater.states)
    return sorted(training.trainer._updaters[0].states)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["store", "devices"])
def test_every_step_is_that_of_one_device(place, way):
    alone = Training("device", way=way, ema_decay=0.5)
    training = Training(place, way=way, ema_decay=0.5)
    for t in range(4):
        assert_same_weights(training.go(t, t + 1).weights(), alone.go(t, t + 1).weights())
        assert_same_weights(training.averages(), alone.averages())
    assert not np.array_equal(alone.averages()[4], alone.averages()[6])


@pytest.mark.skipif(IS_MXNET_1, reason="MXNet 1 numbers them in one way")
def test_there_are_two_numberings():
    """What all these tests are about; without it they would test nothing."""
    assert keys_of_states(Training("device").go(1)) == [0, 1, 2, 3, 4, 5, 6]
    assert keys_of_states(Training("store").go(1)) != [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("place", ["device", "store"])
def test_multipliers_can_change_at_any_time(place):
    training = Training(place, multipliers=False).go(2)
    before = training.weights()
    for layer, multiplier in zip(training.layers[2:], (0.0, 1.0)):
        layer.weight.lr_mult = layer.bias.lr_mult = multiplier
    after = training.go(2, 3).weights()
    for position in (4, 5):
        assert_same_bits(after[position], before[position], "c")
    for position in (6, 7):
        assert not np.array_equal(after[position], before[position])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plain", [False, True], ids=["save_states", "Trainer.save_states"])
@pytest.mark.parametrize("reading", PLACES)
@pytest.mark.parametrize("writing", PLACES)
def test_training_goes_on_anywhere(writing, reading, plain, way, tmp_path):
    options = {"way": way, "ema_decay": 0.5}
    alone = Training("device", **options).go(CUT)
    first = Training(writing, **options).go(CUT)
    save = gluon.Trainer.save_states if plain else mxadamax.save_states
    save(first.trainer, str(tmp_path / "file"))
    second = Training(reading, **options).give_weights(first)
    mxadamax.load_states(second.trainer, tmp_path / "file")
    assert_same_weights(second.averages(), alone.averages())
    for t in range(CUT, CUT + 3):
        assert_same_weights(second.go(t, t + 1).weights(), alone.go(t, t + 1).weights())
    assert_same_weights(second.averages(), alone.averages())


@pytest.mark.parametrize("load", [mxadamax.load_states, gluon.Trainer.load_states])
@pytest.mark.parametrize("place", PLACES)
def test_going_back_in_the_same_program(place, load, tmp_path):
    training = Training(place).go(CUT)
    mxadamax.save_states(training.trainer, tmp_path / "file")
    training.net.save_parameters(str(tmp_path / "params"))
    after = training.go(CUT, 2 * CUT).weights()
    training.net.load_parameters(str(tmp_path / "params"), ctx=training.devices)
    load(training.trainer, str(tmp_path / "file"))
    assert_same_weights(training.go(CUT, 2 * CUT).weights(), after)


def without_keys(file):
    """Make a file what 0.1.0 wrote."""
    states, optimizer = pickle.loads(file.read_bytes())
    vars(optimizer).pop("_parameter_keys", None)
    file.write_bytes(pickle.dumps((states, optimizer)))


@pytest.mark.parametrize("reading", PLACES)
@pytest.mark.parametrize("writing", PLACES)
def test_files_of_version_0_1_0(writing, reading, tmp_path):
    first = Training(writing).go(CUT)
    mxadamax.save_states(first.trainer, tmp_path / "file")
    without_keys(tmp_path / "file")
    second = Training(reading).give_weights(first)
    mxadamax.load_states(second.trainer, tmp_path / "file")
    alone = Training("device").go(CUT + 2)
    assert_same_weights(second.go(CUT, CUT + 2).weights(), alone.weights())


@pytest.mark.parametrize("reading", PLACES)
@pytest.mark.parametrize("writing", PLACES)
def test_files_of_the_built_in(writing, reading, tmp_path):
    # Without multipliers: on a key-value store, the built-in gives them to others.
    first = Training(writing, "adam", multipliers=False, wd=0.0).go(CUT)
    first.trainer.save_states(str(tmp_path / "file"))
    second = Training(reading, multipliers=False, wd=0.0).give_weights(first)
    mxadamax.load_states(second.trainer, tmp_path / "file")
    second.go(CUT, CUT + 3)
    alone = Training("device", multipliers=False, wd=0.0).go(CUT + 3)
    for found, wanted in zip(second.weights(), alone.weights()):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_back_to_the_built_in(place, tmp_path):
    first = Training(place, multipliers=False, wd=0.0).go(CUT)
    mxadamax.save_states(first.trainer, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "built_in", "adam")
    second = Training(place, "adam", multipliers=False, wd=0.0).give_weights(first)
    second.trainer.load_states(str(tmp_path / "built_in"))
    second.go(CUT, CUT + 3)
    alone = Training("device", multipliers=False, wd=0.0).go(CUT + 3)
    for found, wanted in zip(second.weights(), alone.weights()):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def freeze(training, letters):
    for letter, layer in zip("abcd", training.layers):
        if letter != "b":
            layer.weight.grad_req = "null" if letter in letters else "write"
    return training


def frozen(place, letters, optimizer="adam_ext"):
    """A training of weights, some of which are frozen, without biases, on the store or not."""
    training = Training(place, optimizer, multipliers=False)
    for layer in training.layers:
        layer.bias.grad_req = "null"
    freeze(training, letters)
    parameters = [layer.weight for layer in training.layers]
    if IS_MXNET_1:
        parameters.pop(1)
    training.net.collect_params = lambda: parameters
    return training.begin(optimizer)


@pytest.mark.parametrize("optimizer", ["adam_ext", "adam"])
@pytest.mark.parametrize("reading", ["device", "store"])
@pytest.mark.parametrize("writing", ["device", "store"])
@pytest.mark.parametrize("letters", ["", "a", "c", "d", "ac", "cd"])
def test_with_frozen_layers(letters, writing, reading, optimizer, tmp_path):
    first = frozen(writing, letters, optimizer).go(CUT)
    first.trainer.save_states(str(tmp_path / "file"))
    second = frozen(reading, letters).give_weights(first)
    mxadamax.load_states(second.trainer, tmp_path / "file")
    second.go(CUT, CUT + 2)
    alone = frozen("device", letters).go(CUT + 2)
    for found, wanted in zip(second.weights(), alone.weights()):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reading", ["device", "store"])
@pytest.mark.parametrize("writing", ["device", "store"])
def test_other_layers_are_frozen_now(writing, reading, tmp_path):
    """Their states are no one else's."""
    first = frozen(writing, "d").go(CUT)
    first.trainer.save_states(str(tmp_path / "file"))
    second = frozen(reading, "c").give_weights(first)
    with pytest.raises(
        ValueError, match="holds the states of 2 parameters and none of parameter 2"
    ):
        mxadamax.load_states(second.trainer, tmp_path / "file")


@pytest.mark.skipif(IS_MXNET_1, reason="MXNet 1 numbers them in one way")
@pytest.mark.parametrize("reading", ["device", "store"])
def test_states_that_can_be_of_either_are_refused(reading, tmp_path):
    first = frozen("store", "d", "adam").go(CUT)
    first.trainer.save_states(str(tmp_path / "file"))
    second = frozen(reading, "cd").give_weights(first)
    before = second.weights()
    with pytest.raises(
        ValueError, match=r"states with the indices \[0, 2\], which can be those of"
    ):
        mxadamax.load_states(second.trainer, tmp_path / "file")
    assert_same_weights(second.weights(), before)
    # As the message says.
    mxadamax.load_states(freeze(second, "d").trainer, tmp_path / "file")
    assert second.trainer.optimizer.num_update == CUT


@pytest.mark.parametrize("place", ["device", "store"])
def test_files_of_other_models(place, tmp_path):
    first = Training(place).go(1)
    mxadamax.save_states(first.trainer, tmp_path / "file")
    second = Training(place)
    layers = [layer.weight for layer in second.layers if layer is not second.layers[1]]
    second.net.collect_params = lambda: layers
    second.begin("adam_ext")
    with pytest.raises(ValueError, match="the trainer has 3 parameters"):
        mxadamax.load_states(second.trainer, tmp_path / "file")


def test_messages_name_the_parameter():
    training = Training("store").go(1)
    weight = training.layers[3].weight
    if not IS_MXNET_1:
        # All weights of dense layers have the same name there.
        weight._name = "weight of d"
    states = training.trainer._kvstore._updater.states
    key = training.trainer._param2idx[weight.name if IS_MXNET_1 else weight._uuid]
    states[key] = tuple(mx.nd.zeros((5,)) for _ in states[key])
    with pytest.raises(mx.MXNetError, match=rf"parameter {key} \('{weight.name}'\)"):
        training.go(1, 2).weights()
