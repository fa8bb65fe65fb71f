# SPDX-License-Identifier: Apache-2.0
"""Saving, loading and converting states: the same bits afterwards, or a refusal that changes nothing."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import stat
import subprocess
import sys
import types
import warnings

import mxnet as mx
import numpy as np
import pytest
from common import assert_same_bits, leaves
from family import FAMILY, WITH_BUILT_IN
from mxnet import autograd, gluon

import mxadamax
from mxadamax.__main__ import main
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.checkpoints import load_states, save_states
from mxadamax.optimizers.arithmetic import SERIES

SHAPES = ((4, 3), (7,), (2, 2, 2))
DEVICES = (mx.cpu(0), mx.cpu(1), mx.cpu(2))
OTHERS_IN_1 = ("rmsprop", "adagrad", "adadelta", "ftrl")
"""Built-ins of MXNet 1 with another formula."""

TAKEN = [
    member
    for member in WITH_BUILT_IN
    if member.built_in in mx.optimizer.Optimizer.opt_registry
    and ("float32", SERIES) not in member.exceptions
]


def array(values, device):
    make = mx.nd.array if IS_MXNET_1 else mx.np.array
    return make(values, dtype=values.dtype, ctx=device)


class Training:
    """Parameters with a trainer and gradients that depend on the step only."""

    def __init__(
        self,
        optimizer,
        options=None,
        shapes=SHAPES,
        dtype="float32",
        devices=1,
        frozen=(),
        **trainer,
    ):
        self.devices = DEVICES[:devices]
        self.dtype = dtype
        self.parameters = []
        rng = np.random.RandomState(0)
        for i, shape in enumerate(shapes):
            parameter = gluon.Parameter(f"w{i}", shape=shape, dtype=dtype)
            parameter.initialize(mx.init.Zero(), ctx=list(self.devices))
            parameter.set_data(array(rng.standard_normal(shape).astype(dtype), self.devices[0]))
            parameter.grad_req = "null" if i in frozen else "write"
            self.parameters.append(parameter)
        self.parameters[0].lr_mult = 0.5
        self.parameters[1].wd_mult = 2.0
        if isinstance(optimizer, str):
            optimizer = mx.optimizer.create(optimizer, **(options or {}))
        self.trainer = gluon.Trainer(self.parameters, optimizer, **trainer)

    def step(self, t, without=()):
        rng = np.random.RandomState(100 + t)
        losses = []
        with autograd.record():
            for device in self.devices:
                for i, parameter in enumerate(self.parameters):
                    grad = rng.standard_normal(parameter.shape).astype(self.dtype)
                    if parameter.grad_req != "null" and i not in without:
                        losses.append((array(grad, device) * parameter.data(device)).sum())
        autograd.backward(losses)
        self.trainer.step(2, ignore_stale_grad=bool(without))
        return self

    def go(self, *steps, **options):
        for t in range(*steps):
            self.step(t, **options)
        return self

    def give_weights(self, other):
        for mine, theirs in zip(self.parameters, other.parameters):
            mine.set_data(theirs.data(other.devices[0]))
        return self

    def updaters(self):
        if self.trainer._update_on_kvstore:
            return [self.trainer._kvstore._updater]
        return self.trainer._updaters

    def weights(self):
        return [p.data(d).asnumpy() for d in self.devices for p in self.parameters]

    def states(self):
        return [
            leaf.asnumpy()
            for u in self.updaters()
            for i in sorted(u.states)
            for leaf in leaves(u.states[i])
        ]

    def everything(self):
        """All that a load may change, as bytes, with the identity of the optimizer."""
        optimizer = self.trainer.optimizer
        entries = {k: v for k, v in optimizer.__getstate__().items() if k != "lr_scheduler"}
        arrays = [a.tobytes() for a in (*self.weights(), *self.states())]
        return arrays, id(optimizer), repr(sorted(entries.items(), key=lambda e: e[0]))


def assert_same(actual, expected):
    for kind in ("weights", "states"):
        found, wanted = getattr(actual, kind)(), getattr(expected, kind)()
        assert len(found) == len(wanted), kind
        for k, (a, b) in enumerate(zip(found, wanted)):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), f"{kind}, array {k}"


def scheduled(**options):
    scheduler = mx.lr_scheduler.FactorScheduler(step=3, factor=0.7, base_lr=0.05)
    return {
        "learning_rate": 0.05,
        "lr_scheduler": scheduler,
        "wd": 0.01,
        "clip_gradient": 0.6,
        **options,
    }


def resumed(expected, actual, tmp_path, save=save_states, load=load_states, steps=(5, 10)):
    """Stop a training after some steps, go on with another: both continue to the same bits."""
    expected.go(steps[0])
    save(expected.trainer, str(tmp_path / "states"))
    actual.give_weights(expected)
    load(actual.trainer, str(tmp_path / "states"))
    assert actual.trainer.optimizer.num_update == expected.trainer.optimizer.num_update
    assert actual.trainer.learning_rate == expected.trainer.learning_rate
    for training in (expected, actual):
        training.go(*steps)
    assert_same(actual, expected)


# From a built-in, and back.


@pytest.mark.parametrize(
    "member, dtype",
    # Of some, states are always float32.
    [
        (m, d)
        for m in TAKEN
        for d in ("float32", "float64")
        if d == "float32" or (m.built_in not in OTHERS_IN_1 and (d, SERIES) not in m.exceptions)
    ],
    ids=str,
)
def test_goes_on_where_the_built_in_stopped(member, dtype, tmp_path):
    # Numbers of the file are not those of the trainer.
    theirs = Training(
        member.create_built_in(**scheduled(), begin_num_update=2),
        dtype=dtype,
    )
    options = {k: v for k, v in member.options.items() if k in ("centered", "momentum")}
    ours = Training(mx.optimizer.create(member.name, **options), dtype=dtype)
    optimizer = ours.trainer.optimizer
    resumed(theirs, ours, tmp_path, save=gluon.Trainer.save_states)
    assert ours.trainer.optimizer is optimizer
    assert type(optimizer) is mx.optimizer.Optimizer.opt_registry[member.name]
    for name in ("wd", "clip_gradient", "begin_num_update", *optimizer.ranges):
        if hasattr(theirs.trainer.optimizer, name):
            assert getattr(optimizer, name) == getattr(theirs.trainer.optimizer, name)


@pytest.mark.parametrize("member", TAKEN, ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_there_and_back(member, fused, tmp_path, capsys):
    """Files of a built-in that have been ours are what they were, also if ours has gone on."""
    if IS_MXNET_1 and not fused:
        pytest.skip("MXNet 1 knows no such option")
    calls = {} if IS_MXNET_1 else {"use_fused_step": fused}
    if fused and member.built_in in ("adamax", "nadam", "adadelta", "dcasgd"):
        calls = {}
    stayed = Training(member.create_built_in(**scheduled(**calls))).go(4)
    old, ours, back = (str(tmp_path / name) for name in ("old", "ours", "back"))
    stayed.trainer.save_states(old)
    assert main(["convert", old, ours, "--to", member.name]) == 0
    assert f"{member.built_in} -> {member.name}" in capsys.readouterr().out
    assert main(["convert", ours, back, "--to", member.built_in]) == 0

    returned = Training(member.built_in).give_weights(stayed)
    returned.trainer.load_states(back)
    found, wanted = returned.trainer.optimizer, stayed.trainer.optimizer
    assert type(found) is type(wanted)
    assert {k: v for k, v in vars(found).items() if k not in ("lr_scheduler", "param_dict")} == {
        k: v for k, v in vars(wanted).items() if k not in ("lr_scheduler", "param_dict")
    }
    for training in (stayed, returned):
        training.go(4, 8)
    assert_same(returned, stayed)


@pytest.mark.parametrize("member", TAKEN, ids=str)
def test_training_with_ours_and_then_back(member, tmp_path):
    stayed = Training(member.create_built_in(**scheduled())).go(4)
    left = Training(member.name, {k: v for k, v in member.options.items() if k != "wd"})
    left.give_weights(stayed)
    save_states(stayed.trainer, tmp_path / "file")
    load_states(left.trainer, tmp_path / "file")
    left.go(4, 8)
    save_states(left.trainer, tmp_path / "file")
    assert (
        main(["convert", str(tmp_path / "file"), str(tmp_path / "file"), "--to", member.built_in])
        == 0
    )
    returned = Training(member.built_in).give_weights(left)
    returned.trainer.load_states(str(tmp_path / "file"))
    returned.go(8, 12)
    assert_same(returned, stayed.go(4, 12))


def test_a_converted_file_is_loaded_by_the_plain_trainer(tmp_path):
    theirs = Training("adam", scheduled()).go(4)
    theirs.trainer.save_states(str(tmp_path / "theirs"))
    command = [sys.executable, "-m", "mxadamax", "convert", "theirs", "ours", "--to", "adam_ext"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    by_load, by_file = (Training("adam_ext").give_weights(theirs) for _ in range(2))
    load_states(by_load.trainer, tmp_path / "theirs")
    by_file.trainer.load_states(str(tmp_path / "ours"))
    assert_same(by_file.go(4, 8), by_load.go(4, 8))


@pytest.mark.skipif(IS_MXNET_1, reason="what MXNet 1 lacks is tested below")
@pytest.mark.parametrize(
    "name, options, to, message",
    [
        (
            "adam_ext",
            {"amsgrad": True},
            "adam",
            "amsgrad=True, which MXNet's adam does not have; its third",
        ),
        ("amsgrad_ext", {}, "adam", "holds states of amsgrad_ext, which nothing here can continue"),
        ("amsgrad_ext", {}, "amsgrad", "MXNet [\\w.]+ has no optimizer 'amsgrad'"),
        ("adamax_ext", {"ema_decay": 0.9}, "adamax", "ema_decay=0.9, .*--drop-averages leaves"),
        (
            "adamax_ext",
            {"state_dtype": {".*": "int8"}},
            "adamax",
            "state_dtype={.*'int8'}, .*low-precision",
        ),
        (
            "adamax_ext",
            {"maximize": True},
            "adamax",
            "maximize=True, .* set trainer.optimizer.maximize = False",
        ),
        ("adamax_ext", {"decoupled_wd": True}, "adamax", "decoupled_wd=True"),
        ("adamax_ext", {"lazy_update": True}, "adamax", "lazy_update=True"),
        ("adamax_ext", {"clip_global_norm": 1.0}, "adamax", "clip_global_norm=1.0"),
        ("adamax_ext", {"skip_nonfinite": True}, "adamax", "skip_nonfinite=True"),
        (
            "adam_ext",
            {"correct_bias": False},
            "adam",
            "was written with correct_bias=False, which MXNet's adam does not have; if the "
            "training can do without, set trainer.optimizer.correct_bias = True and save again$",
        ),
        (
            "adam_ext",
            {"clip_gradient": 0, "numerics": "portable"},
            "adam",
            "clip_gradient=0, which MXNet's adam takes for None; if that is what you want, set "
            "trainer.optimizer.clip_gradient = None and save again$",
        ),
        (
            "nadam_ext",
            {"numerics": "portable"},
            "nadam",
            "schedule_per_parameter=False, .*another way",
        ),
        (
            "adamax_ext",
            {},
            "sgd",
            "holds states of adamax_ext, which only adamax can continue, not 'sgd'",
        ),
        ("adamax_ext", {}, "adamax_ext", "which only adamax can continue"),
        ("adam", {}, "sgd_ext", "holds states of MXNet's adam, which only adam_ext can continue"),
        ("test", {}, "test_ext", "holds states of MXNet's test, which nothing here can continue"),
        ("adamax_ext", {}, "nonsense", "not 'nonsense'"),
    ],
)
def test_what_cannot_go_back(name, options, to, message, tmp_path, capsys):
    training = Training(name, options).go(2)
    save_states(training.trainer, tmp_path / "old")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", to]) == 1
    text = capsys.readouterr().err
    assert re.search(message, text), text
    assert text.count("\n") == 1 and text.startswith("mxadamax convert: ")
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("options", [{}, {"multi_precision": True}])
def test_back_without_averages(options, tmp_path):
    if IS_MXNET_1:
        options = {**options, "epsilon": 0.0}
    dtype = "float16" if "multi_precision" in options else "float32"
    plain = Training("adamax_ext", options, dtype=dtype).go(3)
    averaged = Training("adamax_ext", {**options, "ema_decay": 0.9}, dtype=dtype).go(3)
    save_states(averaged.trainer, tmp_path / "file")
    command = ["convert", str(tmp_path / "file"), str(tmp_path / "file"), "--to", "adamax"]
    assert main([*command, "--drop-averages"]) == 0
    returned = Training("adamax", dtype=dtype).give_weights(averaged)
    returned.trainer.load_states(str(tmp_path / "file"))
    assert_same(returned, plain)


def test_clip_gradient_of_zero_means_none_to_fused_operators(tmp_path):
    theirs = Training("sgd", {"clip_gradient": 0, "learning_rate": 0.1}).go(2)
    ours = Training("sgd_ext").give_weights(theirs)
    theirs.trainer.save_states(str(tmp_path / "file"))
    load_states(ours.trainer, tmp_path / "file")
    assert ours.trainer.optimizer.clip_gradient is None
    if not IS_MXNET_1:
        step = Training("sgd", {"clip_gradient": 0, "use_fused_step": False}).go(2)
        step.trainer.save_states(str(tmp_path / "file"))
        load_states(ours.trainer, tmp_path / "file")
        assert ours.trainer.optimizer.clip_gradient == 0


@pytest.mark.skipif(IS_MXNET_1, reason="the product is compared with MXNet 2's")
@pytest.mark.skipif(IS_MXNET_1, reason="another formula there")
def test_clip_weights_of_zero_means_none(tmp_path):
    theirs = Training("rmsprop", {"clip_weights": 0, "use_fused_step": False}).go(2)
    theirs.trainer.save_states(str(tmp_path / "file"))
    ours = Training("rmsprop_ext").give_weights(theirs)
    load_states(ours.trainer, tmp_path / "file")
    assert ours.trainer.optimizer.clip_weights is None


def test_nadam_counts_its_schedule_as_the_file_does(tmp_path):
    theirs = Training("nadam").go(3)
    theirs.trainer.save_states(str(tmp_path / "file"))
    ours = Training("nadam_ext")
    load_states(ours.trainer, tmp_path / "file")
    assert ours.trainer.optimizer.schedule_per_parameter is True
    assert ours.trainer.optimizer.m_schedule == theirs.trainer.optimizer.m_schedule != 1.0
    skipping = Training("nadam_ext", {"skip_nonfinite": True})
    refused(skipping, tmp_path / "file", "skip_nonfinite must be False with schedule_per_parameter")


@pytest.mark.parametrize("name", ["sgd", "nag"] if IS_MXNET_1 else ["adam", "sgd", "nag", "adamax"])
def test_master_weights_of_the_built_in(name, tmp_path):
    options = {"multi_precision": True, "learning_rate": 0.05}
    if name in ("sgd", "nag"):
        options["momentum"] = 0.9
    else:
        options["use_fused_step"] = False
    theirs = Training(name, options, dtype="float16").go(3)
    theirs.trainer.save_states(str(tmp_path / "file"))
    kinds = {k: v for k, v in options.items() if k in ("multi_precision", "momentum")}
    ours = Training(f"{name}_ext", kinds, dtype="float16").give_weights(theirs)
    load_states(ours.trainer, tmp_path / "file")
    for training in (theirs, ours):
        training.go(3, 6)
    masters = [[u.states[i] for i in range(3)] for u in (theirs.updaters()[0], ours.updaters()[0])]
    for their_state, our_state in zip(*masters):
        their_master = their_state[1] if IS_MXNET_1 else their_state[0]
        np.testing.assert_allclose(
            our_state[0].asnumpy(), their_master.asnumpy(), rtol=2e-6, atol=1e-7
        )
    main(["convert", str(tmp_path / "file"), str(tmp_path / "ours"), "--to", f"{name}_ext"])
    main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", name])
    back = Training(name, options, dtype="float16")
    back.trainer.load_states(str(tmp_path / "back"))
    theirs.trainer.load_states(str(tmp_path / "file"))
    for a, b in zip(back.states(), theirs.states()):
        assert a.tobytes() == b.tobytes()


# Ours to ours.

KINDS = [
    {},
    {"aggregate_num": 1},
    {"aggregate_num": 2},
    {"use_fused_step": False},
    {"decoupled_wd": True, "maximize": True},
    {"clip_global_norm": 0.5, "skip_nonfinite": True},
    {"ema_decay": 0.9},
    {"ema_decay": 0.9, "aggregate_num": 2, "state_dtype": {".*": "bfloat16"}},
    {"state_dtype": {".*": "float16"}, "state_seed": 7},
    {"state_dtype": {".*": "int8"}, "ema_decay": 0.9, "skip_nonfinite": True},
]


@pytest.mark.parametrize("plain", [False, True], ids=["load_states", "Trainer.load_states"])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_round_trips(options, plain, tmp_path):
    load = gluon.Trainer.load_states if plain else load_states
    pair = [Training("adamax_ext", scheduled(**options)) for _ in range(2)]
    resumed(*pair, tmp_path, load=load)


@pytest.mark.parametrize("member", FAMILY, ids=str)
def test_round_trips_of_all_optimizers(member, tmp_path):
    pair = [Training(member.create(**scheduled(wd=0.0))) for _ in range(2)]
    resumed(*pair, tmp_path)


@pytest.mark.parametrize("multi_precision", [True, False])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_round_trips_in_half_precision(multi_precision, ema_decay, tmp_path):
    options = {"multi_precision": multi_precision, "ema_decay": ema_decay}
    pair = [Training("adam_ext", scheduled(**options), dtype="float16") for _ in range(2)]
    resumed(*pair, tmp_path)


def test_the_content_is_that_of_the_plain_trainer(tmp_path):
    training = Training("adamax_ext", scheduled()).go(3)
    save_states(training.trainer, tmp_path / "ours")
    training.trainer.save_states(str(tmp_path / "plain"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "plain").read_bytes()


@pytest.mark.parametrize(
    "kvstore, on_kvstore",
    [(None, None), (None, False)]
    + [(s, u) for s in ("local", "device") for u in (None, False, True)],
)
@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (2, 3), (2, 2)])
def test_other_devices(before, after, kvstore, on_kvstore, tmp_path):
    """mxnet#10910: the states of the first device go to all there are, with their counts."""

    def make(devices, store=kvstore):
        options = scheduled(ema_decay=0.9, **({"aggregate_num": 1} if on_kvstore else {}))
        update = on_kvstore if devices > 1 and store else None
        return Training(
            "adamax_ext", options, devices=devices, kvstore=store, update_on_kvstore=update
        )

    first = make(before).go(4)
    save_states(first.trainer, tmp_path / "file")
    second = make(after).give_weights(first)
    load_states(second.trainer, tmp_path / "file")
    optimizer = second.trainer.optimizer
    assert optimizer.num_update == 4
    on_store = bool(second.trainer._update_on_kvstore)
    for device in (0,) if on_store else range(after):
        assert optimizer._all_index_update_counts[device] == {0: 4, 1: 4, 2: 4}
    if not on_store:
        for updater, device in zip(second.updaters(), second.devices):
            for state in updater.states.values():
                assert {state[0][0].context, state[1].context} == {device}
    # What each device goes on with is what a single one would.
    reference = make(1, store=None).give_weights(first)
    load_states(reference.trainer, tmp_path / "file")
    rng = np.random.RandomState(3)
    for _ in range(3):
        grads = [rng.standard_normal(shape).astype("float32") for shape in SHAPES]
        for training, sums in ((second, bool(kvstore)), (reference, False)):
            share = len(training.devices) if sums else 1
            losses = []
            with autograd.record():
                for device in training.devices:
                    for grad, parameter in zip(grads, training.parameters):
                        losses.append((array(grad, device) * parameter.data(device)).sum())
            autograd.backward(losses)
            training.trainer.step(2 * share)
    for device in range(after):
        found = [p.data(DEVICES[device]).asnumpy() for p in second.parameters]
        for a, b in zip(found, reference.weights()):
            # The sum over three devices, divided by three, is rounded.
            if after == 3:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            else:
                assert_same_bits(a, b)


