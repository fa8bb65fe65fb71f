# SPDX-License-Identifier: Apache-2.0
"""Learning rates, multipliers and other numbers that come as arrays of one."""

from __future__ import annotations

import fractions
import math

import mxnet as mx
import numpy as np
import pytest
from common import Run, assert_same_run, gradients, nd, network_shapes, parameters_of
from mxnet.gluon import Trainer, nn

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1, gluon_arrays

ARRAYS = {
    "numpy of no dimension": lambda x: np.array(x),
    "numpy of one": lambda x: np.array([x]),
    "numpy of two": lambda x: np.array([[x]]),
    "numpy scalar": np.float64,
    "numpy objects": lambda x: np.array([x], dtype=object),
    "mx.nd": lambda x: mx.nd.array([x], dtype="float64"),
    "mx.np": lambda x: mx.np.array(x, dtype="float64"),
    "fraction": fractions.Fraction,
}
"""What holds a number, to the last bit."""

both_ways = pytest.mark.parametrize("fused", [True, False], ids=["fused_step", "step"])
every_array = pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS.keys())

SHAPES = [(3, 2), (), (0,), (5,)]
OPTIONS = {
    "learning_rate": 0.3,
    "wd": 0.1,
    "clip_gradient": 0.7,
    "rescale_grad": 0.5,
    "clip_global_norm": 2.0,
}
OWN = {
    "adamax_ext": {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3},
    "adamw_ext": {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3},
    "nadam_ext": {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3, "schedule_decay": 0.01},
    "rmsprop_ext": {"rho": 0.8, "momentum": 0.5, "epsilon": 1e-3, "clip_weights": 1.5},
    "adadelta_ext": {"rho": 0.8, "epsilon": 1e-3},
    "sgd_ext": {"momentum": 0.5},
    "signum_ext": {"momentum": 0.5, "wd_lh": 0.1},
    "ftml_ext": {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3},
    "ftrl_ext": {"lamda1": 0.1, "beta": 0.5},
}


def starts():
    rng = np.random.RandomState(1)
    return [np.asarray(rng.standard_normal(shape), "float32") for shape in SHAPES]


def run_of(name, fused=True, **options):
    return Run(mx.optimizer.create(name, use_fused_step=fused, **options), starts())


def step_alike(*runs, steps=3, where=""):
    """The runs do the same in each of several steps."""
    for t, grads in enumerate(gradients(SHAPES, "float32", steps)):
        for run in runs:
            run.step(grads)
        for run in runs[1:]:
            assert_same_run(run, runs[0], f"{where} step {t + 1}")


@both_ways
@every_array
@pytest.mark.parametrize("name", OWN)
def test_every_hyperparameter_of_the_constructor(name, make, fused):
    options = {**OPTIONS, **OWN[name]}
    arrays = {option: make(value) for option, value in options.items()}
    run = run_of(name, fused, **arrays)
    step_alike(run_of(name, fused, **options), run)
    for option, value in options.items():
        found = getattr(run.optimizer, option)
        assert (type(found), found) == (float, value)


@both_ways
@every_array
def test_every_hyperparameter_set_between_steps(make, fused):
    options = {**OPTIONS, **OWN["adamax_ext"]}
    runs = [run_of("adamax_ext", fused, clip_global_norm=1.0) for _ in range(2)]
    step_alike(*runs)
    for option, value in options.items():
        attribute = "lr" if option == "learning_rate" else option
        setattr(runs[0].optimizer, attribute, value)
        setattr(runs[1].optimizer, attribute, make(value))
        step_alike(*runs, steps=2, where=option)


def scheduler_of(arrays):
    """`numpy.where(n < 3, .1, .01)` and the like, and what it gave."""
    given = []

    def scheduler(num_update):
        given.append(arrays(num_update))
        return given[-1]

    scheduler.base_lr = 0.1
    return scheduler, given


@both_ways
@every_array
@pytest.mark.parametrize("same_object", [False, True])
def test_scheduler_whose_rate_is_multiplied(make, same_object, fused):
    """Multipliers 1, 10 and 1: each parameter has its own rate, in every step."""
    one = make(0.25)
    scheduler, given = scheduler_of(lambda n: one if same_object else make(0.25))
    optimizer = mxadamax.SGD(learning_rate=None, lr_scheduler=scheduler, use_fused_step=fused)
    run = Run(optimizer, [np.zeros(2, "float32")] * 3)
    run.optimizer.set_lr_mult({1: 10})
    for t in range(1, 4):
        run.step([np.full(2, -1.0, "float32")] * 3)
        assert [float(w.asnumpy()[0]) for w in run.weights] == [0.25 * t, 2.5 * t, 0.25 * t]
    for array in given:
        value = array.asnumpy() if hasattr(array, "asnumpy") else array
        assert float(value) == 0.25


