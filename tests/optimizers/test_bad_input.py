# SPDX-License-Identifier: Apache-2.0
"""Bad input: a Python error that names the parameter, before anything is written."""

import copy
import ctypes
import math
import sys
import types

import mxnet as mx
import numpy as np
import pytest
from common import Run, nd, run_python
from gate import Gate, gated
from mxnet import gluon
from mxnet.base import _LIB
from sparse_gradients import NOWHERE

import mxadamax
from mxadamax import _native, cuda
from mxadamax._mxnet import engine
from mxadamax._mxnet.compatibility import C_FUNCTIONS, IS_MXNET_1
from mxadamax._mxnet.engine import native
from mxadamax.commands import info
from mxadamax.dtypes import BFLOAT16

pytestmark = pytest.mark.quick

REFUSED_HYPERPARAMETERS = [
    ({"beta1": 1.5}, r"beta1 must be in \[0, 1\), got 1.5"),
    ({"beta1": 1}, r"beta1 must be in \[0, 1\), got 1"),
    ({"beta1": -0.1}, r"beta1 must be in \[0, 1\), got -0.1"),
    ({"beta2": 1.0}, r"beta2 must be in \[0, 1\), got 1.0"),
    ({"beta2": math.nan}, r"beta2 must be in \[0, 1\), got nan"),
    ({"beta2": "0.9"}, r"beta2 must be in \[0, 1\), got '0.9'"),
    ({"beta2": None}, r"beta2 must be in \[0, 1\), got None"),
    ({"epsilon": -1e-8}, r"epsilon must be in \[0, inf\), got -1e-08"),
    ({"epsilon": math.inf}, r"epsilon must be in \[0, inf\), got inf"),
    ({"learning_rate": -1.0}, r"learning_rate must be in \[0, inf\) or None, got -1.0"),
    ({"learning_rate": math.nan}, r"learning_rate must be in \[0, inf\) or None, got nan"),
    ({"wd": -0.1}, r"wd must be in \[0, inf\), got -0.1"),
    ({"wd": math.nan}, r"wd must be in \[0, inf\), got nan"),
    ({"clip_gradient": -1}, r"clip_gradient must be in \[0, inf\] or None, got -1"),
    ({"clip_gradient": math.nan}, r"clip_gradient must be in \[0, inf\] or None, got nan"),
    ({"rescale_grad": math.nan}, r"rescale_grad must be finite, got nan"),
    ({"rescale_grad": math.inf}, r"rescale_grad must be finite, got inf"),
    ({"rescale_grad": -math.inf}, r"rescale_grad must be finite, got -inf"),
    ({"aggregate_num": -1}, r"aggregate_num must be an integer of at least 0 or numpy.inf, got -1"),
    ({"aggregate_num": 2.5}, r"aggregate_num must be .* got 2.5"),
    ({"begin_num_update": -1}, r"begin_num_update must be an integer of at least 0, got -1"),
    ({"begin_num_update": 0.5}, r"begin_num_update must be an integer of at least 0, got 0.5"),
]

