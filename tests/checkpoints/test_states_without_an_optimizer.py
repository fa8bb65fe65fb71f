# SPDX-License-Identifier: Apache-2.0
"""States alone, as Module and Updater.get_states() write them, load and convert bit for bit, or not at all."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from bits import assert_same_bits
from buckets import batch, by_length
from common import leaves, network_shapes
from family import WITH_BUILT_IN
from mxnet import autograd, gluon

import mxadamax
from mxadamax.__main__ import main
from mxadamax._mxnet.compatibility import IS_MXNET_1, gluon_arrays
from mxadamax.optimizers.arithmetic import SERIES, built_in_class

SHAPES = ((4, 3), (7,))
COUNT = {"begin_num_update": 5}
MEMBERS = [
    member
    for member in WITH_BUILT_IN
    if built_in_class(member.built_in) is not None and ("float32", SERIES) not in member.exceptions
]
"""The records of which ours does as the installed MXNet's."""

ONLY_IN_1 = pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 has neither Module nor FeedForward")


@pytest.fixture(autouse=True)
def shapes():
    with network_shapes():
        yield


def common(member: Any = None) -> dict[str, Any]:
    """Hyperparameters that a program gives again when it resumes; some are no defaults."""
    scheduler = mx.lr_scheduler.FactorScheduler(step=3, factor=0.7, base_lr=0.05)
    options = {"learning_rate": 0.05, "lr_scheduler": scheduler, "wd": 0.01, "clip_gradient": 0.6}
    return options if member is None else {**options, **member.options}


class Training:
    """Two parameters with a trainer, and gradients that depend on the step only."""

    def __init__(self, optimizer: Any, dtype: str = "float32", devices: int = 1):
        self.devices = [mx.cpu(k) for k in range(devices)]
        self.parameters = []
        rng = np.random.RandomState(0)
        for k, shape in enumerate(SHAPES):
            parameter = gluon.Parameter(f"w{k}", shape=shape, dtype=dtype)
            parameter.initialize(mx.init.Zero(), ctx=self.devices)
            parameter.set_data(gluon_arrays.array(rng.standard_normal(shape), dtype=dtype))
            self.parameters.append(parameter)
        self.parameters[1].wd_mult = 2.0
        self.trainer = gluon.Trainer(self.parameters, optimizer, update_on_kvstore=False)
        self.dtype = dtype

    def go(self, *steps: int) -> Training:
        for t in range(*steps):
            rng = np.random.RandomState(100 + t)
            losses = []
            with autograd.record():
                for device in self.devices:
                    for p in self.parameters:
                        grad = rng.standard_normal(p.shape)
                        grad = gluon_arrays.array(grad, dtype=self.dtype, ctx=device)
                        losses.append((grad * p.data(device)).sum())
            autograd.backward(losses)
            self.trainer.step(2)
        return self

    def give_weights(self, other: Training) -> Training:
        for mine, theirs in zip(self.parameters, other.parameters):
            mine.set_data(theirs.data(other.devices[0]))
        return self

    def states_alone(self, file: Path) -> Path:
        file.write_bytes(self.trainer._updaters[0].get_states())
        return file

    def arrays(self) -> list[np.ndarray]:
        states = self.trainer._updaters[0].states
        arrays = [p.data(self.devices[0]) for p in self.parameters]
        return [a.asnumpy() for a in (*arrays, *(x for k in states for x in leaves(states[k])))]

    def everything(self) -> Any:
        """All that a load may change."""
        optimizer = self.trainer.optimizer
        entries = {k: v for k, v in optimizer.__getstate__().items() if k != "lr_scheduler"}
        scheduler = optimizer.lr_scheduler
        schedule = None if scheduler is None else dict(vars(scheduler))
        arrays = [array.tobytes() for array in self.arrays()]
        return arrays, id(optimizer), repr(sorted(entries.items())), schedule


def assert_same(found: Training, expected: Training) -> None:
    both = found.arrays(), expected.arrays()
    assert len(both[0]) == len(both[1])
    for k, (a, b) in enumerate(zip(*both)):
        assert_same_bits(a, b, f"array {k}")


