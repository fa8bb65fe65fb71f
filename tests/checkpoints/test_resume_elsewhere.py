# SPDX-License-Identifier: Apache-2.0
"""Trainings that go from device to device: counts of updates are those of the training.

MXNet counts updates for each device. Where a training leaves one, counts stay behind there.
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
from mxadamax._mxnet.compatibility import gluon_arrays
from mxadamax.checkpoints import convert

pytestmark = [
    # MXNet leaves files to be closed by chance.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS = 3
"""How long a training stays where it is."""


class Training:
    """A network on some devices, whose steps are the same on all of them and on the store.

    Parameters
    ----------
    devices : str
        Their numbers; with an "s" behind them, the key-value store makes the updates.
    """

    def __init__(self, devices, optimizer="adam_ext", **options):
        on_store = devices.endswith("s")
        self.devices = [mx.cpu(int(number)) for number in devices.rstrip("s")]
        if isinstance(optimizer, str):
            if optimizer.endswith("_ext") and on_store:
                options["aggregate_num"] = 1
            optimizer = mx.optimizer.create(optimizer, learning_rate=0.1, **options)
        layers = nn.Dense(4, in_units=3, activation="tanh"), nn.Dense(2, in_units=4)
        self.net = nn.HybridSequential()
        self.net.add(*layers)
        self.net.initialize(ctx=self.devices)
        self.parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
        rng = np.random.RandomState(0)
        for parameter in self.parameters:
            values = rng.standard_normal(parameter.shape).astype("float32")
            parameter.set_data(self.array(values, self.devices[0]))
        several = len(self.devices) > 1
        self.trainer = gluon.Trainer(
            self.net.collect_params(),
            optimizer,
            kvstore="device" if several else None,
            update_on_kvstore=on_store if several else None,
        )

    @staticmethod
    def array(values, device):
        return gluon_arrays.array(values, dtype=values.dtype, ctx=device)

    def go(self, *steps, bad=()):
        """Some steps, of which the bad ones have a gradient that is not finite."""
        for t in range(*steps):
            rng = np.random.RandomState(100 + t)
            batch = rng.standard_normal((5, 3)).astype("float32")
            batch[0, 0] = np.inf if t in bad else batch[0, 0]
            with autograd.record():
                losses = [(self.net(self.array(batch, d)) ** 2).sum() for d in self.devices]
            autograd.backward(losses)
            self.trainer.step(4 * len(self.devices))
        return self

    def resumed(
        self, devices, folder, save=mxadamax.save_states, load=mxadamax.load_states, **options
    ):
        """The training in another program, on other devices."""
        save(self.trainer, str(folder / "file"))
        other = Training(devices, **options).give_weights(self)
        load(other.trainer, str(folder / "file"))
        return other

    def give_weights(self, other):
        for mine, theirs in zip(self.parameters, other.parameters):
            mine.set_data(theirs.data(other.devices[0]))
        return self

    def weights(self):
        return [p.data(d).asnumpy() for d in self.devices for p in self.parameters]

    def counts(self):
        return dict(self.trainer.optimizer._index_update_count)


def assert_same(found, wanted):
    for position, weight in enumerate(found.weights()):
        assert_same_bits(weight, wanted.weights()[position % len(wanted.parameters)], str(position))


def all_counts(number):
    return dict.fromkeys(range(4), number)


def tables_in(file):
    _, optimizer = pickle.loads(file.read_bytes())
    return optimizer._all_index_update_counts


CHAINS = (
    "1 1 0",
    "0 1 0",
    "1 0 1",
    "2 1 2 0",
    "12s 12s 12",
    "12s 12s 0",
    "12 12s 12",
    "12 0 12s",
    "0 12 1 12s 2",
    "01 2 01",
)
"""On which devices a training is, one program after another."""


@pytest.mark.parametrize("save", [mxadamax.save_states, gluon.Trainer.save_states])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_training_that_moves_equals_one_that_stays(chain, save, tmp_path):
    first, *others = chain.split()
    options = {"ema_decay": 0.5, "wd": 0.1}
    alone = Training("0", **options).go(STEPS)
    training = Training(first, **options).go(STEPS)
    for begin, devices in enumerate(others, 1):
        training = training.resumed(devices, tmp_path, save, **options)
        assert training.counts() == all_counts(STEPS * begin)
        for t in range(STEPS * begin, STEPS * (begin + 1)):
            assert_same(training.go(t, t + 1), alone.go(t, t + 1))
        assert training.counts() == all_counts(STEPS * (begin + 1))
        assert training.trainer.optimizer.num_update == STEPS * (begin + 1)


@pytest.mark.parametrize("save", [mxadamax.save_states, gluon.Trainer.save_states])
@pytest.mark.parametrize("chain", [chain for chain in CHAINS if "s" not in chain])
def test_skipped_steps_are_those_of_the_training(chain, save, tmp_path):
    first, *others = chain.split()
    options = {"skip_nonfinite": True}
    bad = [1, *range(4, 100, 3), 8, 11]
    alone = Training("0", **options).go(STEPS, bad=bad)
    training = Training(first, **options).go(STEPS, bad=bad)
    for begin, devices in enumerate(others, 1):
        training = training.resumed(devices, tmp_path, save, **options)
        assert training.trainer.optimizer.skipped_steps == alone.trainer.optimizer.skipped_steps
        for t in range(STEPS * begin, STEPS * (begin + 1)):
            assert_same(training.go(t, t + 1, bad=bad), alone.go(t, t + 1, bad=bad))
    assert training.trainer.optimizer.skipped_steps == sum(
        t in bad for t in range(STEPS * len(chain.split()))
    )


@pytest.mark.parametrize("first", ["0", "1", "12", "12s"])
def test_saved_and_loaded_without_steps_in_between(first, tmp_path):
    """Whoever only moves files around loses nothing."""
    training = Training(first).go(STEPS)
    for devices in ("2", "0", "12s", "12", "1"):
        training = training.resumed(devices, tmp_path)
    assert training.counts() == all_counts(STEPS)
    assert_same(training.go(STEPS, STEPS + 1), Training("0").go(STEPS + 1))


@pytest.mark.parametrize("save", [mxadamax.save_states, gluon.Trainer.save_states])
@pytest.mark.parametrize("first", ["0", "1", "12", "12s"])
def test_the_plain_trainer_goes_on_with_a_file(first, save, tmp_path):
    """On device 0, of which MXNet's files always tell, and on those that wrote it."""
    alone = Training("0").go(STEPS + 2)
    for devices in ("0", first):
        training = Training(first).go(STEPS)
        training = training.resumed(devices, tmp_path, save, gluon.Trainer.load_states)
        assert_same(training.go(STEPS, STEPS + 2), alone)