@both_ways
def test_scheduler_of_mxnet_with_a_base_that_is_an_array(fused):
    runs = []
    for base in (0.5, np.array(0.5)):
        scheduler = mx.lr_scheduler.FactorScheduler(step=1, factor=0.5, base_lr=base)
        runs.append(run_of("adamax_ext", fused, learning_rate=None, lr_scheduler=scheduler))
        runs[-1].optimizer.set_lr_mult({0: 3.0, 3: 0.5})
    step_alike(*runs, steps=4)


@both_ways
@every_array
def test_multipliers_in_tables(make, fused):
    runs = [run_of("sgd_ext", fused, learning_rate=0.5, wd=0.1) for _ in range(2)]
    factors = {0: 2.0, 3: 0.25}
    arrays = {index: make(factor) for index, factor in factors.items()}
    runs[0].optimizer.set_lr_mult(factors)
    runs[0].optimizer.set_wd_mult(factors)
    runs[1].optimizer.set_lr_mult(arrays)
    runs[1].optimizer.set_wd_mult(arrays)
    step_alike(*runs)
    assert runs[1].optimizer.lr_mult[0] is arrays[0]


@pytest.mark.parametrize("factor", [True, False, np.bool_(True), np.bool_(False), 0, 1])
def test_multipliers_that_say_whether_a_parameter_learns(factor):
    run = Run(mxadamax.SGD(learning_rate=0.5), [np.zeros(2, "float32")] * 2)
    run.optimizer.set_lr_mult({0: factor})
    run.step([np.full(2, -1.0, "float32")] * 2)
    assert [w.asnumpy()[0] for w in run.weights] == [0.5 * factor, 0.5]


def a_net():
    net = nn.Sequential()
    net.add(nn.Dense(2, in_units=3, use_bias=False), nn.Dense(1, in_units=2, use_bias=False))
    net.initialize(mx.init.Constant(0.5))
    return net


def backward(net):
    inputs = gluon_arrays.ones((4, 3))
    with mx.autograd.record():
        loss = (net(inputs) ** 2).sum()
    loss.backward()


def weights_of(net):
    return [p.data().asnumpy() for p in parameters_of(net).values()]


def trained(batch_size=4, options=None, prepare=lambda net, trainer: None):
    """The weights after each of three steps of a Trainer's."""
    with network_shapes():
        net = a_net()
        trainer = Trainer(net.collect_params(), "adamax_ext", options or {})
        prepare(net, trainer)
        found = []
        for _ in range(3):
            backward(net)
            trainer.step(batch_size)
            found += weights_of(net)
        return found


def assert_same(found, expected):
    assert all(np.array_equal(a, b) for a, b in zip(found, expected))
    assert len(found) == len(expected)


@every_array
def test_trainer_with_arrays(make):
    def plain(net, trainer):
        trainer.set_learning_rate(0.25)
        first, second = parameters_of(net).values()
        first.lr_mult, second.wd_mult = 2.0, 0.5

    def with_arrays(net, trainer):
        trainer.set_learning_rate(make(0.25))
        first, second = parameters_of(net).values()
        first.lr_mult, second.wd_mult = make(2.0), make(0.5)

    options, arrays = {"wd": 0.1, "clip_gradient": 1.0}, {"wd": make(0.1), "clip_gradient": make(1)}
    assert_same(trained(4, arrays, with_arrays), trained(4, options, plain))


BATCH_SIZES = {
    "mx.nd": lambda: mx.nd.array([4]),
    "mx.nd sum": lambda: mx.nd.array([1, 3]).sum(),
    "mx.nd float16": lambda: mx.nd.array([4], dtype="float16"),
    "mx.np": lambda: mx.np.array([4.0]),
    "mx.np sum of integers": lambda: mx.np.array([[1, 3]], dtype="int32").sum(axis=1),
    "numpy": lambda: np.array(4),
    "numpy sum": lambda: np.array([1, 3]).sum(),
    "numpy of one": lambda: np.array([4.0], "float32"),
}