def ours(member: Any, **options: Any) -> Training:
    return Training(member.create(**common(member), **options))


def theirs(member: Any, **options: Any) -> Training:
    return Training(member.create_built_in(**common(member), **options))


def converted(old: Path, *arguments: str) -> Path:
    new = old.with_name("new.states")
    assert main(["convert", str(old), str(new), *arguments]) == 0
    return new


def options_of(member: Any) -> list[str]:
    """The options that say which states there are."""
    taken = member.create_built_in().__class__.__init__.__code__.co_varnames
    names = {"rho": "gamma1", "momentum": "gamma2"} if "gamma1" in taken else {}
    names["epsilon"] = next((n for n in ("eps", "epsilon") if n in taken), "epsilon")
    return [f"--option={names.get(k, k)}={v!r}" for k, v in member.options.items()]


# Bit for bit.


@pytest.mark.quick
def test_all_built_ins_are_tested():
    """But DCASGD with a momentum, which fails in MXNet 1."""
    names = {m.name for m in WITH_BUILT_IN if built_in_class(m.built_in) is not None}
    assert {member.name for member in MEMBERS} == names
    assert len(names) == (14 if IS_MXNET_1 else 17)


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_ours_continues_the_built_ins(member, tmp_path):
    stayed = theirs(member).go(5)
    file = stayed.states_alone(tmp_path / "old.states")
    left = ours(member).give_weights(stayed)
    mxadamax.load_states(left.trainer, file, member.built_in, COUNT)
    optimizer = left.trainer.optimizer
    assert optimizer.num_update == optimizer.begin_num_update == 5
    assert_same(left.go(5, 10), stayed.go(5, 10))


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_the_built_in_continues_ours(member, tmp_path):
    stayed = theirs(member).go(10)
    left = ours(member).go(5)
    file = left.states_alone(tmp_path / "old.states")
    returned = theirs(member, **COUNT).give_weights(left)
    new = converted(file, "--from", member.name, "--to", member.built_in, *options_of(member))
    assert isinstance(pickle.loads(new.read_bytes()), dict)
    returned.trainer.load_states(str(new))
    if member.built_in == "nadam":
        # States do not tell, and Trainer.load_states does not ask.
        returned.trainer.optimizer.m_schedule = left.trainer.optimizer.m_schedule
    assert_same(returned.go(5, 10), stayed)


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_files_with_an_optimizer_made_of_such_without(member, tmp_path):
    """Of the built-in's for ours, then of ours for the built-in."""
    fixed = {"wd": 0.01, "clip_gradient": 0.6, "learning_rate": 0.05}
    given = [f"--option={name}={value}" for name, value in fixed.items()] + options_of(member)
    fixed = {**member.options, **fixed}
    stayed = Training(member.create_built_in(**fixed)).go(5)
    file = stayed.states_alone(tmp_path / "old.states")
    count = "--option=begin_num_update={}".format
    new = converted(file, "--from", member.built_in, "--to", member.name, *given, count(5))
    left = Training(mx.optimizer.create(member.name)).give_weights(stayed)
    left.trainer.load_states(str(new))
    assert left.trainer.optimizer.num_update == 5
    assert_same(left.go(5, 10), stayed.go(5, 10))
    left = Training(member.create(**fixed)).go(5)
    file = left.states_alone(tmp_path / "old.states")
    new = converted(file, "--from", member.name, "--to", member.built_in, *given, count(5))
    returned = Training(member.built_in).give_weights(left)
    returned.trainer.load_states(str(new))
    returned.trainer.optimizer.aggregate_num = stayed.trainer.optimizer.aggregate_num
    expected = Training(member.create_built_in(**fixed)).go(10)
    assert_same(returned.go(5, 10), expected)