def test_skipped_steps_go_to_all_devices(tmp_path):
    first = Training("adam_ext", {"skip_nonfinite": True}).go(3)
    first.parameters[0].grad()[:] = np.nan
    for parameter in first.parameters:
        parameter.data()._fresh_grad = True
    first.trainer.update(1)
    save_states(first.trainer, tmp_path / "file")
    second = Training("adam_ext", {"skip_nonfinite": True}, devices=2).give_weights(first)
    load_states(second.trainer, tmp_path / "file")
    optimizer = second.trainer.optimizer
    assert optimizer.skipped_steps == 1
    assert [tracker.skipped for tracker in optimizer._step_trackers.values()] == [
        {0: 1, 1: 1, 2: 1}
    ] * 2


def test_before_the_first_step(tmp_path):
    """mxnet#17357: `num_update` is right at once; and a file from before all steps is one too."""
    training = Training("adamax_ext", scheduled(begin_num_update=100))
    training.trainer.save_states(str(tmp_path / "empty"))
    save_states(training.trainer, tmp_path / "begun")
    for name in ("empty", "begun"):
        fresh = Training("adamax_ext", scheduled())
        load_states(fresh.trainer, tmp_path / name)
        assert fresh.trainer.optimizer.num_update == 100
        assert_same(fresh.go(3), Training("adamax_ext", scheduled(begin_num_update=100)).go(3))
    training.go(7)
    save_states(training.trainer, tmp_path / "later")
    fresh = Training("adamax_ext")
    load_states(fresh.trainer, tmp_path / "later")
    assert fresh.trainer.optimizer.num_update == 107
    assert fresh.trainer.optimizer._index_update_count == {0: 107, 1: 107, 2: 107}
    assert fresh.trainer.learning_rate == training.trainer.learning_rate


