# SPDX-License-Identifier: Apache-2.0
"""Module of MXNet 1 trains with these optimizers as with its own: by name, by object, and resumed."""

from __future__ import annotations

import warnings
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from bits import assert_same_bits
from buckets import batch, by_length
from common import leaves, network_shapes

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1

pytestmark = pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 has no Module")

BATCH, BATCHES = 10, 4
OPTIONS = {"learning_rate": 0.02, "wd": 0.05, "clip_gradient": 0.3}
NAMES = ["adamax_ext", "adam_ext", "nadam_ext", "sgd_ext", "nag_ext", "rmsprop_ext"]
BY_OPERATORS = {"use_fused_step": False, "aggregate_num": 1}
"""The same formulas computed by MXNet's operators, one parameter after another."""

DEVICES = {
    "no kvstore": (None, 1),
    "local": ("local", 1),
    "updates on the kvstore": ("local", 2),
    "device": ("device", 2),
}


@pytest.fixture(autouse=True)
def shapes():
    with network_shapes():
        yield


def symbol(width: int = 6) -> Any:
    """Layers of which two share their weight."""
    shared = mx.sym.Variable("shared_weight", shape=(width, width))
    net = mx.sym.Variable("data")
    for name in ("first", "second"):
        net = mx.sym.FullyConnected(net, weight=shared, num_hidden=width, name=name)
        net = mx.sym.Activation(net, act_type="tanh")
    net = mx.sym.FullyConnected(net, num_hidden=3, name="last")
    return mx.sym.SoftmaxOutput(net, name="softmax")


def batches(width: int = 6) -> Any:
    random = np.random.RandomState(0)
    inputs = random.standard_normal((BATCH * BATCHES, width)).astype("float32")
    labels = random.randint(0, 3, BATCH * BATCHES).astype("float32")
    return mx.io.NDArrayIter(inputs, labels, BATCH, label_name="softmax_label")


def arrays_of(module: Any) -> list[np.ndarray]:
    """Weights of the first device, in a fixed order."""
    weights, _ = module.get_params()
    return [weights[name].asnumpy() for name in sorted(weights)]


def fit(
    optimizer: Any,
    options: dict[str, Any] | None = None,
    kvstore: str | None = "local",
    devices: int = 1,
    module: Any = None,
    epochs: tuple[int, int] = (0, 2),
) -> tuple[Any, list[list[np.ndarray]]]:
    """Train as programs do; the module, and its weights after every step."""
    module = module or mx.mod.Module(symbol(), context=[mx.cpu(k) for k in range(devices)])
    steps: list[list[np.ndarray]] = []
    mx.random.seed(3)
    np.random.seed(3)
    module.fit(
        batches(),
        optimizer=optimizer,
        optimizer_params=dict(options or {}),
        kvstore=kvstore,
        begin_epoch=epochs[0],
        num_epoch=epochs[1],
        initializer=mx.init.Xavier(),
        batch_end_callback=lambda _: steps.append(arrays_of(module)),
    )
    assert len(steps) == BATCHES * (epochs[1] - epochs[0])
    return module, steps


def assert_same_steps(found: list[list[np.ndarray]], expected: list[list[np.ndarray]]) -> None:
    assert len(found) == len(expected)
    for step, (a, b) in enumerate(zip(found, expected)):
        for k, (one, other) in enumerate(zip(a, b)):
            assert_same_bits(one, other, f"step {step}, array {k}")


def options_for(devices: str) -> dict[str, Any]:
    """What a key-value store needs that updates one parameter at a time."""
    return {"aggregate_num": 1} if DEVICES[devices][1] > 1 else {}


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_fit_by_name(name, devices):
    kvstore, number = DEVICES[devices]
    options = {**OPTIONS, **options_for(devices)}
    module, steps = fit(name, options, kvstore, number)
    assert type(module._optimizer) is mx.optimizer.Optimizer.opt_registry[name]
    # Module sets it, and by the names of parameters it leaves biases without weight decay.
    assert module._optimizer.rescale_grad == 1 / BATCH
    assert set(module._optimizer.wd_mult) >= {"first_bias", "last_bias"}
    _, expected = fit(name, {**OPTIONS, **BY_OPERATORS}, kvstore, number)
    assert_same_steps(steps, expected)
    assert not np.array_equal(steps[-1][0], steps[0][0])


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize(
    ("name", "built_in", "options"),
    [
        ("sgd_ext", "sgd", {"momentum": 0.9}),
        ("adam_ext", "adam", {}),
        ("adamax_ext", "adamax", {}),
        ("nadam_ext", "nadam", {"schedule_per_parameter": True}),
    ],
)
def test_as_the_built_in(name, built_in, options, devices):
    """Within rounding, with weight decay and a scheduler that halves the rate on the way."""
    kvstore, number = DEVICES[devices]

    def common() -> dict[str, Any]:
        scheduler = mx.lr_scheduler.FactorScheduler(step=3, factor=0.5)
        return {"learning_rate": 0.02, "wd": 0.05, "lr_scheduler": scheduler}

    _, steps = fit(name, {**common(), **options, **options_for(devices)}, kvstore, number)
    of_theirs = {k: v for k, v in options.items() if k != "schedule_per_parameter"}
    _, expected = fit(built_in, {**common(), **of_theirs}, kvstore, number)
    for found, wanted in zip(steps, expected):
        for a, b in zip(found, wanted):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kvstore", [None, "local"])