@pytest.mark.parametrize("member", MEMBERS, ids=str)
@pytest.mark.parametrize("through_file", [False, True], ids=["load_states", "convert"])
def test_checkpoints_with_their_optimizer_too(member, through_file, tmp_path):
    """5 steps of the built-in, 5 of ours and 5 of the built-in are 15 of the built-in."""
    stayed = theirs(member).go(5)
    file = tmp_path / "old.states"
    stayed.trainer.save_states(str(file))
    left = ours(member).give_weights(stayed)
    if through_file:
        left.trainer.load_states(str(converted(file, "--to", member.name)))
    else:
        mxadamax.load_states(left.trainer, file)
    assert_same(left.go(5, 10), stayed.go(5, 10))
    mxadamax.save_states(left.trainer, file)
    returned = Training(member.built_in).give_weights(left)
    returned.trainer.load_states(str(converted(file, "--to", member.built_in)))
    returned.trainer.optimizer.aggregate_num = stayed.trainer.optimizer.aggregate_num
    assert_same(returned.go(10, 15), stayed.go(10, 15))


@pytest.mark.parametrize("name", ["adam", "nadam", "sgd", "rmsprop"])
def test_states_of_ours_come_back_to_ours(name, tmp_path):
    def create(**options: Any) -> Training:
        options = {**common(), **({"momentum": 0.9} if name == "sgd" else {}), **options}
        return Training(mx.optimizer.create(f"{name}_ext", **options))

    stayed = create().go(5)
    file = stayed.states_alone(tmp_path / "old.states")
    again = create(**COUNT).give_weights(stayed)
    # The count is that of the trainer.
    mxadamax.load_states(again.trainer, file, f"{name}_ext")
    assert_same(again.go(5, 10), stayed.go(5, 10))


@pytest.mark.parametrize("name", ["adam", "nadam"])
def test_two_devices(name, tmp_path):
    stayed = Training(mx.optimizer.create(name, **common()), devices=2).go(5)
    file = stayed.states_alone(tmp_path / "old.states")
    left = Training(mx.optimizer.create(f"{name}_ext", **common()), devices=2).give_weights(stayed)
    mxadamax.load_states(left.trainer, file, name, COUNT)
    assert_same(left.go(5, 10), stayed.go(5, 10))


@pytest.mark.parametrize("name", ["sgd", "nag", "adam"])
def test_master_weights(name, tmp_path):
    """MXNet 1 keeps some last."""
    options = {"learning_rate": 0.1, "multi_precision": True}
    if name != "adam":
        options["momentum"] = 0.9
    stayed = Training(mx.optimizer.create(name, **options), "float16").go(5)
    file = stayed.states_alone(tmp_path / "old.states")
    left = Training(mx.optimizer.create(f"{name}_ext", **options), "float16").give_weights(stayed)
    mxadamax.load_states(left.trainer, file, name, COUNT)
    stayed.go(5, 10)
    for found, expected in zip(left.go(5, 10).parameters, stayed.parameters):
        assert_same_bits(*(p.data().astype("float32").asnumpy() for p in (found, expected)))
    back = left.states_alone(tmp_path / "old.states")
    given = [f"--option={name}={value}" for name, value in options.items()]
    new = converted(back, "--from", f"{name}_ext", "--to", name, *given)
    kinds = [[str(a.dtype) for a in leaves(s)] for s in pickle.loads(new.read_bytes()).values()]
    assert kinds == [
        [str(a.dtype) for a in leaves(s)] for s in stayed.trainer._updaters[0].states.values()
    ]


# What decides.


def test_hyperparameters_are_the_trainers_but_for_those_given(tmp_path):
    file = Training("adam").go(2).states_alone(tmp_path / "old.states")
    options = {"learning_rate": 0.5, "beta1": 0.7, "epsilon": 1e-3, "wd": 0.1, "maximize": True}
    training = Training(mx.optimizer.create("adam_ext", **options))
    given = {"beta1": 0.8, "clip_gradient": 0.25, "begin_num_update": 7}
    mxadamax.load_states(training.trainer, file, "adam", given)
    found = training.trainer.optimizer
    assert {
        name: getattr(found, name) for name in {**options, **given} if name != "learning_rate"
    } == {
        **{name: value for name, value in options.items() if name != "learning_rate"},
        **given,
    }
    assert found.lr == 0.5 and found.num_update == 7
    # A rate replaces a schedule.
    training = Training(mx.optimizer.create("adam_ext", **common()))
    mxadamax.load_states(training.trainer, file, "adam", {"learning_rate": 0.25, **COUNT})
    assert training.trainer.learning_rate == 0.25


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 calls it rho, as this package does")
def test_hyperparameters_by_the_names_of_mxnet_1(tmp_path):
    training = Training(mx.optimizer.create("rmsprop_ext", rho=0.7)).go(2)
    file = training.states_alone(tmp_path / "old.states")
    mxadamax.load_states(training.trainer, file, "rmsprop_ext", {"gamma1": 0.8, **COUNT})
    assert training.trainer.optimizer.rho == 0.8