def test_loading_twice_and_going_back_in_time(tmp_path):
    training = Training("adamax_ext", scheduled(ema_decay=0.9)).go(3)
    weights = Training("adamax_ext").give_weights(training)
    save_states(training.trainer, tmp_path / "file")
    expected = [a.copy() for a in training.go(3, 6).weights()]
    for _ in range(2):
        training.give_weights(weights)
        load_states(training.trainer, tmp_path / "file")
        for a, b in zip(training.go(3, 6).weights(), expected):
            assert_same_bits(a, b)


def test_averages_begin_as_the_weights(tmp_path):
    for name, options in (("adamax_ext", {}), ("adamax", {})):
        first = Training(name, options).go(3)
        save_states(first.trainer, tmp_path / "file")
        second = Training("adamax_ext", {"ema_decay": 0.5}).give_weights(first)
        load_states(second.trainer, tmp_path / "file")
        before = second.weights()
        with mxadamax.averaged_weights(second.trainer):
            for a, b in zip(second.weights(), before):
                assert_same_bits(a, b)
        second.step(3)
        share = 0.5 / (1 - 0.5**4)
        after = second.weights()
        with mxadamax.averaged_weights(second.trainer):
            for average, old, new in zip(second.weights(), before, after):
                np.testing.assert_allclose(average, (1 - share) * old + share * new, rtol=1e-6)