def test_a_file_tells_of_devices_in_use_only(tmp_path):
    training = Training("2").go(STEPS).resumed("1", tmp_path).go(STEPS, 2 * STEPS)
    mxadamax.save_states(training.trainer, tmp_path / "file")
    assert tables_in(tmp_path / "file") == {0: all_counts(2 * STEPS), 1: all_counts(2 * STEPS)}


@pytest.mark.parametrize("save", [mxadamax.save_states, gluon.Trainer.save_states])
def test_an_optimizer_that_begins_again_elsewhere(save, tmp_path):
    """What another training with the same optimizer has left behind is not part of this one."""
    optimizer = mxadamax.Adam(0.1, skip_nonfinite=True)
    Training("0", optimizer).go(3 * STEPS, bad=[0])
    # A trainer takes what it finds for the scale of all gradients.
    optimizer.rescale_grad = 1.0
    training = Training("1", optimizer).go(STEPS, bad=[1])
    found = training.resumed("0", tmp_path, save, skip_nonfinite=True)
    assert found.counts() == all_counts(STEPS)
    assert found.trainer.optimizer.skipped_steps == 1
    assert_same(found.go(STEPS, STEPS + 2), training.go(STEPS, STEPS + 2))


# ---- files of 0.1.0, and of MXNet


def write(training, file, tables, in_use, step_trackers=None):
    """Write the file that another program would, with these counts for devices."""
    mxadamax.save_states(training.trainer, file)
    states, optimizer = pickle.loads(file.read_bytes())
    tables = {device: all_counts(number) for device, number in tables.items()}
    optimizer._all_index_update_counts = tables
    optimizer._index_update_count = tables[in_use]
    if step_trackers is not None:
        loaded = type(next(iter(optimizer._step_trackers.values())))
        optimizer._step_trackers = {
            device: loaded(all_counts(number), number) for device, number in step_trackers.items()
        }
    file.write_bytes(pickle.dumps((states, optimizer)))