def test_counting_anew_is_what_mxnet_does(tmp_path):
    stayed = Training("adam").go(5)
    file = stayed.states_alone(tmp_path / "old.states")
    again, left = Training("adam").give_weights(stayed), Training("adam_ext").give_weights(stayed)
    again.trainer.load_states(str(file))
    mxadamax.load_states(left.trainer, file, "adam", {"begin_num_update": 0})
    assert_same(left.go(5, 8), again.go(5, 8))


def test_averages_begin_with_the_file(tmp_path):
    file = Training("adam").go(2).states_alone(tmp_path / "old.states")
    training = Training(mx.optimizer.create("adam_ext", ema_decay=0.9))
    mxadamax.load_states(training.trainer, file, "adam", COUNT)
    with mxadamax.averaged_weights(training.trainer):
        pass
    training.go(5, 6)


# Refused, and nothing has changed.


def refused(training: Training, file: Path, message: str, *arguments: Any) -> None:
    before, size = training.everything(), file.stat().st_size
    with pytest.raises(ValueError, match=message):
        mxadamax.load_states(training.trainer, file, *arguments)
    assert training.everything() == before
    assert file.stat().st_size == size


def edited(edit: Any, tmp_path: Path, name: str = "adam") -> Path:
    """A file of the built-in's after a change."""
    states = Training(name).go(2).trainer._updaters[0].states
    file = tmp_path / "old.states"
    file.write_bytes(pickle.dumps(edit(states)))
    return file


def cast(states: Any, dtype: str) -> Any:
    return {k: tuple(a.astype(dtype) for a in state) for k, state in states.items()}


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            lambda s: {0: s[0], 1: (mx.nd.zeros((3, 7)), mx.nd.zeros((3, 7)))},
            r"old.states: parameter 1 \('w1'\): holds a state \(float32 \(3, 7\), float32 \(3, 7\)\), "
            r"expected \(float32 \(7,\), float32 \(7,\)\) for its weight float32 \(7,\)$",
        ),
        (
            lambda s: {0: (s[0][0], s[1][0]), 1: s[1]},
            r"parameter 0 \('w0'\): holds a state \(float32 \(4, 3\), float32 \(7,\)\), expected",
        ),
        (
            lambda s: cast(s, "float64"),
            r"parameter 0 \('w0'\): holds a state \(float64 \(4, 3\), float64 \(4, 3\)\), expected "
            r"\(float32 \(4, 3\), float32 \(4, 3\)\)",
        ),
        (
            lambda s: {0: s[0], 1: s[1][0]},
            r"parameter 1 \('w1'\): holds a state float32 \(7,\), expected \(float32 \(7,\), float32 "
            r"\(7,\)\) of MXNet's adam; name the optimizer that wrote the file, and those of its options",
        ),
        (lambda s: {0: s[0], 1: "w"}, r"parameter 1 \('w1'\): holds a state a str, expected"),
        (lambda s: {0: s[0], 1: None}, r"parameter 1 \('w1'\): holds a state none, expected"),
        (lambda s: {0: s[0]}, r"holds the states of 1 parameters and none of parameter 1 \('w1'\)"),
        (
            lambda s: {**s, 2: s[1]},
            r"holds a state of parameter 2 \(of 3 in all\), but the trainer has 2 parameters",
        ),
        (
            lambda s: {"w0": s[0], "w1": s[1]},
            r"old.states: holds a state of parameter 'w0', by its name, but the trainer knows its "
            r"parameters by number, as 0: load it with updates on a key-value store, as it was written$",
        ),
        (lambda s: {0: (s[0][0], s[0][0]), 1: s[1]}, r"'w0'\): holds an array twice, expected"),
    ],
    ids=range(10),
)
def test_states_that_do_not_fit(edit, message, tmp_path):
    file = edited(edit, tmp_path)
    refused(
        Training(mx.optimizer.create("adam_ext", **common())).go(3), file, message, "adam", COUNT
    )


