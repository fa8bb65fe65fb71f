# SPDX-License-Identifier: Apache-2.0
"""Loading states: what comes from the file, what stays the program's, and what has to agree."""

import os

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

import mxadamax

pytestmark = pytest.mark.quick

ONE = (mx.cpu(0),)
TWO = (mx.cpu(0), mx.cpu(1))


class Training:
    """Parameters of ones on some devices, and gradients that depend on the step only."""

    def __init__(self, optimizer, devices=ONE, **options):
        self.devices = list(devices)
        self.parameters = []
        for i in range(2):
            parameter = gluon.Parameter(f"w{i}", shape=(3,))
            parameter.initialize(mx.init.One(), ctx=self.devices)
            self.parameters.append(parameter)
        self.trainer = gluon.Trainer(self.parameters, optimizer, **options)

    def step(self, *steps, on=None, batch_size=1):
        for t in steps:
            values = np.random.RandomState(t).standard_normal((len(self.parameters), 3))
            losses = []
            with autograd.record():
                for device in self.devices if on is None else on:
                    for value, parameter in zip(values, self.parameters):
                        data = parameter.data(device)
                        factor = mx.nd.array(value, ctx=device)
                        if not isinstance(data, mx.nd.NDArray):
                            factor = factor.as_np_ndarray()
                        losses.append((factor * data).sum())
            autograd.backward(losses)
            self.trainer.step(batch_size, ignore_stale_grad=on is not None)
        return self

    def load(self, other, file):
        """Go on where another stopped, whose first device counts."""
        mxadamax.save_states(other.trainer, file)
        for mine, theirs in zip(self.parameters, other.parameters):
            mine.set_data(theirs.data(other.devices[0]))
        mxadamax.load_states(self.trainer, file)
        return self

    def weights(self):
        return [p.data(d).asnumpy().tolist() for d in self.devices for p in self.parameters]


# The formula of a step has to agree.


@pytest.mark.parametrize(
    "name, option, value",
    [
        ("adamax_ext", "maximize", True),
        ("adamax_ext", "decoupled_wd", True),
        ("adamax_ext", "lazy_update", True),
        ("sgd_ext", "lazy_update", True),
        ("adamax_ext", "clip_global_norm", 1.0),
        ("adamax_ext", "skip_nonfinite", True),
        ("adam_ext", "correct_bias", False),
        ("adamw_ext", "correct_bias", False),
        ("adabelief_ext", "correct_bias", False),
        ("nadam_ext", "schedule_per_parameter", False),
        ("rmsprop_ext", "clip_weights", 2.0),
    ],
)
@pytest.mark.parametrize("in_file", [True, False])
def test_options_that_make_another_formula_must_agree(name, option, value, in_file, tmp_path):
    with_option = Training(mx.optimizer.create(name, **{option: value})).step(0)
    # MXNet 1's SGD updates lazily by default.
    defaults = {"lazy_update": False} if option == "lazy_update" else {}
    without = Training(mx.optimizer.create(name, **defaults)).step(0)
    off = getattr(without.trainer.optimizer, option)
    written, loading = (with_option, without) if in_file else (without, with_option)
    found, wanted = (value, off) if in_file else (off, value)
    before = loading.weights()
    mxadamax.save_states(written.trainer, tmp_path / "states")
    message = f"written with {option}={found!r}, but the trainer's {name} has {option}={wanted!r}"
    with pytest.raises(ValueError, match=f"{message}; make the trainer with what the file has, "):
        mxadamax.load_states(loading.trainer, tmp_path / "states")
    assert loading.weights() == before
    assert getattr(loading.trainer.optimizer, option) == wanted


