# SPDX-License-Identifier: Apache-2.0
"""`mxadamax.Trainer` does what Gluon's does: bits, states, counts, warnings and exceptions."""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import warnings
import weakref
from typing import Any, Callable

import mxnet as mx
import numpy as np
import pytest
from common import assert_same_bits, leaves, network_shapes, run_python
from family import FAMILY, Member
from mxnet import autograd, gluon
from mxnet.optimizer import Optimizer, Updater

import mxadamax
from mxadamax import acceleration, stand_in
from mxadamax import trainer as fast
from mxadamax._mxnet.compatibility import IS_MXNET_1, gluon_arrays
from mxadamax.optimizers.arithmetic import built_in_class

SHAPES = [(3, 4), (17,), (2, 3, 2), (1000,), (5,), (6,), (7,), (1,), (8, 2), (9,)]
"""As many as a native step is worth it for."""

OPTIONS = {"wd": 0.01, "clip_gradient": 0.5}
BUILT_INS = [m for m in FAMILY if built_in_class(m.built_in)] + [Member("sgld_ext", "sgld")]
amp: Any = importlib.import_module("mxnet.contrib.amp" if IS_MXNET_1 else "mxnet.amp")


@pytest.fixture
def native_steps(monkeypatch):
    """The outcome of each attempt to repeat a step."""
    outcomes = []

    def attempt(*given):
        outcomes.append(updated_as_before(*given))
        return outcomes[-1]

    updated_as_before = fast.updated_as_before
    monkeypatch.setattr(fast, "updated_as_before", attempt)
    monkeypatch.setattr(acceleration, "_report", acceleration.AccelerationReport())
    yield outcomes
    mxadamax.decelerate()


def array(numbers: Any, **kwargs: Any) -> Any:
    """An array of the kind that parameters are of."""
    return (mx.np if mx.util.is_np_array() else mx.nd).array(numbers, **kwargs)


class Training:
    """Parameters with a Trainer."""

    def __init__(
        self,
        trainer: type,
        optimizer: Any,
        shapes: Any = SHAPES,
        dtypes: Any = ("float32",),
        devices: int = 1,
        prepare: Callable[[list[gluon.Parameter]], Any] = list,
        **kwargs: Any,
    ):
        rng = np.random.RandomState(1)
        self.devices = [mx.cpu(k) for k in range(devices)]
        params = []
        for k, shape in enumerate(shapes):
            dtype = dtypes[k % len(dtypes)]
            start = array(rng.standard_normal(shape), dtype=dtype)
            param = gluon.Parameter(f"p{k}", shape=shape, dtype=dtype, init=mx.init.Constant(start))
            param.initialize(**{"ctx" if IS_MXNET_1 else "device": self.devices})
            param.set_data(start)
            params.append(param)
        self.params = list(prepare(params))
        options = {}
        if isinstance(optimizer, tuple):
            optimizer, options = optimizer
        elif not isinstance(optimizer, str):
            optimizer = optimizer()
        options = {**options} or None
        self.trainer = trainer(self.params, optimizer, options, **kwargs)

    def backward(self, seed: int, of: Callable[[int], bool] = lambda k: True) -> None:
        """Compute gradients of some parameters."""
        rng = np.random.RandomState(seed)
        losses = []
        with autograd.record():
            for device in self.devices:
                for k, param in enumerate(self.trainer._params):
                    factor = rng.standard_normal(param.shape)
                    if param.grad_req != "null" and of(k):
                        weight = param.data(device)
                        factor = array(factor, ctx=device).astype(weight.dtype)
                        losses.append((weight * factor).sum().astype("float32"))
        autograd.backward(losses)

    def snapshot(self) -> dict[str, Any]:
        """What can be seen of the training."""
        trainer = self.trainer
        optimizer = trainer._optimizer
        updaters = trainer._updaters
        if trainer._kvstore and trainer._update_on_kvstore:
            updaters = [trainer._kvstore._updater] if trainer._kvstore._updater else []
        arrays, fresh = [], []
        for param in self.params:
            arrays += [a.asnumpy() for a in (*(param._data or ()), *(param._grad or ()))]
            fresh += [bool(a._fresh_grad) for a in param._data or ()]
        states = [leaves(u.states[i]) for u in updaters for i in u.states]
        return {
            "arrays": arrays,
            "states": [numbers(leaf) for state in states for leaf in state],
            "keys": [list(u.states) for u in updaters],
            "synced": [u.states_synced for u in updaters],
            "fresh": fresh,
            "counts": copy.deepcopy(optimizer._all_index_update_counts),
            "now": optimizer._index_update_count,
            "num_update": optimizer.num_update,
            "rescale_grad": optimizer.rescale_grad,
            "rate": trainer.learning_rate,
        }