@pytest.mark.parametrize("size", BATCH_SIZES.values(), ids=BATCH_SIZES.keys())
def test_batch_size(size):
    """`trainer.step(valid_length.sum())`, as textbooks have it."""
    assert_same(trained(size()), trained(4))


def test_rescale_grad_of_bfloat16():
    bfloat16 = np.dtype([("bfloat16", np.uint16)])
    optimizer = mxadamax.SGD(rescale_grad=mx.nd.array([0.25]).astype(bfloat16))
    assert (type(optimizer.rescale_grad), optimizer.rescale_grad) == (float, 0.25)


def test_batch_size_in_an_array_of_integers_that_loses_fractions():
    """`1.0 / mx.nd.array([4], dtype="int32")` is 0: MXNet's arithmetic, and nothing would learn."""
    with network_shapes():
        net = a_net()
        trainer = Trainer(net.collect_params(), "adamax_ext")
        backward(net)
        before = weights_of(net)
        for size in (4, 1):
            with pytest.raises(
                ValueError, match="^adamax_ext: rescale_grad must be a float, got an array of int32"
            ):
                trainer.step(mx.nd.array([size], dtype="int32"))
        assert_same(weights_of(net), before)
        trainer.step(4)
        assert trainer.optimizer.num_update == 1


@pytest.mark.parametrize("scale", [math.nan, math.inf, np.array(math.nan), mx.nd.array([math.nan])])
@both_ways
def test_scale_that_is_not_finite(scale, fused):
    run = run_of("adamax_ext", fused)
    step_alike(run, steps=1)
    refused(run, "rescale_grad must be finite, got (nan|inf)", {"rescale_grad": scale})


def refused(run, message, attributes):
    """With these attributes a step is refused, and changes nothing."""
    optimizer = run.optimizer
    kept = {name: getattr(optimizer, name) for name in attributes}
    weights = run.arrays()
    counts, updates = dict(optimizer._index_update_count), optimizer.num_update
    for name, value in attributes.items():
        setattr(optimizer, name, value)
    with pytest.raises(ValueError, match=f"^{optimizer.registered_name}: {message}"):
        run.step(next(gradients(SHAPES, "float32", 1)))
    for name, value in kept.items():
        setattr(optimizer, name, value)
    assert_same(run.arrays(), weights)
    assert (optimizer._index_update_count, optimizer.num_update) == (counts, updates)


def gives(value):
    return {"lr_scheduler": lambda num_update: value}


REFUSED = [
    (gives(math.nan), r"lr_scheduler\(3\) must be finite, got nan"),
    (gives(np.array(math.inf)), r"lr_scheduler\(3\) must be finite, got inf"),
    (gives(mx.nd.array([-math.inf])), r"lr_scheduler\(3\) must be finite, got -inf"),
    (gives(None), r"lr_scheduler\(3\) must be finite, got None"),
    (gives("0.1"), r"lr_scheduler\(3\) must be finite, got '0.1'"),
    (gives(np.array([0.1, 0.2])), r"lr_scheduler\(3\) must be finite, got array\(\[0.1, 0.2\]\)"),
    (gives(mx.nd.array([0.1, 0.2])), r"lr_scheduler\(3\) must be finite, got \n\[0.1 0.2\]"),
    (gives(np.array([])), r"lr_scheduler\(3\) must be finite, got array\(\["),
    (gives(1j), r"lr_scheduler\(3\) must be finite, got 1j"),
    ({"lr_mult": {3: math.nan}}, "parameter 3: lr_mult must be finite, got nan"),
    ({"lr_mult": {3: np.array([1.0, 2.0])}}, "parameter 3: lr_mult must be finite, got array"),
    ({"lr_mult": {3: None}}, "parameter 3: lr_mult must be finite, got None"),
    ({"wd_mult": {3: mx.nd.array([math.inf])}}, "parameter 3: wd_mult must be finite, got inf"),
    ({"lr": 1e200, "lr_mult": {3: 1e200}}, "parameter 3: lr is inf, expected a finite number"),
    ({"wd": 1e200, "wd_mult": {3: 1e200}}, "parameter 3: wd is inf, expected a finite number"),
    ({"lr": np.array(math.nan)}, r"learning_rate must be in \[0, inf\), got nan"),
    ({"lr": np.array([0.1, 0.1])}, r"learning_rate must be in \[0, inf\), got array"),
    ({"wd": mx.nd.array([-1.0])}, r"wd must be in \[0, inf\), got -1.0"),
    ({"clip_gradient": mx.nd.array([1, 2])}, r"clip_gradient must be in \[0, inf\] or None, got"),
    ({"beta1": np.array(1.0)}, r"beta1 must be in \[0, 1\), got 1.0"),
    ({"beta1": np.array([True])}, r"beta1 must be in \[0, 1\), got array"),
    ({"beta1": fractions.Fraction(10**400)}, r"beta1 must be in \[0, 1\), got Fraction"),
]