REFUSED_OF_THE_FAMILY = [
    ("adamax_ext", {"maximize": 1}, "maximize must be True or False, got 1"),
    ("adamax_ext", {"decoupled_wd": None}, "decoupled_wd must be True or False, got None"),
    ("adam_ext", {"amsgrad": "yes"}, "amsgrad must be True or False, got 'yes'"),
    ("adam_ext", {"correct_bias": 0}, "correct_bias must be True or False, got 0"),
    ("adam_ext", {"correct_bias": "yes"}, "correct_bias must be True or False, got 'yes'"),
    ("adam_ext", {"decoupled_wd": "yes"}, "decoupled_wd must be True or False, got 'yes'"),
    ("adamw_ext", {"amsgrad": "yes"}, "amsgrad must be True or False, got 'yes'"),
    ("adamax_ext", {"maximize": "yes"}, "maximize must be True or False, got 'yes'"),
    ("adabelief_ext", {"correct_bias": "yes"}, "correct_bias must be True or False, got 'yes'"),
    ("rmsprop_ext", {"centered": "yes"}, "centered must be True or False, got 'yes'"),
    (
        "nadam_ext",
        {"schedule_per_parameter": "yes"},
        "schedule_per_parameter must be True or False, got 'yes'",
    ),
    ("sgd_ext", {"skip_nonfinite": "yes"}, "skip_nonfinite must be True or False, got 'yes'"),
    ("sgd_ext", {"lazy_update": "yes"}, "lazy_update must be True or False, got 'yes'"),
    ("adagrad_ext", {"use_fused_step": "yes"}, "use_fused_step must be True or False, got 'yes'"),
    ("adam_ext", {"beta2": 1.0}, r"beta2 must be in \[0, 1\), got 1.0"),
    (
        "amsgrad_ext",
        {"amsgrad": False},
        "amsgrad must be True, got False; use adam_ext instead",
    ),
    (
        "adamw_ext",
        {"decoupled_wd": False},
        "decoupled_wd must be True, got False; use adam_ext instead",
    ),
    ("adamw_ext", {"wd": -0.1}, r"wd must be in \[0, inf\), got -0.1"),
    ("nadam_ext", {"schedule_decay": -1}, r"schedule_decay must be in \[0, inf\), got -1"),
    (
        "nadam_ext",
        {"schedule_per_parameter": 2},
        "schedule_per_parameter must be True or False, got 2",
    ),
    ("adabelief_ext", {"epsilon": math.nan}, r"epsilon must be in \[0, inf\), got nan"),
    ("rmsprop_ext", {"rho": 1.0}, r"rho must be in \[0, 1\), got 1.0"),
    ("rmsprop_ext", {"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
    ("rmsprop_ext", {"clip_weights": 0}, r"clip_weights must be in \(0, inf\] or None, got 0"),
    ("rmsprop_ext", {"centered": None}, "centered must be True or False, got None"),
    ("adagrad_ext", {"epsilon": -1}, r"epsilon must be in \[0, inf\), got -1"),
    ("adadelta_ext", {"rho": 2}, r"rho must be in \[0, 1\), got 2"),
    ("sgd_ext", {"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
    (
        "sgd_ext",
        {"lazy_update": True, "use_fused_step": False},
        "lazy_update must be False without use_fused_step",
    ),
    ("nag_ext", {"momentum": math.nan}, r"momentum must be in \[0, 1\), got nan"),
    ("signum_ext", {"wd_lh": -0.1}, r"wd_lh must be in \[0, inf\), got -0.1"),
    ("ftml_ext", {"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1.0"),
    ("ftrl_ext", {"lamda1": math.inf}, r"lamda1 must be in \[0, inf\), got inf"),
    ("ftrl_ext", {"beta": -1}, r"beta must be in \[0, inf\), got -1"),
]


@pytest.mark.parametrize("name, options, message", REFUSED_OF_THE_FAMILY, ids=str)
def test_hyperparameters_of_the_family_are_refused(name, options, message):
    with pytest.raises(ValueError, match=f"^{name}: {message}$"):
        mx.optimizer.create(name, **options)


@pytest.mark.parametrize(
    "name, option",
    [("nadam_ext", "correct_bias"), ("sgd_ext", "amsgrad"), ("adagrad_ext", "beta1")],
)
def test_options_that_an_optimizer_does_not_have_are_refused(name, option):
    with pytest.raises(TypeError, match=f"^{name}: unexpected argument '{option}'$"):
        mx.optimizer.create(name, **{option: True})


@pytest.mark.parametrize("options, message", REFUSED_HYPERPARAMETERS, ids=str)
def test_hyperparameters_are_refused_by_the_constructor(options, message):
    with pytest.raises(ValueError, match=f"^adamax_ext: {message}$"):
        mx.optimizer.create("adamax_ext", **options)


def test_unknown_arguments_are_refused_by_name():
    with pytest.raises(TypeError, match="^adamax_ext: unexpected argument 'betal'"):
        mxadamax.Adamax(betal=0.9)


def snapshot(run):
    optimizer = run.optimizer
    counts = copy.deepcopy(optimizer._all_index_update_counts)
    return [a.tobytes() for a in run.arrays()], optimizer.num_update, counts


SHAPES = [(3, 4), (5,), ()]


def a_run(**options):
    """One step made, so that states and counts are there to be left alone."""
    rng = np.random.RandomState(0)
    optimizer = mxadamax.Adamax(param_idx2name={1: "dense0_bias"}, **options)
    run = Run(optimizer, [np.asarray(rng.standard_normal(s), "float32") for s in SHAPES])
    run.step([np.ones(s, "float32") for s in SHAPES])
    return run


def refused(run, message, grads=None, weights=None):
    """The step is refused with this message, and changes nothing."""
    before = snapshot(run)
    grads = grads or [nd(np.ones(s, "float32")) for s in SHAPES]
    grad_bytes = [g.tostype("default").asnumpy().tobytes() for g in grads]
    with pytest.raises(ValueError, match="^adamax_ext: " + message):
        run.updater(list(run.indices), grads, weights or list(run.weights))
    mx.nd.waitall()
    assert snapshot(run) == before
    assert [g.tostype("default").asnumpy().tobytes() for g in grads] == grad_bytes


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("beta1", 1.0, "beta1 must be"),
        ("epsilon", math.nan, "epsilon must be"),
        ("wd", -1, "wd must be"),
        ("rescale_grad", math.nan, "rescale_grad must be finite, got nan"),
        ("clip_gradient", math.nan, "clip_gradient must be"),
        ("lr", math.nan, "learning_rate must be"),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_hyperparameters_set_later_are_refused_by_the_step(name, value, message, fused):
    run = a_run(use_fused_step=fused)
    setattr(run.optimizer, name, value)
    # By now NaN is in the attribute, which is never equal to itself; the rest is compared.
    refused(run, message)


def test_learning_rate_is_checked_when_set():
    optimizer = mxadamax.Adamax(learning_rate=0.5)
    with pytest.raises(ValueError, match="learning_rate must be in .* got nan"):
        optimizer.set_learning_rate(math.nan)
    assert optimizer.learning_rate == 0.5


def test_scheduler_that_gives_no_number():
    run = a_run()
    run.optimizer.lr_scheduler = lambda num_update: math.nan
    refused(run, r"lr_scheduler\(2\) must be finite, got nan")


def test_decoupled_weight_decay_that_is_no_number():
    run = a_run(decoupled_wd=True, wd=0.1)
    run.optimizer.lr_scheduler = lambda num_update: 1e200
    run.optimizer.wd = 1e200
    refused(run, r"parameter 0: 1 - lr \* wd is -inf, expected a finite number")


def test_multipliers_that_are_no_number():
    run = a_run()
    run.optimizer.set_wd_mult({1: math.inf})
    run.optimizer.wd = 0.1
    refused(run, r"parameter 1 \('dense0_bias'\): wd_mult must be finite, got inf")
    run.optimizer.set_wd_mult({1: 1e300})
    run.optimizer.wd = 1e300
    refused(run, r"parameter 1 \('dense0_bias'\): wd is inf, expected a finite number")


def test_scheduler_that_fails():
    run = a_run()

    def fail(num_update):
        raise RuntimeError("no schedule")

    run.optimizer.lr_scheduler = fail
    before = snapshot(run)
    with pytest.raises(RuntimeError, match="no schedule"):
        run.updater([0, 1, 2], [nd(np.ones(s, "float32")) for s in SHAPES], list(run.weights))
    assert snapshot(run) == before


def ones(*shape, dtype="float32"):
    return nd(np.ones(shape, dtype))


@pytest.mark.parametrize(
    "position, grad, message",
    [
        (0, ones(4, 3), r"parameter 0: gradient has shape \(4, 3\), weight has \(3, 4\)"),
        (0, ones(12), r"parameter 0: gradient has shape \(12,\), weight has \(3, 4\)"),
        (1, ones(1, 5), r"parameter 1 \('dense0_bias'\): gradient has shape \(1, 5\), weight"),
        (
            1,
            ones(0),
            r"parameter 1 \('dense0_bias'\): gradient has shape \(0,\), weight has \(5,\)",
        ),
        (2, ones(1), r"parameter 2: gradient has shape \(1,\), weight has \(\)"),
        (2, ones(dtype="float64"), r"parameter 2: gradient has dtype float64, weight has float32"),
        (1, ones(5, dtype="float16"), r"parameter 1 .*: gradient has dtype float16, weight has"),
        (
            1,
            ones(5, dtype="int32"),
            r"parameter 1 .*: gradient has dtype int32, weight has float32",
        ),
    ],
    ids=str,
)
def test_gradients(position, grad, message):
    run = a_run()
    grads = [ones(*shape) for shape in SHAPES]
    grads[position] = grad
    refused(run, message, grads=grads)


@pytest.mark.skipif(IS_MXNET_1, reason="MXNet 1 updates the weights of each dtype by themselves")
@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64", "int8"])
def test_types_of_weights(dtype):
    run = a_run()
    weights = [run.weights[0], nd(np.ones(5, dtype)), run.weights[2]]
    grads = [ones(3, 4), ones(5, dtype=dtype), ones()]
    message = rf"parameter 1 \('dense0_bias'\): weight has dtype {dtype}, expected float32, float64, float16 or bfloat16"
    refused(run, message, grads=grads, weights=weights)


def zeros_like_weight(run, index=1):
    return run.weights[index].zeros_like()


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda run: None,
            "state is None, expected a tuple of 2 NDArrays, as create_state makes it",
        ),
        (zeros_like_weight, "state is one NDArray, expected a tuple of 2"),
        (lambda run: (), "state is a sequence of 0, expected a tuple of 2"),
        (lambda run: (zeros_like_weight(run),), "state is a sequence of 1, expected a tuple of 2"),
        (lambda run: tuple(zeros_like_weight(run) for _ in range(3)), "state is a sequence of 3"),
        (lambda run: (zeros_like_weight(run), None), "state is a sequence that holds NoneType"),
        (lambda run: "momentum", "state is str, expected a tuple of 2"),
        (lambda run: {"mean": 1}, "state is dict, expected a tuple of 2"),
        (
            lambda run: (zeros_like_weight(run), ones(4)),
            r"state 1 has shape \(4,\), weight has \(5,\)",
        ),
        (
            lambda run: (ones(5, dtype="float64"), zeros_like_weight(run)),
            "state 0 has dtype float64, weight has float32",
        ),
        (
            lambda run: (ones(5), np.zeros(5, "float32")),
            "state is a sequence that holds numpy.ndarray",
        ),
        (
            lambda run: (ones(5), ones(5, 1).tostype("row_sparse")),
            "state 1 is row_sparse, expected a dense array",
        ),
    ],
)
def test_states_of_a_foreign_checkpoint(make, message):
    run = a_run()
    right = run.updater.states[1]
    run.updater.states[1] = make(run)
    grads = [ones(*shape) for shape in SHAPES]
    before = [w.asnumpy().tobytes() for w in run.weights]
    with pytest.raises(ValueError, match=r"parameter 1 \('dense0_bias'\): " + message):
        run.updater([0, 1, 2], grads, list(run.weights))
    assert [w.asnumpy().tobytes() for w in run.weights] == before
    run.updater.states[1] = right
    run.updater([0, 1, 2], grads, list(run.weights))
    mx.nd.waitall()


@pytest.mark.parametrize(
    "share, message",
    [
        (lambda w, g, s: (w[0], w, g, s), "weight shares memory with the weight of parameter 0"),
        (
            lambda w, g, s: (w[0][0:2], w, g, s),
            "weight shares memory with the weight of parameter 0",
        ),
        (
            lambda w, g, s: (w[1], w, [g[0], w[0]], s),
            "gradient shares memory with the weight of par",
        ),
        (
            lambda w, g, s: (w[1], w, [g[0], w[1]], s),
            "gradient shares memory with the weight of par",
        ),
        (
            lambda w, g, s: (w[1], w, g, [s[0], (s[0][1], s[1][1])]),
            "state 0 shares memory with the s",
        ),
        (
            lambda w, g, s: (w[1], w, g, [s[0], (s[1][0], s[1][0])]),
            "state 1 shares memory with the s",
        ),
        (
            lambda w, g, s: (w[1], w, g, [s[0], (g[1], s[1][1])]),
            "state 0 shares memory with the grad",
        ),
    ],
)
def test_the_same_array_twice(share, message):
    """Or two views of one: MXNet's engine would wait for itself, for ever and without a word."""
    shape = (4,)
    weights, grads = [ones(*shape) for _ in range(2)], [ones(*shape) for _ in range(2)]
    states = [(ones(*shape), ones(*shape)) for _ in range(2)]
    second, weights, grads, states = share(weights, grads, states)
    if second.shape != shape:
        grads[1], states[1] = ones(2), (ones(2), ones(2))
    optimizer = mxadamax.Adamax()
    with pytest.raises(ValueError, match="^adamax_ext: parameter 1: " + message):
        optimizer.fused_step([0, 1], [weights[0], second], grads, states)
    assert not optimizer._index_update_count
    mx.nd.waitall()


def test_one_gradient_for_two_weights_is_fine():
    grad = ones(4)
    optimizer = mxadamax.Adamax()
    weights = [ones(4), ones(4)]
    states = [optimizer.create_state(k, w) for k, w in enumerate(weights)]
    optimizer.fused_step([0, 1], weights, [grad, grad], states)
    assert np.array_equal(weights[0].asnumpy(), weights[1].asnumpy())
    assert weights[0].asnumpy()[0] < 1


def test_objects_that_are_no_arrays():
    optimizer = mxadamax.Adamax()
    weight = ones(3)
    state = optimizer.create_state(0, weight)
    for weights, grads, message in [
        ([None], [ones(3)], "weight is NoneType, expected an NDArray"),
        ([weight], [[1.0, 2.0, 3.0]], "gradient is list, expected an NDArray"),
        ([weight], [np.ones(3, "float32")], "gradient is numpy.ndarray, expected an NDArray"),
    ]:
        with pytest.raises(ValueError, match="^adamax_ext: parameter 0: " + message):
            optimizer.fused_step([0], weights, grads, [state])
    with pytest.raises(ValueError, match="got 1 indices, 1 weights, 2 gradients and 1 st"):
        optimizer.fused_step([0], [weight], [weight, weight], [state])


INTEGER = ctypes.POINTER(ctypes.c_int)


@pytest.fixture
def replaced():
    """Puts functions of Python's in the place of some of MXNet's C API."""
    native()
    kept = []
    addresses = {
        name: ctypes.cast(getattr(_LIB, C_FUNCTIONS.get(name, name)), ctypes.c_void_p).value
        for name in _native.mxnet_functions
    }

    def replace(name, signature, function):
        kept.append(ctypes.CFUNCTYPE(ctypes.c_int, *signature)(function))
        addresses[name] = ctypes.cast(kept[-1], ctypes.c_void_p).value
        _native.bind(addresses.__getitem__)

    yield replace
    mx.nd.waitall()
    native.cache_clear()
    native()


def test_array_on_an_unsupported_device(replaced):
    """No GPU here: MXNet is made to say that the state is on one."""
    run = a_run()
    m, u = run.updater.states[1]
    run.updater.states[1] = (m, u)
    on_gpu = u.handle.value

    def context(handle, device, number):
        device[0], number[0] = (2, 3) if handle == on_gpu else (1, 0)
        return 0

    out = ctypes.POINTER(ctypes.c_int)
    replaced("MXNDArrayGetContext", [ctypes.c_void_p, out, out], context)
    refused(
        run, r"parameter 1 \('dense0_bias'\): state 1 is on gpu\(3\), expected an array in host"
    )


@pytest.mark.parametrize("what", ["weight", "gradient"])
@pytest.mark.parametrize("number", [0, 1])
def test_one_parameter_on_another_device(replaced, what, number):
    """Whatever the number of that device; a weight as well, if it is not the first."""
    weights, grads = [ones(3), ones(3)], [ones(3), ones(3)]
    elsewhere = (weights if what == "weight" else grads)[1].handle.value

    def context(handle, device, found):
        device[0], found[0] = (2, number) if handle == elsewhere else (1, 0)
        return 0

    out = ctypes.POINTER(ctypes.c_int)
    replaced("MXNDArrayGetContext", [ctypes.c_void_p, out, out], context)
    memo = _native.StateCache()
    with pytest.raises(_native.ParameterError) as error:
        native().FusedUpdate("sgd", weights, grads, [None, None], memo, False, False, False, None)
    position, message, _ = error.value.args
    assert position == 1
    assert message.startswith(f"{what} is on gpu({number}), expected an array in host memory")


@pytest.mark.parametrize(
    "number, name", [(-1, "of number -1"), (11, "uint64"), (13, "of number 13")]
)
def test_types_that_mxnet_may_have_one_day(replaced, number, name):
    def dtype(handle, found):
        found[0] = number
        return 0

    replaced("MXNDArrayGetDType", [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)], dtype)
    given = ([ones(3)], [ones(3)], [None], _native.StateCache())
    with pytest.raises(_native.ParameterError, match=f"weight has dtype {name}, expected float32"):
        native().FusedUpdate("sgd", *given, False, False, False, None)


def test_as_many_dimensions_as_there_can_be(replaced):
    sizes = (ctypes.c_int64 * 32)(3, *[1] * 31)

    def shape_of(handle, dimensions, found):
        dimensions[0], found[0] = 32, ctypes.addressof(sizes)
        return 0

    weight, grad = ones(3), ones(3)
    replaced(
        "MXNDArrayGetShape64",
        [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_void_p)],
        shape_of,
    )
    given = ([weight], [grad], [None], _native.StateCache())
    native().FusedUpdate("sgd", *given, False, False, False, None)