@pytest.mark.parametrize("devices", ["0", "1", "12", "12s"])
@pytest.mark.parametrize(
    "tables, in_use",
    [
        # A second resume on device 1, on the store of devices 1 and 2, and on another device.
        ({1: 6, 0: 3}, 1),
        ({1: 3, 2: 3, 0: 6}, 0),
        ({2: 3, 1: 6, 0: 3}, 1),
        # MXNet's own files.
        ({0: 0, 1: 6}, 1),
        ({0: 6, 1: 0}, 0),
        # Converted, which lost track of the device in use.
        ({1: 6, 0: 3}, 0),
    ],
)
def test_counts_that_stayed_behind(tables, in_use, devices, tmp_path):
    first = Training("0").go(6)
    write(first, tmp_path / "file", tables, in_use)
    second = Training(devices).give_weights(first)
    mxadamax.load_states(second.trainer, tmp_path / "file")
    assert second.counts() == all_counts(6)
    assert_same(second.go(6, 8), first.go(6, 8))


@pytest.mark.parametrize("step_trackers", [{1: 2, 0: 1}, {0: 1, 1: 2}, {1: 2}, {2: 2, 1: 1}])
def test_skipped_steps_that_stayed_behind(step_trackers, tmp_path):
    first = Training("0", skip_nonfinite=True).go(6, bad=[1, 4])
    write(first, tmp_path / "file", {1: 6, 0: 3}, 1, step_trackers)
    second = Training("0", skip_nonfinite=True).give_weights(first)
    mxadamax.load_states(second.trainer, tmp_path / "file")
    assert second.trainer.optimizer.skipped_steps == 2
    assert_same(second.go(6, 8), first.go(6, 8))


def test_counts_that_are_spread_over_devices(tmp_path):
    """A key-value store on GPUs updates each parameter on one of them."""
    first = Training("0").go(6)
    mxadamax.save_states(first.trainer, tmp_path / "file")
    states, optimizer = pickle.loads((tmp_path / "file").read_bytes())
    tables = {0: {0: 6, 2: 6}, 1: {1: 6, 3: 6}}
    optimizer._all_index_update_counts = tables
    optimizer._index_update_count = tables[1]
    (tmp_path / "file").write_bytes(pickle.dumps((states, optimizer)))
    for devices in ("0", "1", "12s"):
        second = Training(devices).give_weights(first)
        mxadamax.load_states(second.trainer, tmp_path / "file")
        assert second.counts() == all_counts(6)


@pytest.mark.parametrize("devices", ["0", "1"])
def test_conversion_goes_on_with_the_counts_of_the_training(devices, tmp_path):
    """From file to file, there and back, whatever the device that wrote it."""
    first = Training("0").go(6)
    write(first, tmp_path / "ours", {1: 6, 0: 3}, 1)
    convert(tmp_path / "ours", tmp_path / "built_in", "adam")
    second = Training(devices, "adam").give_weights(first)
    second.trainer.load_states(str(tmp_path / "built_in"))
    second.go(6, 7)
    assert second.counts() == all_counts(7)
    convert(tmp_path / "built_in", tmp_path / "back", "adam_ext")
    third = Training(devices).give_weights(first)
    third.trainer.load_states(str(tmp_path / "back"))
    third.go(6, 7)
    assert third.counts() == all_counts(7)
    assert_same(third, first.go(6, 7))
    for found, wanted in zip(second.weights(), first.weights()):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("devices", ["0", "1"])
def test_files_of_the_built_in_from_elsewhere(devices, tmp_path):
    first = Training("1", "adam").go(STEPS)
    first.trainer.save_states(str(tmp_path / "file"))
    second = Training(devices).give_weights(first)
    mxadamax.load_states(second.trainer, tmp_path / "file")
    assert second.counts() == all_counts(STEPS)
    second.go(STEPS, STEPS + 1)
    for found, wanted in zip(second.weights(), first.go(STEPS, STEPS + 1).weights()):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