def test_averages_begin_as_the_master_weights(tmp_path):
    options = {"multi_precision": True}
    first = Training("adamax_ext", options, dtype="float16").go(3)
    save_states(first.trainer, tmp_path / "file")
    second = Training("adamax_ext", {**options, "ema_decay": 0.5}, dtype="float16").give_weights(
        first
    )
    load_states(second.trainer, tmp_path / "file")
    for master, (_, average) in second.updaters()[0].states.values():
        assert average is not master
        assert_same_bits(average.asnumpy(), master.asnumpy())
    first.go(3, 5), second.go(3, 5)
    for a, b in zip(first.weights(), second.weights()):
        assert a.tobytes() == b.tobytes()


def test_frozen_and_unused_parameters(tmp_path):
    pair = [Training("adamax_ext", scheduled(), frozen=[1]) for _ in range(2)]
    resumed(*pair, tmp_path)
    # Parameter 2 has no gradient until later.
    first, second = (Training("adamax_ext", scheduled()) for _ in range(2))
    first.go(3, without=[2])
    assert 2 not in first.updaters()[0].states
    save_states(first.trainer, tmp_path / "file")
    assert 2 not in first.updaters()[0].states
    second.give_weights(first)
    load_states(second.trainer, tmp_path / "file")
    assert_same(second.go(3, 6), first.go(3, 6))
    # One that was frozen is to begin anew.
    frozen = Training("adamax_ext", frozen=[1]).go(2)
    save_states(frozen.trainer, tmp_path / "file")
    thawed = Training("adamax_ext").give_weights(frozen)
    refused(
        thawed,
        tmp_path / "file",
        r"states of 2 parameters and none of parameter 1 \('w1'\).*'null'",
    )
    thawed.parameters[1].grad_req = "null"
    load_states(thawed.trainer, tmp_path / "file")
    thawed.parameters[1].grad_req = "write"
    thawed.go(2, 4)
    assert thawed.trainer.optimizer._index_update_count == {0: 4, 1: 2, 2: 4}