LAYOUTS = [
    ((3,), "float32", False),
    ((), "float32", False),
    ((0, 4), "float32", False),
    ((4, 0), "float32", False),
    ((3, 4), "float32", True),
    ((3, 4), BFLOAT16, True),
    ((2, 3, 4), "float32", True),
    ((3, 4), "float64", False),
    ((3, 4), "float16", False),
]


@pytest.mark.parametrize("shape, dtype, expected", LAYOUTS)
def test_what_can_be_in_a_layout_of_onednns_is_brought_out_of_it(replaced, shape, dtype, expected):
    """By an operator of MXNet's, which nothing else needs."""
    weight, grad = (nd(np.ones(shape, "float32")).astype(dtype) for _ in range(2))
    mx.nd.waitall()
    casts = []

    def invoke(*arguments):
        casts.append(arguments)
        return 0

    pointers = [ctypes.c_void_p] * 4
    replaced(
        "MXImperativeInvoke",
        [ctypes.c_void_p, ctypes.c_int, *pointers[:3], ctypes.c_int, *pointers[:3]],
        invoke,
    )
    mxadamax.SGD().update([0], [weight], [grad], [None])
    mx.nd.waitall()
    assert len(casts) == expected


def test_many_parameters_with_all_that_a_parameter_can_have():
    """And one that shares its memory with another is found among them."""
    optimizer = mxadamax.RMSProp(centered=True, multi_precision=True, ema_decay=0.9)
    count = 100
    weights = [ones(3, dtype="float16") for _ in range(count)]
    states = [optimizer.create_state_multi_precision(k, w) for k, w in enumerate(weights)]
    grads = [ones(3, dtype="float16") for _ in range(count)]
    optimizer.update_multi_precision(list(range(count)), weights, grads, states)
    values = {tuple(weight.asnumpy()) for weight in weights}
    assert len(values) == 1 and values != {(1.0, 1.0, 1.0)}
    with pytest.raises(ValueError, match="weight shares memory with the weight of"):
        optimizer.update_multi_precision(
            list(range(count)), [*weights[:-1], weights[3]], grads, states
        )