def numbers(array: mx.nd.NDArray) -> np.ndarray:
    """The numbers of an array; the bits of those that NumPy does not have."""
    found = array.asnumpy()
    return found.view(np.uint16) if found.dtype.kind == "V" else found


def outcome(action: Callable[[], Any]) -> Any:
    """The warnings of an action, and its exception."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            action()
            mx.nd.waitall()
            error = None
        except Exception as found:
            error = f"{type(found).__name__}: {found}"
    return [str(w.message) for w in caught if "gradient" in str(w.message)], error


def assert_same(found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    for name in expected:
        if name in ("arrays", "states"):
            assert len(found[name]) == len(expected[name]), where
            for k, (a, b) in enumerate(zip(found[name], expected[name])):
                assert_same_bits(a, b, f"{where}, {name} {k}")
        else:
            assert found[name] == expected[name], f"{where}, {name}"


Change = Callable[[Training, int], Any]


def compare(
    optimizer: Any,
    change: Change = lambda training, step: None,
    steps: int = 8,
    step: Callable[[Training], Any] = lambda training: training.trainer.step(3),
    backward: Change = lambda training, step: training.backward(step),
    **kwargs: Any,
) -> list[Any]:
    """Train with Gluon's Trainer and with ours: what can be seen is the same after every step.

    With Gluon's, each parameter has scalars of its own. Returns the outcome of each step.
    """
    trainings = [Training(cls, optimizer, **kwargs) for cls in (gluon.Trainer, mxadamax.Trainer)]
    trainings[0].trainer.optimizer._forms_groups = lambda: False
    outcomes = []
    for k in range(steps):
        found = []
        for training in trainings:
            mx.random.seed(k)

            def run(training=training, k=k):
                change(training, k)
                backward(training, k)
                return step(training)

            found.append(outcome(run))
        assert found[0] == found[1], f"step {k}"
        outcomes.append(found[0][1])
        assert_same(trainings[1].snapshot(), trainings[0].snapshot(), f"step {k}")
    return outcomes


def accelerated_compare(optimizer: Any, steps: int = 8, **kwargs: Any) -> None:
    """Train with one of MXNet's optimizers, plainly and accelerated."""
    plain, native = (Training(gluon.Trainer, optimizer, **kwargs) for _ in range(2))
    for k in range(steps):
        for training in (plain, native):
            with mxadamax.accelerated() if training is native else contextlib.nullcontext():
                mx.random.seed(k)
                training.backward(k)
                training.trainer.step(3)
        found, expected = native.snapshot(), plain.snapshot()
        # Some of MXNet's optimizers leave gradients rescaled.
        for each in (found, expected):
            each["arrays"] = each["arrays"][::2]
        assert_same(found, expected, f"step {k}")


both_kinds_of_arrays = pytest.mark.parametrize(
    "kind", ["legacy"] if IS_MXNET_1 else ["legacy", "numpy"]
)


def arrays_of_kind(kind: str) -> Any:
    return mx.util.np_array(kind == "numpy")


@both_kinds_of_arrays
@pytest.mark.parametrize("member", FAMILY, ids=str)
def test_every_optimizer(member, kind, native_steps):
    with arrays_of_kind(kind):
        compare(lambda: member.create(**OPTIONS))
    assert native_steps == [False] + 7 * [True]


@pytest.mark.parametrize("name", ["sgld_ext", "groupadagrad_ext", "lbsgd_ext"])
def test_optimizers_that_prepare_each_parameter(name, native_steps):
    if name not in Optimizer.opt_registry:
        pytest.skip("not with this MXNet")
    compare(name, shapes=[(3, 4), (5, 2), (7, 1)])
    assert native_steps.count(True) == 7


def test_rates_that_depend_on_names(native_steps):
    """LARS leaves some as they are."""
    names = {0: "weight", 1: "first_bias", 2: "weight", 3: "second_gamma"}
    compare(lambda: mxadamax.LARS(param_idx2name=names, momentum=0.9, wd=0.1))
    assert native_steps == [False] + 7 * [True]