@pytest.mark.parametrize(
    "name, option, values",
    [
        ("rmsprop_ext", "clip_weights", (2.0, 3.0)),
        ("adamax_ext", "clip_global_norm", (1.0, 2.0)),
        ("adamax_ext", "ema_decay", (0.5, 0.75)),
        ("sgd_ext", "momentum", (0.5, 0.75)),
    ],
)
def test_numbers_of_options_come_from_the_file(name, option, values, tmp_path):
    first, second = (Training(mx.optimizer.create(name, **{option: v})).step(0) for v in values)
    second.load(first, tmp_path / "states")
    assert getattr(second.trainer.optimizer, option) == values[0]


# How the program calls its optimizer stays.


@pytest.mark.parametrize(
    "option, values", [("aggregate_num", (1, 2)), ("use_fused_step", (False, True))]
)
@pytest.mark.parametrize("swapped", [True, False])
def test_how_steps_are_made_stays_the_programs(option, values, swapped, tmp_path):
    theirs, mine = values[::-1] if swapped else values
    first = Training(mxadamax.Adamax(**{option: theirs})).step(0, 1)
    second = Training(mxadamax.Adamax(**{option: mine})).step(0)
    second.load(first, tmp_path / "states")
    assert getattr(second.trainer.optimizer, option) == mine
    assert second.step(2, 3).weights() == first.step(2, 3).weights()


def test_the_size_of_batches_is_the_programs(tmp_path):
    """Also where a step takes `rescale_grad` as it is, because its loss has a mean already."""
    first = Training(mxadamax.SGD(learning_rate=0.5, rescale_grad=0.125)).step(0, batch_size=64)
    second = Training(mxadamax.SGD(learning_rate=0.5, rescale_grad=0.5))
    second.load(first, tmp_path / "states")
    assert second.trainer.optimizer.rescale_grad == 0.5
    expected = Training(mxadamax.SGD(learning_rate=0.5, rescale_grad=0.5))
    for mine, theirs in zip(expected.parameters, second.parameters):
        mine.set_data(theirs.data())
    assert second.step(1, batch_size=4).weights() == expected.step(1, batch_size=4).weights()


@pytest.mark.parametrize("devices", [ONE, TWO], ids=len)
@pytest.mark.parametrize("store", ["local", "device"])
def test_states_come_to_where_the_weights_are(devices, store, tmp_path):
    """A key-value store has its own copy of the weights, on a device of its own."""
    first = Training(mxadamax.Adamax(), devices).step(0)
    second = Training(
        mxadamax.Adamax(aggregate_num=1),
        TWO,
        kvstore=store,
        update_on_kvstore=True,
    )
    second.load(first, tmp_path / "states")
    seen = []
    updater = second.trainer._kvstore._updater
    original = updater.optimizer.update_multi_precision

    def update(indices, weights, grads, states):
        weight, state = (
            (weights[0], states[0]) if isinstance(weights, (list, tuple)) else (weights, states)
        )
        seen.append((weight.context, *(array.context for array in state)))
        original(indices, weights, grads, states)

    updater.optimizer.update_multi_precision = update
    try:
        second.step(1, batch_size=2)
        mx.nd.waitall()
    finally:
        del updater.optimizer.update_multi_precision
    assert len(seen) == 2
    for contexts in seen:
        assert len(set(contexts)) == 1, contexts


# Whole or not at all.


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_interrupted_write_leaves_only_the_old_file(
    interruption, function, tmp_path, monkeypatch
):
    training = Training(mxadamax.Adamax()).step(0)
    mxadamax.save_states(training.trainer, tmp_path / "states")
    before = (tmp_path / "states").read_bytes()
    training.step(1)

    def interrupt(*_):
        raise interruption

    monkeypatch.setattr(os, function, interrupt)
    with pytest.raises(interruption):
        mxadamax.save_states(training.trainer, tmp_path / "states")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["states"]
    assert (tmp_path / "states").read_bytes() == before
    mxadamax.save_states(training.trainer, tmp_path / "states")
    assert os.listdir(tmp_path) == ["states"]
    assert (tmp_path / "states").read_bytes() != before