def test_kernels_for_gpus_that_fail(replaced, monkeypatch):
    """Only that there are none becomes a refusal; any other error stays what it is."""
    run = a_run()
    before = snapshot(run)
    monkeypatch.setattr(cuda, "kernels", lambda: 1 // 0)

    def context(handle, device, number):
        device[0], number[0] = 2, 0
        return 0

    replaced("MXNDArrayGetContext", [ctypes.c_void_p, INTEGER, INTEGER], context)
    with pytest.raises(ZeroDivisionError):
        run.updater([0, 1, 2], [ones(*shape) for shape in SHAPES], list(run.weights))
    assert snapshot(run) == before


def test_failure_inside_the_engine_surfaces_and_writes_nothing(replaced):
    run = a_run()
    before = snapshot(run)[0]
    replaced("MXNDArrayGetData", [ctypes.c_void_p, ctypes.c_void_p], lambda handle, out: -1)
    run.updater([0, 1, 2], [ones(*shape) for shape in SHAPES], list(run.weights))
    with pytest.raises(mx.MXNetError, match=r"mxadamax, rule adamax(_mxnet1)?: "):
        mx.nd.waitall()
    native.cache_clear()
    native()
    assert snapshot(run)[0] == before
    run.step([np.ones(s, "float32") for s in SHAPES])
    assert snapshot(run)[0] != before


def says(value, of):
    """A function of MXNet's C API that finds this for one array and 0 for all others."""

    def say(handle, *arguments):
        arguments[-1][0] = value if handle == of else 0
        return 0

    return say


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        ("MXNDArrayGetStorageType", 1, "gradient has row indices of dtype float32, expected int64"),
        ("MXNDArrayGetStorageType", 2, r"gradient is csr, expected a dense array .*row_sparse"),
        ("MXNDArrayGetStorageType", 7, "gradient is of number 7, expected a dense array"),
        ("MXNDArrayGetDType", 77, "gradient has dtype of number 77, weight has float32"),
        ("MXNDArrayGetDType", -1, "gradient has dtype of number -1, weight has float32"),
    ],
)
def test_what_no_supported_mxnet_says(function, value, message, replaced):
    """Kinds of arrays to come are refused as those that are known."""
    run = a_run()
    grads = [ones(*shape) for shape in SHAPES]
    replaced(function, [ctypes.c_void_p, INTEGER], says(value, grads[1].handle.value))
    aux = [ctypes.c_void_p, ctypes.c_uint32, INTEGER]
    replaced("MXNDArrayGetAuxType", aux, says(0, None))
    refused(run, r"parameter 1 \('dense0_bias'\): " + message, grads=grads)