def test_fit_by_object(kvstore):
    _, by_name = fit("adam_ext", OPTIONS, kvstore)
    _, steps = fit(mxadamax.Adam(rescale_grad=1 / BATCH, **OPTIONS), None, kvstore)
    # Without the names of parameters an optimizer decays biases too, until Module tells it.
    _, expected = fit(
        mxadamax.Adam(rescale_grad=1 / BATCH, **OPTIONS, **BY_OPERATORS), None, kvstore
    )
    assert_same_steps(steps, expected)
    assert not np.array_equal(steps[-1][0], by_name[-1][0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_object_keeps_its_rescale_grad():
    """Module warns, as of its own, and leaves it."""
    with pytest.warns(UserWarning, match="rescale_grad is not normalized"):
        module, steps = fit(mxadamax.SGD(learning_rate=0.01))
    assert module._optimizer.rescale_grad == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, expected = fit(mx.optimizer.SGD(learning_rate=0.01))
    for found, wanted in zip(steps, expected):
        for a, b in zip(found, wanted):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Of MXNet's own: Module.fit of every module that was loaded, and a file left open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Parameters already initialized:UserWarning")
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("name", ["adamax_ext", "nadam_ext", "sgd_ext"])
def test_resumed_from_a_checkpoint(name, devices, tmp_path):
    """States go on to the bit; the number of updates, which is not in the file, is said."""
    kvstore, number = DEVICES[devices]
    options = {**OPTIONS, **options_for(devices)}
    if name == "sgd_ext":
        options["momentum"] = 0.9
    if name == "nadam_ext":
        # As the built-in computes, it has a product of all momenta, which no such file holds.
        options["numerics"] = "portable"
    prefix = str(tmp_path / "training")
    module, _ = fit(name, options, kvstore, number, epochs=(0, 1))
    module.save_checkpoint(prefix, 1, save_optimizer_states=True)
    _, expected = fit(name, options, kvstore, number)

    context = [mx.cpu(k) for k in range(number)]
    again = mx.mod.Module.load(prefix, 1, load_optimizer_states=True, context=context)
    resumed = {**options, "begin_num_update": BATCHES}
    _, steps = fit(name, resumed, kvstore, number, module=again, epochs=(1, 2))
    assert_same_steps(steps, expected[BATCHES:])


def test_frozen_parameters_stay():
    frozen = ["first_bias", "last_bias"]
    module = mx.mod.Module(symbol(), fixed_param_names=frozen)
    module, steps = fit("adamax_ext", OPTIONS, module=module)
    names = sorted(module.get_params()[0])
    changed = {n for n, a, b in zip(names, steps[0], steps[-1]) if not np.array_equal(a, b)}
    assert changed == set(names) - set(frozen)


@pytest.mark.parametrize("option", [{"clip_global_norm": 0.01}, {"skip_nonfinite": True}])
def test_options_of_the_whole_model(option):
    """They see all parameters of the module in one call."""
    module, steps = fit("adam_ext", {**OPTIONS, **option}, None)
    _, expected = fit("adam_ext", {**OPTIONS, **option, "use_fused_step": False}, None)
    assert_same_steps(steps, expected)
    if "clip_global_norm" in option:
        assert module._optimizer.gradient_norm > 0.01


def test_buckets_share_weights_and_states():
    """Modules of several lengths, one optimizer: each length brings arrays of its own."""

    def train(options: dict[str, Any]) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
        mx.random.seed(5)
        module = mx.mod.BucketingModule(by_length, default_bucket_key=5)
        module.bind([("data", (BATCH, 5))], [("softmax_label", (BATCH,))])
        module.init_params(mx.init.Uniform(0.1))
        module.init_optimizer(None, "adam_ext", options)
        steps = []
        for number, length in enumerate((5, 3, 2, 5, 3, 3, 2)):
            module.forward_backward(batch(number, length, BATCH))
            module.update()
            steps.append(arrays_of(module))
        states = module._buckets[5]._updater.states
        found = [leaf.asnumpy() for k in sorted(states) for leaf in leaves(states[k])]
        return steps, found

    steps, states = train(OPTIONS)
    expected, expected_states = train({**OPTIONS, **BY_OPERATORS})
    assert_same_steps([*steps, states], [*expected, expected_states])