def test_a_momentum_that_changes_no_state(tmp_path):
    """RMSProp's centered rule has an array for it, also where it is 0."""
    first = Training("rmsprop_ext", {"centered": True, "momentum": 0.0}).go(2)
    save_states(first.trainer, tmp_path / "file")
    second = Training("rmsprop_ext", {"centered": True, "momentum": 0.5})
    load_states(second.trainer, tmp_path / "file")
    assert second.trainer.optimizer.momentum == 0.0
    for a, b in zip(second.states(), first.states()):
        assert_same_bits(a, b)


# Refusals.


def refused(training, file, message):
    """Loading raises ValueError with the file's name and this, and changes nothing."""
    before = training.everything()
    with pytest.raises(ValueError, match=message) as caught:
        load_states(training.trainer, file)
    assert str(file) in str(caught.value)
    assert training.everything() == before


@pytest.mark.parametrize(
    "written, loading, message",
    [
        (
            ("adam_ext", {}),
            ("adamax_ext", {}),
            "holds states of adam_ext, expected those of adamax_ext",
        ),
        (
            ("adam", {}),
            ("adamax_ext", {}),
            "holds states of MXNet's adam, expected those of adamax_ext",
        ),
        (("ftrl", {}), ("adamax_ext", {}), "holds states of MXNet's ftrl, expected"),
        (
            ("adam_ext", {"amsgrad": True}),
            ("adam_ext", {}),
            "amsgrad=True, but the trainer's adam_ext has amsgrad=False",
        ),
        (("adam", {}), ("adam_ext", {"amsgrad": True}), "amsgrad=False, but .* amsgrad=True"),
        (
            ("adamax_ext", {"ema_decay": 0.9}),
            ("adamax_ext", {}),
            "ema_decay=0.9, but .* ema_decay=None",
        ),
        (("adamax_ext", {"state_dtype": "int8"}), ("adamax_ext", {}), "state_dtype='int8', but"),
        (("adamax_ext", {}), ("adamax_ext", {"state_dtype": "bfloat16"}), "state_dtype=None, but"),
        (("adam", {}), ("adam_ext", {"state_dtype": "int8"}), "state_dtype=None, but"),
        (
            ("adamax_ext", {"multi_precision": True}),
            ("adamax_ext", {}),
            "multi_precision=True, but",
        ),
        (("sgd_ext", {"momentum": 0.9}), ("sgd_ext", {}), "momentum=0.9, but .* momentum=0.0"),
        (("sgd", {}), ("sgd_ext", {"momentum": 0.9}), "momentum=0.0, but"),
        (("rmsprop_ext", {"centered": True}), ("rmsprop_ext", {}), "centered=True, but"),
        (("adamax_ext", {"maximize": True}), ("adamax_ext", {}), "maximize=True, .*change it once"),
        (("adamax_ext", {}), ("adamax_ext", {"skip_nonfinite": True}), "skip_nonfinite=False, but"),
        (
            ("adamax_ext", {}),
            ("adamax_ext", {"clip_global_norm": 1.0}),
            "clip_global_norm=None, but",
        ),
        (("adamax_ext", {}), ("adamax_ext", {"decoupled_wd": True}), "decoupled_wd=False, but"),
    ],
    ids=str,
)
def test_other_optimizers_and_options(written, loading, message, tmp_path):
    first = Training(*written).go(2)
    save_states(first.trainer, tmp_path / "file")
    refused(Training(*loading).go(1), tmp_path / "file", message)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"shapes": SHAPES[:2]},
            r"holds the states of 2 parameters and none of parameter 2 \('w2'\)",
        ),
        (
            {"shapes": SHAPES + ((5,),)},
            "holds a state of parameter 3 .of 4 in all., but the trainer has 3",
        ),
        (
            {"shapes": ((4, 3), (8,), (2, 2, 2))},
            r"parameter 1 \('w1'\): holds a state \(float32 \(8,\), float32 \(8,\)\), expected "
            r"\(float32 \(7,\), float32 \(7,\)\) for its weight float32 \(7,\)",
        ),
        ({"shapes": ((3, 4), (7,), (2, 2, 2))}, r"parameter 0 .* float32 \(3, 4\)"),
        (
            {"dtype": "float64"},
            r"parameter 0 .* holds a state \(float64 \(4, 3\), .*expected \(float32",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["adamax", "adamax_ext"])
