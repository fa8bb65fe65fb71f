# SPDX-License-Identifier: Apache-2.0
"""Compare with the installed MXNet's built-ins, bit for bit, in all of their dtypes and storages.

The optimizers here are those whose built-ins compute in Python, and whose defaults thus are the
same formula in all cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import mxnet as mx
import numpy as np
import pytest
from common import SPECIAL, gradients, leaves, nd
from sparse_gradients import row_sparse, some_rows

import mxadamax
from mxadamax._mxnet.compatibility import IS_MXNET_1

STEPS = 25
SHAPES = [(1, 1), (3, 5), (33, 4), (1, 1003)]
COMMON = (
    {},
    {"wd": 0.013},
    {"wd": 0.013, "clip_gradient": 0.37, "rescale_grad": 1 / 3},
    {"clip_gradient": 0.0, "learning_rate": 0.0123},
)


class Case(NamedTuple):
    """An optimizer with options, and what its built-in can do.

    Parameters
    ----------
    name : str
        The built-in's.
    options : dict
        Options of both.
    kinds : tuple of str
        Dtypes, and "master" or "rows".
    """

    name: str
    options: Mapping[str, Any] = {}
    kinds: tuple[str, ...] = ("float32", "float64", "master", "rows")

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])


CASES = [
    Case("dcasgd"),
    Case("dcasgd", {"lamda": 2.0}),
    # With a momentum, MXNet 1's fails.
    *([] if IS_MXNET_1 else [Case("dcasgd", {"momentum": 0.9, "lamda": 2.0})]),
    Case("sgld"),
    *(
        Case("lbsgd", {"momentum": momentum, "batch_scale": scale, **more})
        for momentum in (0.0, 0.9)
        for scale, more in (
            (1, {"warmup_strategy": "lars"}),
            (3, {"warmup_epochs": 2, "updates_per_epoch": 5}),
            (2, {"warmup_strategy": "sqrt", "begin_epoch": 1, "updates_per_epoch": 4}),
            (2, {"warmup_strategy": "power2"}),
        )
        if IS_MXNET_1
    ),
    # States of the built-in are float32; it refuses weight decay.
    Case("groupadagrad", {"wd": 0.0}, ("float32", "rows")),
    Case(
        "groupadagrad", {"wd": 0.0, "eps" if IS_MXNET_1 else "epsilon": 1e-2}, ("float32", "rows")
    ),
]
RUNS = [pytest.param(case, kind, id=f"{case}-{kind}") for case in CASES for kind in case.kinds]


def inputs(kind: str, special: bool) -> Iterator[list[mx.nd.NDArray]]:
    """Weights, then the gradients of each step."""
    dtype = {"master": "float16", "rows": "float32"}.get(kind, kind)
    rng = np.random.RandomState(5)
    yield [nd(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]
    for grads in gradients(SHAPES, dtype, STEPS, special=SPECIAL if special else ()):
        if kind == "rows":
            yield [row_sparse(grad, some_rows(len(grad), rng), grad.shape) for grad in grads]
        else:
            yield [nd(grad) for grad in grads]


def trajectory(
    optimizer: mx.optimizer.Optimizer, kind: str, special: bool, together: bool
) -> Iterator[list[np.ndarray]]:
    """Weights and states after each step, of all parameters in one call or one by one."""
    mx.random.seed(11)
    optimizer.set_lr_mult({1: 0.5, 2: 2.0})
    if optimizer.wd:
        optimizer.set_wd_mult({0: 0.0, 2: 3.0})
    updater = mx.optimizer.get_updater(optimizer)
    given = inputs(kind, special)
    weights = next(given)
    indices = list(range(len(weights)))
    for grads in given:
        if together:
            updater(indices, grads, list(weights))
        else:
            for one in zip(indices, grads, weights):
                updater(*one)
        found = [array.asnumpy() for array in weights]
        for index in indices:
            arrays = [array.asnumpy() for array in leaves(updater.states[index])]
            # Built-ins differ in where they have the master weight.
            found += sorted(arrays, key=lambda x: x.tobytes()) if kind == "master" else arrays
        yield found


def first_difference(
    case: Case, kind: str, make: Callable[..., Any], theirs: Mapping[str, Any] | None = None
) -> str:
    """Where ours first differs from what `make` makes, with `theirs`; empty if nowhere."""
    for common in COMMON:
        options = {**common, **case.options, "multi_precision": kind == "master"}
        # The built-in waits for float16 to overflow.
        special = kind != "master" and bool(common)
        built_in = make(**{**options, **(theirs or {})})
        wanted = list(trajectory(built_in, kind, special, together=False))
        ours = mx.optimizer.create(f"{case.name}_ext", **options)
        pairs = zip(trajectory(ours, kind, special, together=True), wanted)
        for step, (actual, expected) in enumerate(pairs, 1):
            assert len(actual) == len(expected)
            for k, (a, b) in enumerate(zip(actual, expected)):
                assert a.dtype == b.dtype and a.shape == b.shape
                if not np.array_equal(a, b, equal_nan=True):
                    return f"{options}, step {step}, array {k}"
    return ""


@pytest.mark.parametrize("case, kind", RUNS)
def test_same_bits_as_the_built_in(case, kind):
    def built_in(**options):
        return mx.optimizer.create(case.name, **options)

    assert not first_difference(case, kind, built_in)


def test_only_dcasgd_takes_none_in_a_tuple():
    weight = mx.nd.zeros((2,))
    for state in (None, weight.copy(), (weight.copy(), weight.copy()), (None, None), (None,)):
        with pytest.raises(ValueError, match="expected a tuple of None and one NDArray"):
            mxadamax.DCASGD().update_multi_precision(0, weight, weight.copy(), state)
    with pytest.raises(ValueError, match="expected one NDArray"):
        sgd = mxadamax.SGD(momentum=0.9)
        sgd.update_multi_precision(0, weight, weight.copy(), (None, weight.copy()))


@pytest.mark.parametrize("use_fused_step", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_options_of_sgld_see_the_noise(dtype, use_fused_step):
    """An average is that of the noisy weights, and a step that is skipped has no noise."""
    options = {"ema_decay": 0.0, "skip_nonfinite": True, "use_fused_step": use_fused_step}
    optimizer = mxadamax.SGLD(learning_rate=0.1, **options)
    assert optimizer.create_state(0, mx.nd.zeros((2,)))[0] is None
    updater = mx.optimizer.get_updater(optimizer)
    weight = mx.nd.zeros((100,), dtype=dtype)
    updater([0], [mx.nd.zeros_like(weight)], [weight])
    before = weight.asnumpy()
    assert 0.25 < before.std() < 0.4
    average = updater.states[0][1]
    assert np.array_equal(average.astype(dtype).asnumpy(), before)
    updater([0], [mx.nd.full((100,), np.inf, dtype=dtype)], [weight])
    assert np.array_equal(weight.asnumpy(), before)
    assert optimizer.skipped_steps == 1


def test_sgld_refuses_what_is_no_state_of_its_own():
    optimizer, weight = mxadamax.SGLD(learning_rate=0.1), mx.nd.zeros((2,))
    with pytest.raises(ValueError, match="sgld_ext: parameter 0: state is float32"):
        optimizer.update_multi_precision(0, weight, weight.copy(), weight.copy())
    optimizer.set_lr_mult({0: -1.0})
    with pytest.raises(
        ValueError, match=r"sgld_ext: parameter 0: lr must be in \(0, inf\), got -0.1"
    ):
        optimizer.update_multi_precision(0, weight, weight.copy(), None)
    assert optimizer.num_update == 0


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 has no LBSGD")
def test_lbsgd_asks_the_scheduler_and_reads_arrays_as_the_built_in():
    """Before the call counts; and the first gradient when the second comes."""
    runs = []
    for name in ("lbsgd", "lbsgd_ext"):
        schedule = mx.lr_scheduler.FactorScheduler(step=1, factor=0.5, base_lr=0.1)
        optimizer = mx.optimizer.create(name, batch_scale=2, lr_scheduler=schedule, momentum=0.5)
        updater = mx.optimizer.get_updater(optimizer)
        weights, grads = ([mx.nd.ones((3,)) for _ in range(2)] for _ in range(2))
        for step in range(6):
            for k, grad in enumerate(grads):
                grad[:] = step + 2.0**k
            for one in zip([0, 1], grads, weights):
                updater(*one)
        runs.append([weight.asnumpy().tolist() for weight in weights])
    assert runs[0] == runs[1]


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 has no LBSGD")
@pytest.mark.parametrize("use_fused_step", [True, False])
def test_lbsgd_counts_nothing_where_a_step_fails(use_fused_step):
    optimizer = mxadamax.LBSGD(learning_rate=0.1, use_fused_step=use_fused_step)
    weight = mx.nd.ones((3,))
    optimizer.set_lr_mult({0: 1e300})
    optimizer.lr = 1e300
    with pytest.raises(ValueError, match="lbsgd_ext"):
        optimizer.update_multi_precision(0, weight, mx.nd.ones((3,)), None)
    assert optimizer.num_update == 0 and not optimizer.cumgrads


@pytest.mark.skipif(not IS_MXNET_1, reason="MXNet 2 has no LBSGD")
@pytest.mark.parametrize("options", [{"clip_global_norm": 1.0}, {"skip_nonfinite": True}])
def test_lbsgd_refuses_what_needs_the_whole_model(options):
    with pytest.raises(ValueError, match=f"lbsgd_ext: {next(iter(options))} must be left alone"):
        mxadamax.LBSGD(**options)


@pytest.mark.parametrize("maximize", [False, True])
def test_groupadagrad_keeps_one_number_for_each_row(maximize):
    optimizer = mxadamax.GroupAdaGrad(learning_rate=0.5, epsilon=0.0, maximize=maximize)
    updater = mx.optimizer.get_updater(optimizer)
    for make in (mx.nd.array, lambda x: mx.nd.array(x).tostype("row_sparse")):
        weight, updater.states, updater.states_synced = mx.nd.zeros((3, 2)), {}, {}
        updater(0, make([[3.0, 3.0], [0.0, 0.0], [-2.0, 0.0]]), weight)
        history = updater.states[0].asnumpy()
        assert history.tolist() == [[9.0], [0.0], [2.0]]
        signed = weight.asnumpy() * (1 if maximize else -1)
        assert signed[0].tolist() == [0.5, 0.5] and signed[2, 0] == np.float32(-np.sqrt(0.5))


@pytest.mark.parametrize(
    "options",
    [
        {"wd": 0.1},
        {"clip_global_norm": 1.0},
        {"skip_nonfinite": True},
        {"ema_decay": 0.9},
        {"state_dtype": "float16"},
    ],
)
def test_groupadagrad_refuses_options(options):
    with pytest.raises(ValueError, match=f"groupadagrad_ext: {next(iter(options))} must be"):
        mxadamax.GroupAdaGrad(**options)


def test_groupadagrad_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match="groupadagrad_ext: a weight must be a matrix"):
        mxadamax.GroupAdaGrad().create_state(0, mx.nd.zeros((3,)))


class GluonNLPsBERTAdam(mx.optimizer.Optimizer):
    """What BERTAdam of GluonNLP 0.10 computes, without anything around it."""

    def __init__(self, beta1=0.9, beta2=0.999, epsilon=1e-6, learning_rate=0.001, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.rates = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon}

    def create_state_multi_precision(self, index, weight):
        wide = weight.astype("float32")
        moments = mx.nd.zeros_like(wide), mx.nd.zeros_like(wide)
        return (moments, wide) if weight.dtype == np.float16 else moments

    def update_multi_precision(self, indices, weights, grads, states):
        if not isinstance(indices, (list, tuple)):
            indices, weights, grads, states = [indices], [weights], [grads], [states]
        for index, weight, grad, state in zip(indices, weights, grads, states):
            self._update_count(index)
            lr, wd = self._get_lr(index), self._get_wd(index)
            more = {**self.rates, "rescale_grad": mx.nd.full((1,), self.rescale_grad)}
            if self.clip_gradient:
                more["clip_gradient"] = self.clip_gradient
            if grad.stype == "row_sparse":
                operator = mx.nd.contrib.adamw_update
                operator(weight, grad, *state, out=weight, lr=1, wd=wd, eta=lr, **more)
                continue
            more.update(lrs=[1.0], wds=[wd], etas=[lr], size=1)
            if weight.dtype == np.float16:
                (m, v), wide = state
                operator = mx.nd.contrib.multi_mp_adamw_update
                operator([weight], [grad], [m], [v], [wide], out=[weight], **more)
            else:
                operator = mx.nd.contrib.multi_adamw_update
                operator([weight], [grad], *([x] for x in state), out=[weight], **more)


@pytest.mark.parametrize("kind", ["float32", "master", "rows"])
@pytest.mark.parametrize("beta1", [0.9, 0.123])
def test_bertadam_is_that_of_gluonnlp(beta1, kind):
    case = Case("bertadam", {"beta1": beta1})
    assert not first_difference(case, kind, GluonNLPsBERTAdam)
    assert first_difference(case, kind, GluonNLPsBERTAdam, theirs={"epsilon": 2e-6})


@pytest.mark.skipif(not IS_MXNET_1, reason="of MXNet 1")
@pytest.mark.parametrize("kind", ["float32", "float64", "master", "rows"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ccsgd_is_sgd(momentum, kind):
    def built_in(**options):
        return mx.optimizer.create("ccsgd", **options)

    assert not first_difference(Case("ccsgd", {"momentum": momentum}), kind, built_in)
    assert type(mx.optimizer.create("ccsgd_ext")) is mxadamax.SGD


@pytest.mark.parametrize("case, kind", RUNS)
def test_another_option_is_noticed(case, kind):
    def built_in(**options):
        return mx.optimizer.create(case.name, **options)

    assert first_difference(case, kind, built_in, theirs={"rescale_grad": 0.3333})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_readable_definition_equals_the_kernel(case, dtype):
    def reference(**options):
        return mx.optimizer.create(f"{case.name}_ext", **options, use_fused_step=False)

    assert not first_difference(case, dtype, reference)