@pytest.mark.parametrize(
    "wrote, name, arguments, message",
    [
        ("adam", "adam_ext", (), r"holds only states, .*optimizer='adam'.*--from adam.*$"),
        (
            "adam",
            "adam_ext",
            ("adam",),
            "updates so far: name it in .*'begin_num_update': 1000}; 0 ",
        ),
        ("adam", "adam_ext", ("adma",), "optimizer must be a name in MXNet's registry, got 'adma'"),
        ("adam", "adam_ext", (5,), "optimizer must be a name in MXNet's registry, got 5"),
        ("adam", "adam_ext", ("adam", {"beta3": 1, **COUNT}), "optimizer_params: .*'beta3'"),
        (
            "adam",
            "adam_ext",
            ("adam", {"beta1": 2.0, **COUNT}),
            r"beta1 must be in \[0, 1\), got 2.0",
        ),
        (
            "adam",
            "adam_ext",
            ("adam", {"begin_num_update": -1}),
            "begin_num_update must be an integer",
        ),
        ("adam", "adam_ext", ("sgd", COUNT), "expected none of MXNet's sgd; name the optimizer"),
        (
            "adam",
            "rmsprop_ext",
            ("rmsprop", COUNT),
            "expected .*float32 .* of MXNet's rmsprop; name",
        ),
        (
            "sgd",
            "adam_ext",
            ("sgd", COUNT),
            "holds states of MXNet's sgd, expected those of adam_ext",
        ),
        ("sgd", "adam_ext", ("adam", COUNT), "holds a state none, expected .* of MXNet's adam"),
        (
            "adamax",
            "sgd_ext",
            ("sgd", {"momentum": 0.9, **COUNT}),
            "expected float32 .* of MXNet's sgd",
        ),
    ],
)
def test_what_the_program_says_of_a_file(wrote, name, arguments, message, tmp_path):
    file = Training(wrote).go(2).states_alone(tmp_path / "old.states")
    refused(Training(name).go(3), file, message, *arguments)


def test_options_that_decide_on_states(tmp_path):
    file = (
        Training(mx.optimizer.create("sgd", momentum=0.9)).go(2).states_alone(tmp_path / "states")
    )
    given = {"momentum": 0.9, **COUNT}
    refused(
        Training("sgd_ext").go(3), file, "was written with momentum=0.9, but .*0.0", "sgd", given
    )
    refused(Training("sgd_ext").go(3), file, "expected none of MXNet's sgd", "sgd", COUNT)