@pytest.mark.parametrize("member", BUILT_INS, ids=str)
def test_every_optimizer_of_mxnet(member, native_steps):
    def make():
        return member.create_built_in(**OPTIONS)

    if IS_MXNET_1 and member.built_in == "dcasgd" and member.options:
        pytest.skip("MXNet's fails")
    accelerated_compare(make)
    assert native_steps == [False] + 7 * [True]
    counts = mxadamax.acceleration_report()[member.built_in]
    assert sum(counts.values()) == 8 * len(SHAPES)


@pytest.mark.parametrize("name", ["groupadagrad", "lbsgd"])
def test_what_is_left_to_mxnet_is_gluons_own_step(name, native_steps):
    if built_in_class(name) is None:
        pytest.skip("not with this MXNet")
    accelerated_compare(name, shapes=[(3, 4), (5, 2), (7, 1)])
    assert native_steps == 8 * [False]
    counts = mxadamax.acceleration_report()[name]
    assert counts["native"] == 0 and sum(counts.values()) == 8 * 3


@pytest.mark.parametrize("name", ["adam", "adamax"])
def test_optimizers_of_mxnet_are_gluons_own_if_nothing_accelerates(name, native_steps):
    compare(name)
    assert native_steps == 8 * [False]


def test_our_optimizers_in_gluons_trainer_while_it_is_accelerated(native_steps):
    accelerated_compare("adam_ext")
    assert native_steps == [False] + 7 * [True]


@pytest.mark.parametrize("name", ["adam", "adam_ext"])
def test_ours_while_mxnet_is_accelerated(name, native_steps):
    with mxadamax.accelerated():
        training = Training(mxadamax.Trainer, name)
        for k in range(4):
            training.backward(k)
            training.trainer.step(1)
    assert native_steps.count(True) == 3


@pytest.mark.parametrize("name", ["adam_ext", "sgd_ext"])
def test_stale_gradients(name, native_steps):
    """An exception at the first of them; those before it are stale from then on, as in Gluon."""

    def backward(training, step):
        training.backward(step, (lambda k: k != 4) if step in (2, 5) else (lambda k: True))

    outcomes = compare(name, backward=backward)
    stale = [k for k, error in enumerate(outcomes) if error is not None]
    assert stale == [2, 5]
    assert "has not been updated by backward since last `step`" in outcomes[2]
    assert native_steps == [False, True, False, True, True, False, True, True]


def test_stale_gradients_that_are_ignored(native_steps):
    def backward(training, step):
        training.backward(step, lambda k: step < 2 or step > 6 or (k + step) % 3 != 0)

    def step(training):
        training.trainer.step(2, ignore_stale_grad=True)

    compare("adam_ext", step=step, backward=backward, steps=9)
    # From then on, counts differ.
    assert native_steps == [False, True, False, False, False, False, False, True, True]


def test_a_parameter_without_gradients_at_first(native_steps):
    """It has no state then."""

    def backward(training, step):
        training.backward(step, lambda k: step >= 3 or k != 2)

    def step(training):
        training.trainer.step(1, ignore_stale_grad=True)

    compare("adamax_ext", step=step, backward=backward, steps=9)
    assert native_steps[-1]


@pytest.mark.parametrize("overflows", [False, True])
def test_automatic_mixed_precision(overflows, monkeypatch):
    # As `amp.init` leaves it, which needs a GPU.
    monkeypatch.setattr(amp.amp, "_amp_initialized", True)
    monkeypatch.setattr(amp.amp, "_amp_loss_scale_initialized", True)

    def change(training, step):
        if step == 1:
            amp.init_trainer(training.trainer)

    def backward(training, step):
        if step < 1:
            training.backward(step)
            return
        weights = [param.data() for param in training.params]
        with autograd.record():
            loss = sum((weight * weight).sum() for weight in weights)
            if overflows and step == 3:
                loss = loss * 1e38
            with amp.scale_loss(loss, training.trainer) as scaled:
                scaled.backward()
        if step == 5:
            amp.unscale(training.trainer)

    compare("adam_ext", change=change, backward=backward)