def test_other_models(changes, message, name, tmp_path):
    first = Training(name, **changes).go(2)
    first.trainer.save_states(str(tmp_path / "file"))
    refused(Training("adamax_ext").go(1), tmp_path / "file", message)
    # Before the first step as well, and on a key-value store.
    refused(Training("adamax_ext"), tmp_path / "file", message)
    on_store = Training("adamax_ext", {"aggregate_num": 1}, devices=2, update_on_kvstore=True)
    refused(on_store.go(1), tmp_path / "file", message)


class Unfamiliar:
    """Neither states nor an optimizer."""


def fail_as_mxnet_does():
    raise mx.base.MXNetError("no array of any kind of shapes")


class Unreadable:
    """What MXNet refuses to read."""

    def __reduce__(self):
        return fail_as_mxnet_does, ()


def test_files_that_hold_something_else(tmp_path):
    training = Training("adamax_ext", scheduled(ema_decay=0.9)).go(2)
    file = tmp_path / "file"
    states = training.updaters()[0].states
    optimizer = training.trainer.optimizer
    expected = r"expected what save_states writes, a pickle of \(states, optimizer\)"
    for content, message in [
        (b"", f"cannot be read .*{expected}: ValueError"),
        (b"hello", f"cannot be read .*{expected}"),
        (pickle.dumps(states), "holds only states, as written by Module"),
        (pickle.dumps((states, 3)), f"holds a tuple of .dict, int., {expected}"),
        (pickle.dumps((optimizer, states)), "holds a tuple of .Adamax, dict."),
        (pickle.dumps((states, optimizer, 1)), "holds a tuple of .dict, Adamax, int."),
        (pickle.dumps([1]), "holds a list"),
        (pickle.dumps((states, mx.optimizer.Test())), "states of MXNet's test, expected"),
        (pickle.dumps(({"w0": None}, optimizer)), "state of parameter 'w0'"),
        (pickle.dumps(({-1: None}, optimizer)), "state of parameter -1"),
        (
            pickle.dumps(({**states, 1: None}, optimizer)),
            "parameter 1 .* holds a state none, expected",
        ),
        (
            pickle.dumps(({**states, 1: Unfamiliar}, optimizer)),
            "parameter 1 .* holds a state a type",
        ),
        (pickle.dumps(({**states, 1: states[1][0]}, optimizer)), "parameter 1 .* holds a state"),
        (b"cmxadamax.nowhere\nNothing\n.", "cannot be read .*nowhere"),
        (pickle.dumps(Unreadable()), "cannot be read .*MXNetError: no array of any kind of shapes"),
    ]:
        file.write_bytes(content)
        refused(training, file, message)
    damaged = mxadamax.Adamax(ema_decay=0.9)
    damaged.beta1 = 1.5
    file.write_bytes(pickle.dumps((states, damaged)))
    refused(training, file, r"beta1 must be in \[0, 1\), got 1.5")
    content = pickle.dumps((states, optimizer))
    file.write_bytes(content.replace(b"wd_mult", b"wd_mulu"))
    refused(training, file, "its optimizer is damaged: .*wd_mult")
    with pytest.raises(FileNotFoundError):
        load_states(training.trainer, tmp_path / "missing")