@both_ways
@pytest.mark.parametrize(("attributes", "message"), REFUSED)
@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True, "clip_global_norm": 1.0}])
def test_what_is_no_number_is_refused(attributes, message, options, fused):
    runs = [run_of("adamax_ext", fused, **options) for _ in range(2)]
    step_alike(*runs, steps=2)
    refused(runs[0], message, attributes)
    step_alike(*runs, steps=2)
    assert runs[0].optimizer.skipped_steps == 0


@both_ways
def test_scheduler_that_raises_counts_nothing(fused):
    runs = [run_of("nadam_ext", fused) for _ in range(2)]
    step_alike(*runs, steps=1)

    def scheduler(num_update):
        raise KeyError("no rate")

    optimizer = runs[0].optimizer
    optimizer.lr_scheduler = scheduler
    with pytest.raises(KeyError, match="no rate"):
        runs[0].step(next(gradients(SHAPES, "float32", 1)))
    optimizer.lr_scheduler = None
    assert optimizer.num_update == 1
    step_alike(*runs, steps=2)


@pytest.mark.parametrize("name", ["sgd_ext", "nag_ext", "adamax_ext", "rmsprop_ext"])
@pytest.mark.parametrize("value", [np.array([0.5, 0.5]), mx.nd.array([0.5, 0.5]), np.array(["a"])])
def test_constructors_refuse_what_is_no_number(name, value):
    option = "beta1" if name == "adamax_ext" else "momentum"
    with pytest.raises(ValueError, match=f"^{name}: {option} must be in"):
        mx.optimizer.create(name, **{option: value})
    with pytest.raises(ValueError, match=f"^{name}: learning_rate must be in"):
        mx.optimizer.create(name, learning_rate=value)


def test_learning_rates_set_to_what_is_no_number():
    optimizer = mxadamax.SGD(learning_rate=0.5)
    with pytest.raises(ValueError, match=r"^sgd_ext: learning_rate must be in \[0, inf\), got nan"):
        optimizer.set_learning_rate(np.array(math.nan))
    assert optimizer.learning_rate == 0.5


def test_shares_of_averages_that_are_arrays():
    optimizer = mxadamax.SGD(learning_rate=1.0, ema_decay=np.array([0.5]))
    weight, grad = nd(np.zeros(1, "float32")), nd(np.full(1, -1.0, "float32"))
    state = optimizer.create_state(0, weight)
    for _ in range(2):
        optimizer.fused_step([0], [weight], [grad], [state])
    # 1 and 2 with shares 1/3 and 2/3.
    np.testing.assert_allclose(state[1].asnumpy(), 5 / 3, rtol=1e-6)


def test_an_array_is_read_when_it_is_set():
    rate = np.array(0.5)
    optimizer = mxadamax.SGD()
    optimizer.lr = rate
    rate[...] = 7
    run = Run(optimizer, [np.zeros(1, "float32")])
    run.step([np.full(1, -1.0, "float32")])
    assert run.weights[0].asnumpy() == 0.5


@pytest.mark.skipif(IS_MXNET_1, reason="MXNet 1's AdaMax has another formula")
def test_a_built_in_that_was_trained_with_arrays(tmp_path):
    """Its file holds them, and the training goes on with the numbers that they hold."""
    file = str(tmp_path / "states")
    net = a_net()
    trainer = Trainer(net.collect_params(), "adamax", {"learning_rate": 0.25, "beta1": 0.5})
    backward(net)
    trainer.step(4)
    trainer.optimizer.lr = np.array(0.25)
    trainer.optimizer.wd = mx.nd.array([0.125])
    trainer.save_states(file)
    ours = Trainer(net.collect_params(), "adamax_ext", {"beta1": 0.5, "wd": 0.125})
    mxadamax.load_states(ours, file)
    assert (ours.optimizer.lr, ours.optimizer.wd) == (0.25, 0.125)
    assert type(ours.optimizer.lr) is type(ours.optimizer.wd) is float
    backward(net)
    ours.step(nd(np.array([4.0])))
    assert ours.optimizer.num_update == 2