def test_a_call_of_mxnet_that_fails(replaced):
    """Says what MXNet says of it, and changes nothing."""
    run = a_run()
    before = snapshot(run)
    with pytest.raises(mx.MXNetError) as said:
        mx.nd.ones(2).reshape((3, 5))
    replaced("MXNDArrayGetDType", [ctypes.c_void_p, INTEGER], lambda handle, out: -1)
    with pytest.raises(mx.MXNetError) as caught:
        run.updater([0, 1, 2], [ones(*shape) for shape in SHAPES], list(run.weights))
    (reason,) = (line for line in str(said.value).split("\n") if "Check failed" in line)
    assert reason in str(caught.value)
    assert snapshot(run) == before


def test_an_array_that_changes_its_size_under_way(replaced):
    """What the engine finds is not what was checked: an error at the next wait, nothing written."""
    run = a_run()
    before = snapshot(run)[0]

    class Tensor(ctypes.Structure):
        """What DLPack hands out."""

        _fields_ = (
            *(("data", ctypes.c_void_p), ("device", ctypes.c_int * 2), ("ndim", ctypes.c_int)),
            *(("type", ctypes.c_int), ("shape", ctypes.POINTER(ctypes.c_int64))),
        )

    smaller = Tensor(ndim=2, shape=(ctypes.c_int64 * 2)(2, 3))

    def view(handle, out):
        out[0] = ctypes.addressof(smaller)
        return 0

    given_back = []
    out = ctypes.POINTER(ctypes.c_void_p)
    replaced("MXNDArrayToDLPack", [ctypes.c_void_p, out], view)
    replaced("MXNDArrayCallDLPackDeleter", [ctypes.c_void_p], lambda it: given_back.append(it) or 0)
    run.updater([0, 1, 2], [ones(*shape) for shape in SHAPES], list(run.weights))
    with pytest.raises(
        mx.MXNetError, match="an array of 12 elements has become one of 6 while its"
    ):
        mx.nd.waitall()
    assert snapshot(run)[0] == before
    assert given_back == [ctypes.addressof(smaller)]