def test_damaged_files(tmp_path):
    file = Training("adam").go(2).states_alone(tmp_path / "states")
    content = file.read_bytes()
    training = Training("adam_ext").go(3)
    for size in (0, 1, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        refused(
            training, file, "states: cannot be read with MXNet .*, expected what", "adam", COUNT
        )


def test_a_name_for_a_file_that_has_its_optimizer(tmp_path):
    training = Training("adam_ext").go(2)
    file = tmp_path / "states"
    mxadamax.save_states(training.trainer, file)
    for arguments in (("adam_ext",), (None, COUNT)):
        refused(training, file, "states: holds adam_ext with its options; leave out", *arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--to", "adam_ext"],
            "holds only states, as written by Module.*--from adam with --option",
        ),
        (["--to", "adam_ext", "--from", "adma"], "optimizer must be a name in MXNet's registry"),
        (
            ["--to", "adam_ext", "--from", "sgd"],
            "parameter 0: holds a state .* of MXNet's sgd; name",
        ),
        (
            ["--to", "sgd_ext", "--from", "adam"],
            "of MXNet's adam, which only adam_ext can continue",
        ),
        (["--to", "adam_ext", "--from", "adam", "--option", "b=1"], "optimizer_params: .*'b'"),
        (["--to", "adam_ext", "--from", "adam", "--option", "wd=-1"], "wd must be in"),
        (["--to", "adam_ext", "--from", "adam", "--option", "wd=x"], "wd must be in .*got 'x'"),
    ],
)
def test_convert_refuses(arguments, message, tmp_path, capsys):
    file = Training("adam").go(2).states_alone(tmp_path / "old.states")
    assert main(["convert", str(file), str(tmp_path / "new"), *arguments]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("mxadamax convert: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


def test_an_option_without_a_value(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["convert", "old", "new", "--to", "adam_ext", "--option", "wd"])
    assert "expected NAME=VALUE, got 'wd'" in capsys.readouterr().err


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 has no LBSGD")
def test_what_no_states_alone_can_continue(tmp_path):
    file = Training("lbsgd").go(2).states_alone(tmp_path / "old.states")
    message = "only states of MXNet's lbsgd, which also keeps sums of gradients; save them with"
    refused(Training("lbsgd_ext").go(1), file, message, "lbsgd", COUNT)


# Module, BucketingModule and FeedForward.


BATCH = 4
STORES = {
    "no store": (None, 1),
    "updates on the store": ("local", 2),
    "two devices": (None, 2),
}
BOTH = ["no store", "updates on the store"]


def layers(length: int = 5) -> Any:
    net = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=6, name="first")
    net = mx.sym.FullyConnected(mx.sym.Activation(net, act_type="tanh"), num_hidden=3, name="last")
    return mx.sym.SoftmaxOutput(net, name="softmax"), ("data",), ("softmax_label",)


class ModuleTraining:
    """A module with its optimizer; its data depend on the step only."""

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        store: str = "no store",
        buckets: bool = False,
        like: ModuleTraining | None = None,
        fixed: Any = None,
    ):
        kvstore, devices = STORES[store]
        context = [mx.cpu(k) for k in range(devices)]
        self.lengths = (5, 3, 2) if buckets else (5,)
        if buckets:
            self.module = mx.mod.BucketingModule(by_length, 5, context=context)
        else:
            self.module = mx.mod.Module(layers()[0], context=context, fixed_param_names=fixed)
        self.module.bind([("data", (BATCH, 5))], [("softmax_label", (BATCH,))])
        mx.random.seed(5)
        np.random.seed(5)
        self.module.init_params(mx.init.Xavier())
        if like is not None:
            self.module.set_params(*like.module.get_params())
        if name.endswith("_ext") and kvstore is not None:
            options = {**options, "aggregate_num": 1}
        self.module.init_optimizer(kvstore, name, options)

    @property
    def owner(self) -> Any:
        """The module that has the optimizer."""
        return getattr(self.module, "_curr_module", self.module)

    def go(self, *steps: int) -> ModuleTraining:
        for step in range(*steps):
            self.module.forward_backward(batch(step, self.lengths[step % len(self.lengths)], BATCH))
            self.module.update()
        return self

    def everything(self) -> list[np.ndarray]:
        weights, _ = self.module.get_params()
        updater = self.owner._updater or self.owner._kvstore._updater
        states = [leaf for key in sorted(updater.states) for leaf in leaves(updater.states[key])]
        return [array.asnumpy() for array in (*(weights[k] for k in sorted(weights)), *states)]


def assert_same_modules(found: ModuleTraining, expected: ModuleTraining) -> None:
    both = found.everything(), expected.everything()
    assert len(both[0]) == len(both[1])
    for k, (a, b) in enumerate(zip(*both)):
        assert_same_bits(a, b, f"array {k}")


def of_module(member: Any, built_in: bool) -> dict[str, Any]:
    options = common(member)
    if built_in and member.built_in == "rmsprop":
        options.update(
            {k: options.pop(v) for k, v in {"gamma2": "momentum"}.items() if v in options}
        )
    return options if built_in else {**options, **member.ours}


