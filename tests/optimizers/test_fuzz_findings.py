# SPDX-License-Identifier: Apache-2.0
"""What scripts/fuzz.py and the sanitizers have found, one test each."""

import pickle

import mxnet as mx
import numpy as np
import pytest
from common import assert_same_bits, run_python
from mxnet import gluon

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1


def a_trainer():
    parameter = gluon.Parameter("w", shape=(3, 4))
    parameter.initialize(mx.init.One())
    parameters = [parameter] if IS_MXNET_1 else {"w": parameter}
    trainer = gluon.Trainer(parameters, "adamax_ext", kvstore=None)
    with mx.autograd.record():
        loss = (parameter.data() * 2).sum()
    loss.backward()
    trainer.step(1)
    return parameter, trainer


@pytest.mark.parametrize(
    "name, value",
    [("lr_scheduler", 0.0), ("lr_scheduler", [0.9]), ("lr_scheduler", {}), ("num_update", int)],
    ids=str,
)
def test_a_damaged_optimizer_in_a_file(name, value, tmp_path):
    """Refused when it is loaded, not by a TypeError of the step after it."""
    parameter, trainer = a_trainer()
    mxadamax.save_states(trainer, tmp_path / "file")
    states, optimizer = pickle.loads((tmp_path / "file").read_bytes())
    setattr(optimizer, name, value)
    (tmp_path / "file").write_bytes(pickle.dumps((states, optimizer)))
    before = parameter.data().asnumpy()
    with pytest.raises(ValueError, match=name):
        mxadamax.load_states(trainer, tmp_path / "file")
    assert np.array_equal(parameter.data().asnumpy(), before)


@pytest.mark.parametrize("option", ["clip_gradient", "clip_weights"])
def test_a_bound_that_is_an_integer_of_many_bits(option):
    """MXNet's clip took it for 0, in the definition; the native update did not."""
    results = []
    for use_fused_step in (True, False):
        options = {option: 2**70, "use_fused_step": use_fused_step}
        update = mx.optimizer.get_updater(mxadamax.RMSProp(**options))
        weight = mx.nd.array([1.0, -2.0])
        update(0, mx.nd.array([0.5, 0.25]), weight)
        results.append(weight.asnumpy())
    assert np.array_equal(*results)
    assert not np.array_equal(results[0], [1.0, -2.0])


def test_a_file_that_numbers_objects_beyond_its_length(tmp_path):
    """Python would take as much memory as there is, for minutes."""
    _, trainer = a_trainer()
    bad = b"\x80\x04" + pickle.LONG_BINPUT.join([b"N", b"\xff\xff\xff\x7f."])
    (tmp_path / "file").write_bytes(bad)
    with pytest.raises(ValueError, match="cannot be read .* object 2147483647 in 9 bytes"):
        mxadamax.load_states(trainer, tmp_path / "file")


def test_a_state_that_is_another_one_too(tmp_path):
    """Refused when it is loaded, not by the step after it."""
    parameter, trainer = a_trainer()
    mxadamax.save_states(trainer, tmp_path / "file")
    states, optimizer = pickle.loads((tmp_path / "file").read_bytes())
    (index,) = states
    states[index] = [states[index][0]] * 2
    (tmp_path / "file").write_bytes(pickle.dumps((states, optimizer)))
    before = parameter.data().asnumpy()
    with pytest.raises(
        ValueError, match="parameter 0 .*: holds an array twice, expected a separate"
    ):
        mxadamax.load_states(trainer, tmp_path / "file")
    assert np.array_equal(parameter.data().asnumpy(), before)


def test_true_is_no_number():
    """The native update took it for 1, the definition failed inside MXNet."""
    with pytest.raises(ValueError, match="clip_gradient must be .*, got True"):
        mxadamax.Adamax(clip_gradient=True)