def test_row_numbers_that_are_lost_under_way():
    """Between check and update, which waits for a gradient, the place of row indices is forgotten."""
    native()
    # In one part.
    optimizer = mxadamax.SGD(numerics="portable")
    weights = [ones(2), ones(5, 3)]
    rows = mx.nd.sparse.row_sparse_array((np.ones((1, 3), "float32"), [4]), shape=(5, 3))
    rows.wait_to_read()
    Gate.opened.clear()
    try:
        optimizer.fused_step([0, 1], weights, [gated(ones(2)), rows], [None, None])
        assert not _native.find_row_indices([(rows, [NOWHERE])])
    finally:
        Gate.opened.set()
    with pytest.raises(mx.MXNetError, match="keeps the rows of row_sparse arrays in a place not"):
        mx.nd.waitall()
    native.cache_clear()
    native()
    assert all((weight.asnumpy() == 1).all() for weight in weights)


NO_FILES = """
import resource
import mxnet as mx
from mxadamax._mxnet.engine import native

native()
known = mx.nd.sparse.row_sparse_array(([[1.0], [2.0]], [1, 5]), shape=(9, 1))
known.wait_to_read()
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
try:
    native().find_row_indices([(known, [1, 5])])
except RuntimeError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
"""


def test_no_files_left():
    """Where an MXNet keeps row indices cannot be found out then, and that is said."""
    assert run_python(NO_FILES) == "cannot create a pipe\n"


def test_what_is_no_batch():
    """The native entry, past the checks that Python makes."""
    memo = _native.StateCache()
    with pytest.raises(ValueError, match="type 'int4' must be float16, bfloat16 or int8"):
        native().FusedUpdate("adam", [], [], [], memo, False, False, False, "int4")
    with pytest.raises(ValueError, match="there is no rule 'adamin'"):
        native().FusedUpdate("adamin", [], [], [], memo, False, False, False, None)
    with pytest.raises(TypeError, match="expected a sequence"):
        native().FusedUpdate("sgd", 5, [], [], memo, False, False, False, None)
    with pytest.raises(
        ValueError, match="got 0 weights, 1 gradients and 0 states, expected the same"
    ):
        native().FusedUpdate("sgd", [], [mx.nd.ones((2,))], [], memo, False, False, False, None)
    empty = native().FusedUpdate("sgd", [], [], [], memo, False, False, False, None)
    empty.push([{name: 1.0 for name in SCALARS_OF_SGD}], None, False, None, 0)
    assert not empty.pushed


@pytest.mark.parametrize(
    ("tables", "bound", "skip", "has_report", "before", "said"),
    [
        (0, None, False, True, 0, "got 0 tables of scalars, expected one"),
        (0, None, True, True, 0, "got 0 tables of scalars, expected one"),
        (2, None, False, True, 0, "got 2 tables of scalars, expected one"),
        (2, 1.0, False, True, 0, "got 2 tables of scalars, expected one"),
        (1, 1.0, False, False, 0, "clip_global_norm and skip_nonfinite need a report, got None"),
        (1, None, True, False, 0, "clip_global_norm and skip_nonfinite need a report, got None"),
        (1, None, True, True, 1, "skipped_before must be what a report has counted, got 1"),
        (1, None, True, True, -1, "skipped_before must be what a report has counted, got -1"),
        (1, None, False, False, -1, "skipped_before must be what a report has counted, got -1"),
    ],
)
def test_what_is_no_push(tables, bound, skip, has_report, before, said):
    """The same, refused while nothing has been handed over."""
    weight = ones(3)
    batch = native().FusedUpdate(
        "sgd", [weight], [ones(3)], [None], _native.StateCache(), False, False, False, None
    )
    report = _native.StepStatus() if has_report else None
    table = {name: 1.0 for name in SCALARS_OF_SGD}
    with pytest.raises(ValueError, match=said):
        batch.push([table] * tables, bound, skip, report, before)
    assert not batch.pushed
    batch.push([table], None, False, None, 0)
    assert batch.pushed
    mx.nd.waitall()