# MXNet's load_optimizer_states leaves its file open.
@ONLY_IN_1
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("store", BOTH)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_module(member, store, tmp_path):
    """By MXNet's own save_optimizer_states and load_optimizer_states, and back."""
    stayed = ModuleTraining(member.built_in, of_module(member, True), store).go(0, 5)
    file = tmp_path / "old.states"
    stayed.owner.save_optimizer_states(str(file))
    left = ModuleTraining(member.name, of_module(member, False), store, like=stayed)
    mxadamax.load_states(left.module, file, member.built_in, COUNT)
    stayed.go(5, 10)
    assert_same_modules(left.go(5, 10), stayed)

    left.owner.save_optimizer_states(str(file))
    new = converted(file, "--from", member.name, "--to", member.built_in, *options_of(member))
    progress = {"begin_num_update": 10}
    returned = ModuleTraining(
        member.built_in, {**of_module(member, True), **progress}, store, like=left
    )
    returned.owner.load_optimizer_states(str(new))
    if member.built_in == "nadam":
        returned.owner._optimizer.m_schedule = left.owner._optimizer.m_schedule
    assert_same_modules(returned.go(10, 15), stayed.go(10, 15))


@ONLY_IN_1
@pytest.mark.parametrize("store", BOTH)
@pytest.mark.parametrize("name", ["adam", "nadam", "rmsprop"])
def test_bucketing_module(name, store, tmp_path):
    stayed = ModuleTraining(name, common(), store, buckets=True).go(0, 5)
    file = tmp_path / "old.states"
    stayed.owner.save_optimizer_states(str(file))
    left = ModuleTraining(f"{name}_ext", common(), store, buckets=True, like=stayed)
    mxadamax.load_states(left.module, file, name, COUNT)
    assert_same_modules(left.go(5, 10), stayed.go(5, 10))


@ONLY_IN_1
@pytest.mark.parametrize("name", ["adam", "nadam"])
def test_module_numbers_parameters_on_each_device(name, tmp_path):
    stayed = ModuleTraining(name, common(), "two devices").go(0, 5)
    file = tmp_path / "old.states"
    stayed.owner.save_optimizer_states(str(file))
    left = ModuleTraining(f"{name}_ext", common(), "two devices")
    places = [t.owner._exec_group.param_arrays for t in (left, stayed)]
    for mine, theirs in zip(*places):
        # They differ: each device has been updated with its own gradients.
        for array, other in zip(mine, theirs):
            array[:] = other
    mxadamax.load_states(left.module, file, name, COUNT)
    assert_same_modules(left.go(5, 10), stayed.go(5, 10))
    for mine, theirs in zip(*places):
        for array, other in zip(mine, theirs):
            assert_same_bits(array.asnumpy(), other.asnumpy())


@ONLY_IN_1
@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize("store", BOTH)
def test_module_with_a_file_that_counts(store, buckets, tmp_path):
    """The file of save_states needs no name; multipliers are those of the module's symbol."""
    stayed = ModuleTraining("nadam_ext", common(), store, buckets).go(0, 5)
    mxadamax.save_states(stayed.module, tmp_path / "states")
    again = ModuleTraining("nadam_ext", common(), store, buckets, like=stayed)
    mxadamax.load_states(again.module, tmp_path / "states")
    assert again.owner._optimizer.num_update == 5
    assert set(again.owner._optimizer.wd_mult) >= {"last_bias"}
    assert_same_modules(again.go(5, 10), stayed.go(5, 10))


@ONLY_IN_1
def test_module_with_frozen_parameters(tmp_path):
    fixed = ["first_bias", "last_weight"]
    stayed = ModuleTraining("adam", common(), fixed=fixed).go(0, 5)
    file = tmp_path / "old.states"
    stayed.owner.save_optimizer_states(str(file))
    left = ModuleTraining("adam_ext", common(), like=stayed, fixed=fixed)
    mxadamax.load_states(left.module, file, "adam", COUNT)
    assert_same_modules(left.go(5, 10), stayed.go(5, 10))


@ONLY_IN_1
@pytest.mark.parametrize(
    "wrote, store, message",
    [
        (
            "no store",
            "updates on the store",
            "states: holds a state of parameter 0, by its number, but the trainer knows its "
            "parameters by name, as 'first_weight': load it without updates on a key-value store",
        ),
        (
            "updates on the store",
            "no store",
            "states: holds a state of parameter '.*', by its name, but the trainer knows its "
            "parameters by number, as 0: load it with updates on a key-value store",
        ),
    ],
)
def test_module_with_states_of_other_updates(wrote, store, message, tmp_path):
    file = tmp_path / "states"
    ModuleTraining("adam", common(), wrote).go(0, 2).owner.save_optimizer_states(str(file))
    training = ModuleTraining("adam_ext", common(), store).go(0, 1)
    before = [array.tobytes() for array in training.everything()]
    with pytest.raises(ValueError, match=message):
        mxadamax.load_states(training.module, file, "adam", COUNT)
    assert [array.tobytes() for array in training.everything()] == before
    assert training.owner._optimizer.num_update == 1