STORES = [(store, on) for store in ("local", "device", None) for on in (None, True, False)]


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("store, update_on_kvstore", STORES)
def test_devices_and_stores(store, update_on_kvstore, devices, native_steps):
    options = {"aggregate_num": 1} if update_on_kvstore else {}
    given = {"kvstore": store, "update_on_kvstore": update_on_kvstore, "devices": devices}
    compare(lambda: mxadamax.Adam(**OPTIONS, **options), **given)
    has_store = store is not None and devices > 1
    on_store = has_store and (update_on_kvstore or (IS_MXNET_1 and update_on_kvstore is None))
    assert any(native_steps) == (not on_store and not options)


@pytest.mark.parametrize("update_on_kvstore", [None, True, False])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_an_optimizer_of_mxnet_on_several_devices(name, update_on_kvstore, native_steps):
    accelerated_compare(name, devices=2, update_on_kvstore=update_on_kvstore)
    assert any(native_steps) == (update_on_kvstore is False)


@pytest.mark.parametrize("devices", [1, 2])
def test_gradients_that_are_changed_after_they_are_reduced(devices, native_steps):
    def step(training):
        if devices > 1:
            training.trainer.allreduce_grads()
        for param in training.params:
            for grad in param.list_grad():
                grad *= 0.5
        training.trainer.update(4)

    compare("adam_ext", step=step, devices=devices, update_on_kvstore=False)
    assert native_steps == [False] + 7 * [True]


def test_shared_parameters(native_steps):
    """MXNet 2 updates each once; MXNet 1 has them once already."""

    def prepare(params):
        return params if IS_MXNET_1 else [params[0], params[0], *params[1:], params[3]]

    compare("adam_ext", prepare=prepare)
    assert native_steps == [False] + 7 * [True]


@pytest.mark.parametrize("request_of", ["add", "null", "write"])
def test_other_grad_reqs(request_of, native_steps):
    def change(training, step):
        if step in (3, 5):
            training.params[2].grad_req = request_of if step == 3 else "write"

    compare("adam_ext", change=change)
    assert native_steps[:3] == [False, True, True]
    assert native_steps[3] == (request_of == "write")
    assert native_steps[-1]


def test_constants_and_frozen_parameters(native_steps):
    def prepare(params):
        value = gluon_arrays.ones((3,))
        constant = gluon.Constant("c", value) if IS_MXNET_1 else gluon.Constant(value)
        constant.initialize()
        params[1].grad_req = "null"
        return [*params, constant]

    compare("adam_ext", prepare=prepare)
    assert native_steps == [False] + 7 * [True]