def test_a_step_for_which_there_are_no_scalars_says_so():
    """More steps than those that tables were given for turn out to have been skipped."""
    report, memo = _native.StepStatus(), _native.StateCache()
    table = {name: 1.0 for name in SCALARS_OF_SGD}
    weight = ones(3)

    def push(value):
        grads = [mx.nd.full((3,), value)]
        batch = native().FusedUpdate(
            "sgd", [weight], grads, [None], memo, False, False, False, None
        )
        batch.push([table], None, True, report, 0)

    push(math.nan)
    push(1.0)
    said = "got 1 tables of scalars, but 1 more steps were skipped than the first one is for"
    with pytest.raises(mx.MXNetError, match=said):
        weight.asnumpy()


SCALARS_OF_SGD = ("rescale_grad", "clip_gradient", "wd", "decay_factor", "lr")


def test_a_failure_for_any_arrays():
    """Each array once, whatever is handed over: views of one would make the engine wait for ever."""
    first, second, third = ones(4), ones(4), ones(4)
    native().push_failure([first, None, first, first[0:2], second, "third"], "told to fail")
    with pytest.raises(mx.MXNetError, match="told to fail"):
        second.wait_to_read()
    assert third.asnumpy().tolist() == [1] * 4
    native().push_failure([], "nobody hears")
    native().push_failure([None], "nobody hears")
    mx.nd.waitall()


@pytest.mark.parametrize("dimensions", [-1, 33])
def test_an_array_of_unknown_shape(dimensions, replaced):
    """One that is not known yet, and more dimensions than MXNet has."""
    run = a_run()
    before = snapshot(run)

    def shape_of(handle, found, shape):
        found[0] = dimensions
        return 0

    replaced("MXNDArrayGetShape64", [ctypes.c_void_p, INTEGER, ctypes.c_void_p], shape_of)
    with pytest.raises(mx.MXNetError, match="an array of unknown shape"):
        run.updater([0, 1, 2], [ones(*shape) for shape in SHAPES], list(run.weights))
    assert snapshot(run) == before


def test_an_array_without_memory(replaced):
    optimizer = mxadamax.SGD()
    nothing = mx.nd.NDArray(mx.ndarray.ndarray._new_empty_handle())
    with pytest.raises(ValueError, match="parameter 0: weight is of number -1, expected a dense"):
        optimizer.fused_step([0], [nothing], [nothing], [None])
    native().push_failure([nothing], "nobody hears")
    assert not _native.find_row_indices([(nothing, [NOWHERE])])
    native.cache_clear()
    native()
    # Were MXNet to call it an array as any:
    for function in ("MXNDArrayGetStorageType", "MXNDArrayGetDType"):
        replaced(function, [ctypes.c_void_p, INTEGER], says(0, None))
    replaced("MXNDArrayGetContext", [ctypes.c_void_p, INTEGER, INTEGER], says(0, None))
    replaced("MXNDArrayGetShape64", [ctypes.c_void_p, INTEGER, ctypes.c_void_p], lambda *_: 0)
    with pytest.raises(ValueError, match="parameter 0: weight has no memory; was the array init"):
        optimizer.fused_step([0], [nothing], [nothing], [None])
    assert not optimizer._index_update_count


def test_objects_that_look_like_arrays():
    """What has no handle, a handle without a number, and a number that is none."""
    for handle in (None, types.SimpleNamespace(), types.SimpleNamespace(value="1")):
        almost = types.SimpleNamespace(handle=handle)
        with pytest.raises(
            ValueError, match=r"weight is types\.SimpleNamespace, expected an NDArr"
        ):
            mxadamax.SGD().fused_step([0], [almost], [ones(3)], [None])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ema_decay", 0.9, "state is one NDArray, expected a tuple of 2 NDArrays"),
        ("state_dtype", {".*": "float16"}, "state 0 has dtype float32, expected float16"),
        ("multi_precision", True, None),
    ],
)
def test_options_that_change_what_a_state_is(name, value, message):
    """States are looked at again where they are used in another way, though they are the same."""
    run = a_run()
    run.step([np.ones(s, "float32") for s in SHAPES])
    setattr(run.optimizer, name, value)
    if message:
        refused(run, "parameter 0: " + message)
    else:
        run.step([np.ones(s, "float32") for s in SHAPES])


def test_a_weight_of_another_shape_with_the_same_state():
    run = a_run()
    grads = [ones(3, 4), ones(4), ones()]
    weights = [run.weights[0], ones(4), run.weights[2]]
    message = r"parameter 1 \('dense0_bias'\): state 0 has shape \(5,\), weight has \(4,\)"
    refused(run, message, grads=grads, weights=weights)


def test_a_weight_of_another_dtype_with_the_same_state():
    optimizer = mxadamax.Adamax()
    weight, grad = ones(3), ones(3)
    state = optimizer.create_state(0, weight)
    optimizer.fused_step([0], [weight], [grad], [state])
    weight, grad = weight.astype("float64"), grad.astype("float64")
    with pytest.raises(ValueError, match="state 0 has dtype float32, weight has float64"):
        optimizer.fused_step([0], [weight], [grad], [state])