@ONLY_IN_1
def test_modules_that_cannot_load(tmp_path):
    file = tmp_path / "states"
    ModuleTraining("adam", common()).go(0, 2).owner.save_optimizer_states(str(file))
    with pytest.raises(ValueError, match="the module has no optimizer yet: call its init_optimi"):
        mxadamax.load_states(mx.mod.Module(layers()[0]), file, "adam", COUNT)
    with pytest.raises(ValueError, match="optimizer must be one of mxadamax's, got MXNet's adam"):
        mxadamax.load_states(ModuleTraining("adam", common()).module, file, "adam", COUNT)
    other = ModuleTraining("adam_ext", common(), buckets=True)
    with pytest.raises(ValueError, match=r"parameter 3 \(of 4 in all\), but the trainer has 3 pa"):
        mxadamax.load_states(other.module, file, "adam", COUNT)
    states = pickle.loads(file.read_bytes())
    states[0] = tuple(array.T for array in states[0])
    (tmp_path / "other").write_bytes(pickle.dumps(states))
    training = ModuleTraining("adam_ext", common())
    message = r"other: parameter 0 \('first_weight'\): holds a state .*5, 6.* expected .*6, 5"
    with pytest.raises(ValueError, match=message):
        mxadamax.load_states(training.module, tmp_path / "other", "adam", COUNT)
    sequence = mx.mod.SequentialModule()
    sequence.optimizer_initialized = True
    with pytest.raises(ValueError, match="a SequentialModule keeps no states: give the Module"):
        mxadamax.load_states(sequence, file, "adam", COUNT)


@ONLY_IN_1
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_feed_forward(tmp_path):
    """It hands its states over by the key-value store that it is given, to a Module."""
    inputs = np.stack([batch(0, 5, BATCH).data[0].asnumpy()[0]] * BATCH * 5)
    inputs += np.arange(len(inputs))[:, None]

    def fit(name: str) -> tuple[Any, Any]:
        mx.random.seed(5)
        np.random.seed(5)
        store = mx.kv.create("local")
        options = {"learning_rate": 0.05, "wd": 0.01, "initializer": mx.init.Xavier()}
        if name.endswith("_ext"):
            options["aggregate_num"] = 1
        data = mx.io.NDArrayIter(inputs, np.arange(len(inputs)) % 3.0, BATCH)
        model = mx.model.FeedForward(layers()[0], num_epoch=1, optimizer=name, **options)
        model.fit(data, kvstore=store)
        return model, store

    (built_in, store), (model, of_ours) = fit("adam"), fit("adam_ext")
    for name, weight in built_in.arg_params.items():
        assert_same_bits(model.arg_params[name].asnumpy(), weight.asnumpy(), name)
    file = tmp_path / "states"
    store.save_optimizer_states(str(file))
    trainings = []
    for name, progress in (("adam", COUNT), ("adam_ext", {})):
        options = {"learning_rate": 0.05, "wd": 0.01, **progress}
        training = ModuleTraining(name, options, "updates on the store")
        training.module.set_params(built_in.arg_params, built_in.aux_params)
        trainings.append(training)
    trainings[0].owner.load_optimizer_states(str(file))
    mxadamax.load_states(trainings[1].module, file, "adam", COUNT)
    assert_same_modules(*(training.go(5, 10) for training in trainings))
    of_ours.save_optimizer_states(str(file))
    again = ModuleTraining("adam_ext", options, "updates on the store")
    again.module.set_params(model.arg_params, model.aux_params)
    mxadamax.load_states(again.module, file, "adam_ext", COUNT)
    assert_same_modules(again.go(5, 10), trainings[0])