CHANGES: dict[str, Change] = {
    "cast": lambda t, step: [p.cast("float64") for p in t.params],
    "reset_ctx": lambda t, step: [p.reset_ctx(mx.cpu(0)) for p in t.params],
    "set_data": lambda t, step: [p.set_data(p.data() * 0.5) for p in t.params],
    "attach_grad": lambda t, step: [p.data().attach_grad() for p in t.params],
    "zero_grad": lambda t, step: [p.zero_grad() for p in t.params],
    "lr_mult": lambda t, step: setattr(t.params[2], "lr_mult", 0.25 * step),
    "wd_mult": lambda t, step: setattr(t.params[3], "wd_mult", 3),
    "overflow": lambda t, step: [
        t.trainer.set_learning_rate(1e10),
        setattr(t.params[2], "lr_mult", 1e300),
    ],
    "no lr_mult": lambda t, step: setattr(t.params[2], "lr_mult", -0.0),
    "rate": lambda t, step: t.trainer.set_learning_rate(0.1 / step),
    "wd": lambda t, step: setattr(t.trainer.optimizer, "wd", 0.1),
    "clip_gradient": lambda t, step: setattr(t.trainer.optimizer, "clip_gradient", 0.1),
    "clip_global_norm": lambda t, step: setattr(t.trainer.optimizer, "clip_global_norm", 0.1),
    "skip_nonfinite": lambda t, step: setattr(t.trainer.optimizer, "skip_nonfinite", True),
    "no wd": lambda t, step: setattr(t.trainer.optimizer, "wd", -1.0),
    "bad beta": lambda t, step: setattr(t.trainer.optimizer, "beta1", 2.0 if step < 5 else 0.9),
    "bad lr_mult": lambda t, step: setattr(t.params[2], "lr_mult", np.nan if step < 5 else 1.0),
    "numerics": lambda t, step: setattr(t.trainer.optimizer, "numerics", "portable"),
    "no numpy arrays": lambda t, step: setattr(t.trainer.optimizer, "allow_np_array", False),
    "reference": lambda t, step: setattr(t.trainer.optimizer, "use_fused_step", False),
    "aggregate_num": lambda t, step: setattr(t.trainer.optimizer, "aggregate_num", 3),
    "count": lambda t, step: t.trainer.optimizer._index_update_count.update({2: 20 + step}),
    "counts": lambda t, step: t.trainer.optimizer._index_update_count.clear(),
    "state": lambda t, step: t.trainer._updaters[0].states.update(
        {1: t.trainer.optimizer.create_state(1, mx.nd.ones((17,)))}
    ),
    "no state": lambda t, step: t.trainer._updaters[0].states.pop(1),
    "state not synced": lambda t, step: t.trainer._updaters[0].states_synced.update({1: False}),
    "grad moved": lambda t, step: [g._grad.__setitem__(0, g._grad[0]) for g in t.params],
    "order": lambda t, step: t.trainer._params.reverse(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_between_steps(change, native_steps):
    def changed(training, step):
        if step in (3, 5):
            change(training, step)

    compare(lambda: mxadamax.Adam(**OPTIONS), change=changed)
    assert native_steps[1:3] == [True, True]


def test_gradients_in_other_arrays(native_steps):
    """What `attach_grad` of the weight, or a new array in `_grad`, leaves in the parameter."""

    def change(training, step):
        if step in (2, 4):
            for param in training.params[:3]:
                grad = mx.nd.zeros(param.shape) if step == 2 else param.data() * 0
                param._grad = [grad]
                autograd.mark_variables([param.data()], [grad])

    compare("adam_ext", change=change)
    assert native_steps == [False, True, False, True, False, True, True, True]


def test_a_weight_in_another_array(native_steps):
    """Which keeps its gradient."""

    def change(training, step):
        if step == 3:
            param = training.params[1]
            weight = param.data().copy()
            autograd.mark_variables([weight], param._grad)
            param._data = [weight]

    compare("adam_ext", change=change)
    assert native_steps == [False, True, True, False] + 4 * [True]


def test_an_array_that_becomes_another_in_place(native_steps):
    """The same object of Python's, with another array of MXNet's behind it."""

    def change(training, step):
        if step == 3:
            training.params[1]._grad[0].__setstate__(gluon_arrays.ones((5,)).__getstate__())

    def backward(training, step):
        if step != 3:
            training.backward(step)
        else:
            for param in training.params:
                param.data()._fresh_grad = True

    outcomes = compare("adam_ext", change=change, backward=backward, steps=4)
    assert "gradient has shape (5,), weight has (17,)" in outcomes[3]
    assert native_steps == [False, True, True, False]


def test_dtypes_in_one_step(native_steps):
    options = {"multi_precision": True}
    compare(lambda: mxadamax.Adam(**OPTIONS, **options), dtypes=("float32", "float16", "float64"))
    assert native_steps == [False] + 7 * [True]


@pytest.mark.parametrize("at_once", [None, 3])
@pytest.mark.parametrize("name", ["adam", "sgd", "sgld"])
def test_dtypes_of_an_optimizer_of_mxnet(name, at_once, native_steps):
    """The parameters stay in MXNet's order: by dtype, where it updates several at once."""
    if at_once is not None and IS_MXNET_1:
        pytest.skip("takes one parameter a call")
    options = {} if at_once is None else {"aggregate_num": at_once}
    accelerated_compare((name, options), dtypes=("float32", "float64"))
    assert native_steps == [False] + 7 * [True]
    assert sum(mxadamax.acceleration_report()[name].values()) == 8 * len(SHAPES)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_small_parameter_alone(name, native_steps):
    """An operator of MXNet's takes less time for it."""
    accelerated_compare(name, shapes=SHAPES[:1])
    assert mxadamax.acceleration_report()[name] == {"native": 0, stand_in.SMALL: 8}
    assert native_steps == [False] + 7 * [True]


def test_dtypes_that_an_option_refuses(native_steps):
    """MXNet 1 makes a call for each."""

    def change(training, step):
        if step == 3:
            training.trainer.optimizer.clip_global_norm = 0.1

    outcomes = compare("adam_ext", change=change, dtypes=("float32", "float64"), steps=5)
    assert ("for each dtype" in str(outcomes[3])) == IS_MXNET_1


OPTIONS_OF_OURS: list[dict[str, Any]] = [
    {"ema_decay": 0.9},
    {"state_dtype": {".*": "bfloat16"}},
    {"clip_global_norm": 0.1},
    {"skip_nonfinite": True},
    {"decoupled_wd": True, "maximize": True},
    {"numerics": "portable"},
]


@pytest.mark.parametrize("options", OPTIONS_OF_OURS, ids=str)
def test_options(options, native_steps):
    compare(lambda: mxadamax.Adam(**OPTIONS, **options))
    assert native_steps == [False] + 7 * [True]


class Counting(mx.lr_scheduler.LRScheduler):
    """A scheduler that changes with every call."""

    calls = 0

    def __call__(self, num_update):
        self.calls += 1
        return 0.1 / self.calls


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "factor": lambda: mx.lr_scheduler.FactorScheduler(step=2, factor=0.7),
    "counting": Counting,
}


@pytest.mark.parametrize("name", ["adam", "adam_ext", "sgd", "sgd_ext"])
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers(name, scheduler, native_steps):
    def make():
        return mx.optimizer.create(name, lr_scheduler=scheduler())

    if name.endswith("_ext"):
        compare(make)
    else:
        accelerated_compare(make)
    assert native_steps == [False] + 7 * [True]


def test_multipliers_of_many_values(native_steps):
    def change(training, step):
        for k, param in enumerate(training.params):
            param.lr_mult = 1.0 + k * (step > 2)
            param.wd_mult = float(k % 2)

    compare(lambda: mxadamax.Adamax(**OPTIONS), change=change)


def net_of_layers() -> gluon.nn.HybridSequential:
    net = gluon.nn.HybridSequential()
    with net.name_scope() if IS_MXNET_1 else contextlib.nullcontext():
        net.add(gluon.nn.Dense(6, activation="relu"), gluon.nn.BatchNorm())
        net.add(*(gluon.nn.Dense(5) for _ in range(4)))
    return net


@pytest.mark.parametrize("name", ["adam_ext", "adam"])
def test_a_network(name, native_steps, tmp_path):
    """Deferred initialization, evaluation between steps, files of parameters and of states."""

    def run(trainer, accelerates):
        mx.random.seed(3)
        np.random.seed(3)
        rng = np.random.RandomState(0)
        with network_shapes(), mxadamax.accelerated() if accelerates else contextlib.nullcontext():
            net = net_of_layers()
            net.initialize(mx.init.Xavier())
            net.hybridize()
            trained = trainer(net.collect_params(), name, {"learning_rate": 0.05})
            found = []
            for k in range(12):
                inputs = gluon_arrays.array(rng.standard_normal((4, 3)).astype("float32"))
                with autograd.record():
                    loss = (net(inputs) ** 2).mean()
                loss.backward()
                trained.step(4)
                if k == 4:
                    net.save_parameters(str(tmp_path / "net"))
                    trained.save_states(str(tmp_path / "states"))
                if k == 8:
                    net.load_parameters(str(tmp_path / "net"))
                    trained.load_states(str(tmp_path / "states"))
                found.append(net(inputs).asnumpy())
            return found, trained._optimizer.num_update

    expected, count = run(gluon.Trainer, False)
    found, found_count = run(mxadamax.Trainer, name == "adam")
    assert count == found_count
    for a, b in zip(found, expected):
        assert_same_bits(a, b)
    assert native_steps.count(True) >= 9


class Doubled(mxadamax.Adam):
    """An optimizer that a program derives from ours."""

    def scalars(self, lrs, updates):
        rates = [lr * (1 + k) for k, lr in enumerate(lrs)]
        return super().scalars(rates, updates)


def test_a_class_of_a_program(native_steps):
    compare(Doubled)
    assert native_steps == 8 * [False]


def test_a_scalars_that_a_program_replaces():
    def change(training, step):
        optimizer = training.trainer.optimizer
        if step == 2:
            original = optimizer.scalars
            optimizer.scalars = lambda lrs, updates: original(
                [k * 0.1 for k in range(len(lrs))], updates
            )

    compare("adam_ext", change=change)


def test_an_update_that_a_program_replaces(monkeypatch, native_steps):
    seen = []
    training = Training(mxadamax.Trainer, "adam_ext")
    original = Updater.__call__
    for k in range(5):
        if k == 3:
            monkeypatch.setattr(
                Updater,
                "__call__",
                lambda *given: (seen.append(k), original(*given)),  # noqa: B023
            )
        training.backward(k)
        training.trainer.step(1)
    assert seen == [3, 4]
    assert native_steps == [False, True, True, False, False]


class Renamed(gluon.Parameter):
    """A parameter that tells something else of itself."""

    def list_grad(self):
        return [grad * 2 for grad in super().list_grad()]


def test_parameters_of_another_class(native_steps):
    def prepare(params):
        params[1].__class__ = Renamed
        return params

    compare("adam_ext", prepare=prepare)
    assert native_steps == 8 * [False]


def test_an_interrupt_leaves_counts_as_they_were(monkeypatch):
    training = Training(mxadamax.Trainer, "adam_ext")
    for k in range(3):
        training.backward(k)
        training.trainer.step(1)
    before = training.snapshot()

    def interrupted(*given, **kwargs):
        raise KeyboardInterrupt

    training.backward(3)
    monkeypatch.setattr("mxadamax.optimizers.native_step._table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.trainer.step(1)
    monkeypatch.undo()
    found = training.snapshot()
    for name in ("counts", "now", "num_update"):
        assert found[name] == before[name]
    training.backward(4)
    training.trainer.step(1)
    assert training.trainer.optimizer.num_update == 4


def test_where_every_step_is_another_the_last_one_is_not_remembered_each_time(monkeypatch):
    looked = []
    original = fast._step_of
    monkeypatch.setattr(fast, "_step_of", lambda t: looked.append(1) or original(t))
    training = Training(mxadamax.Trainer, "adam_ext")
    for k in range(60):
        for param in training.params:
            param.reset_ctx(mx.cpu(0))
        training.backward(k)
        training.trainer.step(1)
    assert len(looked) < 10


def test_nothing_is_held_after_a_trainer():
    training = Training(mxadamax.Trainer, "adam_ext")
    for k in range(4):
        training.backward(k)
        training.trainer.step(1)
    # A parameter that knows its trainer, as some programs have it.
    training.params[0].owner = training.trainer
    known = weakref.ref(training.trainer), weakref.ref(training.params[0])
    del training
    gc.collect()
    assert [reference() for reference in known] == [None, None]


class Equal(mxadamax.Trainer):
    """A trainer that is equal to others, and has no hash."""

    def __eq__(self, other):
        return isinstance(other, Equal)


def test_a_trainer_that_cannot_be_looked_up(native_steps):
    training = Training(Equal, "adam_ext")
    for k in range(3):
        training.backward(k)
        training.trainer.step(1)
    assert native_steps == 3 * [False]
    assert training.trainer.optimizer.num_update == 3


def test_a_step_that_can_never_be_repeated_is_not_looked_at_each_time(monkeypatch):
    looked = []
    original = fast._step_of
    monkeypatch.setattr(fast, "_step_of", lambda t: looked.append(1) or original(t))
    training = Training(mxadamax.Trainer, "adam_ext", shapes=SHAPES[:2])
    training.params[1].__class__ = Renamed
    for k in range(60):
        training.backward(k)
        training.trainer.step(1)
    assert len(looked) < 10


def test_undoing_restores_gluons_trainer():
    before = gluon.Trainer._update
    with mxadamax.accelerated():
        assert gluon.Trainer._update is not before
    assert gluon.Trainer._update is before


def test_a_trainer_is_gluons():
    assert issubclass(mxadamax.Trainer, gluon.Trainer)
    assert "Trainer" in mxadamax.__all__
    assert isinstance(mxadamax.Adam(), Optimizer)


def test_native_steps_after_an_acceleration_that_has_ended():
    """What is MXNet's own does not depend on when the Trainer is imported."""
    code = """
import mxadamax
import mxnet as mx
from mxnet import autograd, gluon
with mxadamax.accelerated():
    pass
param = gluon.Parameter("p", shape=(3,), init="ones")
param.initialize()
trainer = mxadamax.Trainer([param], "adam_ext", kvstore=None)
from mxadamax import trainer as fast
attempt, outcomes = fast.updated_as_before, []
fast.updated_as_before = lambda *given: outcomes.append(attempt(*given)) or outcomes[-1]
for _ in range(3):
    with autograd.record():
        loss = param.data().sum()
    loss.backward()
    trainer.step(1)
print(outcomes)
"""
    assert run_python(code).endswith("[False, True, True]\n")