def test_a_step_takes_no_memory_for_what_it_does_not_join():
    """MXNet takes memory for as many operations as it is told to join: two thousand million once."""
    code = """
import ctypes
import mxnet as mx
from mxadamax._mxnet.compatibility import C_FUNCTIONS
from mxadamax._mxnet.engine import native

sizes = []
address = lambda f: ctypes.cast(f, ctypes.c_void_p).value
real = mx.base._LIB.MXEngineSetBulkSize

@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int))
def noted(size, before):
    sizes.append(size)
    return real(ctypes.c_int(size), before)

table = {n: address(getattr(mx.base._LIB, C_FUNCTIONS.get(n, n))) for n in native().mxnet_functions}
native().bind({**table, "MXEngineSetBulkSize": address(noted)}.__getitem__)
optimizer = mxadamax.Adamax()
weights, grads = ([mx.nd.ones((3, 4)) for _ in range(5)] for _ in range(2))
states = [optimizer.create_state(k, w) for k, w in enumerate(weights)]
optimizer.fused_step(list(range(5)), weights, grads, states)
mx.nd.waitall()
print(sizes[0])
"""
    assert 5 <= int(run_python(code).split()[-1]) < 100


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "epsilon",
            5e-324,
            "epsilon must be 0 or between 2.2e-308 and 1.8e[+]308 in magnitude, got 5e-",
        ),
        ("rescale_grad", -1e-310, "rescale_grad must be 0 or between 2.2e-308 and"),
        ("rescale_grad", 10**400, "rescale_grad must be 0 or between .* in magnitude, got 1000"),
        ("clip_gradient", 1e-40, "clip_gradient must be 0, infinite or between 1.2e-38 and 3.4e"),
        ("clip_gradient", 3.5e38, "clip_gradient must be 0, infinite or between .*, got 3.5e"),
        ("clip_weights", 1e-40, "clip_weights must be 0, infinite or between 1.2e-38 and"),
    ],
)
def test_numbers_that_operators_do_not_read(name, value, message):
    """MXNet's own refused them in the middle of a step of the definition."""
    with pytest.raises(ValueError, match=message):
        mxadamax.RMSProp(**{name: value})
    optimizer = mxadamax.RMSProp()
    setattr(optimizer, name, value)
    with pytest.raises(ValueError, match=message):
        optimizer.update_multi_precision([0], [mx.nd.ones(2)], [mx.nd.ones(2)], [mx.nd.ones(2)])


def test_a_skipped_step_leaves_subnormal_numbers_alone():
    """What brings a weight into the plain layout multiplied it by one, and by zero in effect."""
    values = np.full((3, 4), 1e-42, "float32")
    weight, bad = mx.nd.array(values), mx.nd.full((3, 4), np.nan)
    update = mx.optimizer.get_updater(mxadamax.Adamax(skip_nonfinite=True))
    update([0], [bad], [weight])
    assert np.array_equal(weight.asnumpy().view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_averages_begun_late(dtype):
    """Of some shares, MXNet's operators read another number than the one that is given."""
    results = []
    for use_fused_step in (True, False):
        optimizer = mxadamax.SGD(
            0.1, ema_decay=0.9, begin_num_update=5, use_fused_step=use_fused_step
        )
        rng = np.random.RandomState(0)
        weight = mx.nd.array(rng.standard_normal(500), dtype=dtype)
        state = optimizer.create_state_multi_precision(0, weight)
        for _ in range(20):
            grad = mx.nd.array(rng.standard_normal(500), dtype=dtype)
            optimizer.update_multi_precision([0], [weight], [grad], [state])
        results.append(optimizer.average_of(state, weight).asnumpy())
    assert_same_bits(*results)


@pytest.mark.parametrize(("name", "refused"), [("_products", False), ("m_schedule", True)])
def test_a_damaged_schedule_of_nadam_in_a_file(name, refused, tmp_path, monkeypatch):
    parameter = gluon.Parameter("w", shape=(3, 4))
    parameter.initialize(mx.init.One())
    parameters = [parameter] if IS_MXNET_1 else {"w": parameter}
    options = {"schedule_per_parameter": refused}
    trainer = gluon.Trainer(parameters, "nadam_ext", options, kvstore=None)

    def step():
        with mx.autograd.record():
            loss = (parameter.data() * 2).sum()
        loss.backward()
        trainer.step(1)
        return parameter.data().asnumpy()

    step()
    mxadamax.save_states(trainer, tmp_path / "file")
    states, optimizer = pickle.loads((tmp_path / "file").read_bytes())
    state = {**optimizer.__getstate__(), name: "0.9"}
    monkeypatch.setattr(mxadamax.Nadam, "__getstate__", lambda self: state)
    (tmp_path / "file").write_bytes(pickle.dumps((states, optimizer)))
    monkeypatch.undo()
    if refused:
        with pytest.raises(ValueError, match="m_schedule must be finite, got '0.9'"):
            mxadamax.load_states(trainer, tmp_path / "file")
    else:
        mxadamax.load_states(trainer, tmp_path / "file")
        assert np.isfinite(step()).all()