def test_truncated_files(tmp_path):
    training = Training("adamax_ext").go(2)
    save_states(training.trainer, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for size in [*range(0, len(content), 97), len(content) - 1]:
        (tmp_path / "part").write_bytes(content[:size])
        refused(training, tmp_path / "part", "cannot be read|holds a")
    assert main(["convert", str(tmp_path / "part"), str(tmp_path / "new"), "--to", "adamax"]) == 1


def test_trainers_that_are_not_ready(tmp_path):
    theirs = Training("adamax")
    save_states(theirs.trainer, tmp_path / "file")
    with pytest.raises(
        ValueError, match="must be one of mxadamax's, got MXNet's adamax; .* convert"
    ):
        load_states(theirs.trainer, tmp_path / "file")

    parameter = gluon.Parameter(
        "late", shape=(0, 3) if IS_MXNET_1 else (-1, 3), allow_deferred_init=True
    )
    parameter.initialize(ctx=mx.cpu())
    trainer = gluon.Trainer([parameter], "adamax_ext")
    for call in (load_states, save_states):
        with pytest.raises(ValueError, match=r"parameter 0 \('late'\): its shape is not known yet"):
            call(trainer, tmp_path / "file")

    # Frozen, it has no state; but the trainer cannot begin either.
    parameter.grad_req = "null"
    training = Training("adamax_ext").go(1)
    save_states(training.trainer, tmp_path / "ours")
    trainer = gluon.Trainer([*training.parameters, parameter], "adamax_ext")
    with pytest.raises(ValueError, match="the shape of 'late' is not known yet"):
        load_states(trainer, tmp_path / "ours")

    # As it is on a worker of a parameter server.
    away = Training("adamax_ext").go(1)
    away.trainer._update_on_kvstore, away.trainer._kvstore = True, types.SimpleNamespace()
    with pytest.raises(
        ValueError, match="the states are on a parameter server, which does not return them"
    ):
        save_states(away.trainer, tmp_path / "away")
    assert not (tmp_path / "away").exists()

    training = Training("adamax_ext", {"ema_decay": 0.9}).go(2)
    save_states(training.trainer, tmp_path / "file")
    inside = mxadamax.averaged_weights(training.trainer)
    with inside, pytest.raises(ValueError, match="not inside averaged_weights"):
        load_states(training.trainer, tmp_path / "file")


# Whole or not at all.


@pytest.mark.parametrize("function", ["fsync", "replace", "write"])
def test_a_write_that_fails_leaves_the_old_file(function, tmp_path, monkeypatch):
    training = Training("adamax_ext").go(2)
    save_states(training.trainer, tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    training.go(2, 3)

    def fail(*_):
        raise OSError("no space left")

    if function == "write":
        monkeypatch.setattr("pickle.dumps", fail)
    else:
        monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="no space left"):
        save_states(training.trainer, tmp_path / "file")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == before


def test_everything_is_on_the_disk_in_this_order(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        mode = os.fstat(descriptor).st_mode
        calls.append("folder" if stat.S_ISDIR(mode) else "file")
        if stat.S_ISREG(mode):
            with open(f"/proc/self/fd/{descriptor}", "rb") as stream:
                pickle.loads(stream.read())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    training = Training("adamax_ext").go(1)
    save_states(training.trainer, tmp_path / "file")
    assert calls == ["file", "rename", "folder"]


def test_where_files_go(tmp_path, monkeypatch):
    training = Training("adamax_ext").go(1)
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "folder" / "real", tmp_path / "link")
    save_states(training.trainer, tmp_path / "link")
    assert os.path.islink(tmp_path / "link") and os.listdir(tmp_path / "folder") == ["real"]
    monkeypatch.chdir(tmp_path)
    save_states(training.trainer, "relative")
    load_states(training.trainer, "relative")
    with pytest.raises(OSError):
        save_states(training.trainer, tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        save_states(training.trainer, tmp_path / "nowhere" / "file")
    training.trainer.save_states("plain")
    assert os.stat("relative").st_mode == os.stat("plain").st_mode
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "plain", "relative"]


# MXNet 1.


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 1's AdaMax")
def test_no_epsilon_is_an_epsilon_of_zero(tmp_path, capsys):
    theirs = Training("adamax", {"learning_rate": 0.05, "wd": 0.01}).go(4)
    theirs.trainer.save_states(str(tmp_path / "file"))
    ours = Training("adamax_ext", {"numerics": "portable"}).give_weights(theirs)
    load_states(ours.trainer, tmp_path / "file")
    assert ours.trainer.optimizer.epsilon == 0.0
    for training in (theirs, ours):
        training.go(4, 8)
    for a, b in zip(ours.weights(), theirs.weights()):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
    save_states(Training("adamax_ext", {"epsilon": 1e-8}).go(1).trainer, tmp_path / "with")
    assert main(["convert", str(tmp_path / "with"), str(tmp_path / "new"), "--to", "adamax"]) == 1
    assert "epsilon=1e-08, which MXNet's adamax does not have" in capsys.readouterr().err


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 1's formulas")
def test_other_formulas_are_refused_or_said(tmp_path):
    portable = {"numerics": "portable"}
    for name in ("rmsprop", "adagrad", "adadelta"):
        Training(name).go(2).trainer.save_states(str(tmp_path / "file"))
        ours = Training(f"{name}_ext", portable).go(1)
        refused(ours, tmp_path / "file", f"{name}.*neither can continue")
    Training("adam", {"wd": 0.1, "clip_gradient": 1.0}).go(2).trainer.save_states(
        str(tmp_path / "file")
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_states(Training("adam_ext", portable).trainer, tmp_path / "file")
    texts = [str(w.message) for w in caught if w.category is UserWarning]
    assert any("bounds the gradient together with the weight decay" in text for text in texts)


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 1's formulas")
@pytest.mark.parametrize(
    ("name", "options", "difference"),
    [
        *((name, {"wd": 0.1}, None) for name in ("adamax", "adam", "nadam", "sgd")),
        *((name, {"clip_gradient": 1.0}, None) for name in ("adamax", "adam", "nadam")),
        ("nag", {"clip_gradient": 1.0, "momentum": 0.9}, None),
        *(
            (
                name,
                {"wd": 0.1, "clip_gradient": 1.0},
                "bounds the gradient together with the weight decay",
            )
            for name in ("adamax", "adam", "nadam")
        ),
        ("sgd", {"wd": 0.1, "clip_gradient": 1.0}, None),
        ("nag", {"wd": 0.1, "momentum": 0.9}, "leaves part of the weight decay out of its state"),
    ],
)
def test_where_another_formula_is_warned_of(name, options, difference, tmp_path):
    """Once, where the caller of this package stands."""
    Training(name, options).go(2).trainer.save_states(str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = {"numerics": "portable", **{k: v for k, v in options.items() if k == "momentum"}}
        load_states(Training(f"{name}_ext", ours).trainer, tmp_path / "file")
    found = [w for w in caught if "unlike" in str(w.message)]
    if difference is None:
        assert not found
        return
    assert [str(w.message) for w in found] == [
        f"MXNet {mx.__version__}'s {name} {difference}, unlike {name}_ext: the training continues "
        "slightly differently"
    ]
    assert found[0].filename == __file__


@contextlib.contextmanager
def shapes_of_numpy(on):
    with mx.util.np_array(mx.util.is_np_array() and on), mx.util.np_shape(on):
        yield


@pytest.mark.parametrize("writing, reading", [(True, False), (False, True)])
def test_semantics_of_shapes(writing, reading, tmp_path):
    """MXNet reads arrays only with those they were written with; converted files keep them."""
    theirs = Training("adamax", {} if IS_MXNET_1 else {"epsilon": 0.0}).go(2)
    ours = Training("adamax_ext")
    with shapes_of_numpy(writing):
        theirs.trainer.save_states(str(tmp_path / "file"))
    with shapes_of_numpy(reading):
        with pytest.raises(mx.base.MXNetError):
            pickle.loads((tmp_path / "file").read_bytes())
        load_states(ours.trainer, tmp_path / "file")
        command = ["convert", str(tmp_path / "file"), str(tmp_path / "new"), "--to", "adamax_ext"]
        assert main(command) == 0
    for a, b in zip(ours.states(), theirs.states()):
        assert_same_bits(a, b)
    with shapes_of_numpy(writing):
        ours.trainer.load_states(str(tmp_path / "new"))