@pytest.mark.parametrize(
    ("options", "make", "message"),
    [
        ({}, lambda array: array, "state is one NDArray, expected None, as"),
        ({}, lambda array: (array, array.copy()), "state is a sequence of 2, expected None, as"),
        ({"momentum": 0.9}, lambda array: None, "state is None, expected one NDArray, as"),
        ({"momentum": 0.9}, lambda array: (array,), "state is a sequence of 1, expected one NDArr"),
        ({"momentum": 0.9}, lambda array: 5, "state is int, expected one NDArray, as"),
        ({"ema_decay": 0.9}, lambda array: [None, 5], "state is not a tuple of a state and an ave"),
        ({"ema_decay": 0.9}, lambda array: (None,), "state is not a tuple of a state and an ave"),
    ],
)
def test_states_of_rules_with_fewer_arrays(options, make, message):
    with pytest.raises(ValueError, match=f"^sgd_ext: parameter 0: {message}"):
        mxadamax.SGD(**options).fused_step([0], [ones(3)], [ones(3)], [make(ones(3))])


def test_as_many_states_as_weights():
    with pytest.raises(ValueError, match="got 1 indices, 1 weights, 1 gradients and 2 states"):
        mxadamax.SGD().fused_step([0], [ones(3)], [ones(3)], [None, None])


def test_a_list_in_a_state_may_change():
    """It is looked at in every step: with a master weight it lies inside a tuple."""
    optimizer = mxadamax.Adamax(multi_precision=True)
    weight, grad = ones(3, dtype="float16"), ones(3, dtype="float16")
    master, (mean, norm) = optimizer.create_state_multi_precision(0, weight)
    others = [mean.copy(), norm.copy()]
    inner = [mean, norm]
    state = (master, inner)
    for _ in range(2):
        optimizer.fused_step([0], [weight], [grad], [state])
        mx.nd.waitall()
        inner[:] = others
    assert norm.asnumpy().tolist() == others[1].asnumpy().tolist() == [1, 1, 1]


@pytest.fixture
def unbound():
    """The native code is bound once more, and afterwards as it was."""
    native.cache_clear()
    yield
    native.cache_clear()
    native()


def test_an_mxnet_without_a_function(monkeypatch, unbound):
    monkeypatch.setattr(engine, "_LIB", object())
    message = "this MXNet library has no function MXGetLastError; supported are "
    with pytest.raises(ImportError, match=message):
        mxadamax.SGD()
    report = info.Report()
    info.look_at_mxnet(report)
    assert any(message in problem for problem in report.problems)
    # What needs no native code goes on.
    assert mxadamax.SGD(use_fused_step=False, numerics="portable").rule == "sgd"
    monkeypatch.undo()


@pytest.mark.parametrize("answer", [True, False])
def test_an_mxnet_with_other_arrays(answer, monkeypatch, unbound):
    """Where a view is not seen to share memory, or two arrays are."""
    monkeypatch.setattr(_native, "share_memory", lambda a, b: answer)
    with pytest.raises(ImportError, match="this MXNet lays out its arrays differently; supported"):
        mxadamax.SGD()
    monkeypatch.undo()


def test_failure_under_a_kvstore_is_loud():
    """MXNet drops the Python exception there; the weight must not look as if it had been updated."""
    parameter = gluon.Parameter("w", shape=(3,))
    parameter.initialize(ctx=[mx.cpu(0), mx.cpu(1)])
    trainer = gluon.Trainer([parameter], mxadamax.Adamax(aggregate_num=1), update_on_kvstore=True)
    with mx.autograd.record():
        loss = (parameter.data(mx.cpu(0)) * 2).sum()
    loss.backward()
    with mx.autograd.record():
        loss = (parameter.data(mx.cpu(1)) * 2).sum()
    loss.backward()
    trainer.optimizer.beta1 = 2.0
    trainer._init_kvstore()
    trainer._kvstore._updater.optimizer.beta1 = 2.0
    with pytest.raises(mx.MXNetError, match="adamax_ext: beta1 must be in"), ignored_in_c():
        trainer.step(1)
        parameter.data(mx.cpu(0)).asnumpy()


class ignored_in_c:  # noqa: N801
    """Silences the report of an exception that a C caller dropped."""

    def __enter__(self):
        self.hook, sys.unraisablehook = sys.unraisablehook, lambda report: None

    def __exit__(self, *exception):
        sys.unraisablehook = self.hook


@pytest.mark.parametrize("use_fused_step", [True, False])
@pytest.mark.parametrize("name", ["adam_ext", "adamax_ext", "sgld_ext"])
def test_a_weight_decay_that_a_multiplier_makes_negative(name, use_fused_step):
    """To kernels, a negative one means none."""
    optimizer = mx.optimizer.create(
        name, wd=0.01, use_fused_step=use_fused_step, numerics="portable"
    )
    updater, weight = mx.optimizer.get_updater(optimizer), mx.nd.ones((3,))
    optimizer.set_wd_mult({0: -1.0})
    with pytest.raises(ValueError, match=rf"{name}: .*wd.* must be in \[0, inf\), got -0.01"):
        updater(0, mx.nd.ones((3,)), weight)
    assert optimizer.num_update == 0 and weight.asnumpy().tolist() == [1.0, 1.0, 1.0]
