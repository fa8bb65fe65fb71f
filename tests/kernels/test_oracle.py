# SPDX-License-Identifier: Apache-2.0
"""What the kernels compute, against the papers' formulas: step by step, within rounding errors.

The kernels are given the scalars that the optimizers compute; the oracle works from the
hyperparameters. One instruction set is enough: test_kernels.py compares the bits of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import mxnet as mx
import numpy as np
import oracle
import pytest
from common import next_scalars

import mxadamax
from mxadamax import _native, _native_testing
from mxadamax.optimizers.base import FusedOptimizer

pytestmark = pytest.mark.quick

STEPS = 120
SIZE = 515  # No multiple of any vector's width.
COMMON = {"rescale_grad": 0.37, "clip_gradient": 0.5, "wd": 0.013}
VARIANTS = {
    "coupled_wd": {},
    "decoupled_wd": {"decoupled_wd": True},
    "maximize": {"maximize": True},
}


def optimizer_of(rule: oracle.Rule) -> type[FusedOptimizer]:
    """The class of the optimizer that follows a rule."""
    found = mx.optimizer.Optimizer.opt_registry[rule.optimizer]
    name = rule.formula.__name__
    if not name.startswith("lamb"):
        return found
    # Of two rules, with that for the MXNet that is installed.
    return type(name, (found,), {"rule": name})


class Case(NamedTuple):
    """A rule of the oracle, and an optimizer that must follow it.

    Parameters
    ----------
    rule : Rule
        Of the oracle.
    optimizer : type
        The class.
    more : dict
        Hyperparameters that both take, besides those of the rule.
    theirs : dict
        Options of the oracle alone.
    ulps : dict
        As in `Rule`.
    """

    rule: oracle.Rule
    optimizer: type[FusedOptimizer]
    more: Mapping[str, Any] = {}
    theirs: Mapping[str, Any] = {}
    ulps: Mapping[str, float] = {}

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        return {**self.rule.hyperparameters, **self.more}

    def __str__(self) -> str:
        name = f"{self.optimizer.__name__}-{self.rule.formula.__name__}"
        name += "".join(f"-{bound}" for bound in self.more if bound.endswith("_bound"))
        return name if self.hyperparameters.get("correct_bias", True) else f"{name}-uncorrected"

    def options(self, variant: str) -> dict[str, Any]:
        """Hyperparameters of a test."""
        return {**COMMON, **VARIANTS[variant], **self.hyperparameters}

    def run(self, variant: str, dtype: str) -> Iterator[Any]:
        """Update arrays again and again; yield them before each step, the gradient, them after.

        Magnitudes differ so much that each part of a formula decides for some elements.
        """
        options = self.options(variant)
        options["numerics"] = "portable"
        optimizer = self.optimizer(learning_rate=options.pop("lr"), **options, **self.rule.ours)
        assert optimizer.rule == self.rule.formula.__name__
        rng = np.random.RandomState(7)
        magnitude = 10.0 ** rng.uniform(-10, 1, SIZE)
        weight = (rng.standard_normal(SIZE) * 10.0 ** rng.uniform(-4, 1, SIZE)).astype(dtype)
        states = [np.zeros(SIZE, dtype) for _ in range(_native.rules[optimizer.rule].states)]
        for _ in range(STEPS):
            grad = rng.standard_normal(SIZE) * magnitude * 10.0 ** rng.uniform(-1, 1, SIZE)
            grad = np.where(rng.uniform(size=SIZE) < 0.05, 0, grad).astype(dtype)
            before = [x.copy() for x in (weight, *states)]
            _native_testing.update_numpy(
                optimizer.rule,
                [weight],
                [grad],
                [states],
                next_scalars(optimizer),
            )
            yield before, grad, [weight, *states]


CASES = [
    *(Case(rule, optimizer_of(rule), ulps=rule.ulps) for rule in oracle.RULES.values()),
    Case(
        *(oracle.RULES["adam"], mxadamax.AdamW, {"decoupled_wd": True}),
        theirs={"corrects_decay": True},
        ulps=oracle.CANCELS,
    ),
    Case(
        *(oracle.RULES["amsgrad"], mxadamax.AMSGrad, {"correct_bias": False}),
        # Without the correction the first changes are the largest.
        ulps={"float32": 0.6, "float64": 0.6},
    ),
    *(
        Case(rule, optimizer_of(rule), bound, ulps=rule.ulps)
        for rule in oracle.RULES.values()
        if rule.has_bounds
        for bound in ({"lower_bound": 100.0}, {"upper_bound": 3.0})
    ),
]
RUNS = [
    pytest.param(case, variant, id=f"{case}-{variant}")
    for case in CASES
    for variant in VARIANTS
    # These have it anyway, or not at all.
    if variant != "decoupled_wd"
    or not issubclass(case.optimizer, (mxadamax.AdamW, mxadamax.Lion, mxadamax.LAMB, mxadamax.LANS))
]
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def misses(actual: list[np.ndarray], expected: tuple[oracle.Rounded, ...]) -> list[str]:
    """Which arrays are farther off than rounding can explain."""
    names = ["weight", *(f"state {k}" for k in range(len(actual) - 1))]
    assert len(actual) == len(expected)
    return [
        name
        for name, x, e in zip(names, actual, expected)
        if not np.all(abs(x - e.value) <= e.error)
    ]


@dtypes
@pytest.mark.parametrize("case, variant", RUNS)
def test_every_step(case, variant, dtype):
    """Each element of weight and states, from the kernel's own values of the step before."""
    options = {**case.options(variant), **case.theirs}
    # The last operation rounds the weight; decoupled decay does so twice, counting its factor.
    ulps = case.ulps[dtype] + (1.5 if options.get("decoupled_wd") else 0.5)
    for t, (before, grad, after) in enumerate(case.run(variant, dtype), 1):
        expected = oracle.step(case.rule.formula, before[0], grad, before[1:], t, **options)
        assert not misses(after, expected), f"step {t}"
        size = np.maximum(abs(before[0]), abs(after[0]))
        off = abs(after[0] - expected[0].value) / np.spacing(size)
        # Smaller weights have smaller units than what is subtracted from them.
        assert np.all(off[size >= 0.25] <= ulps), f"step {t}"


def test_every_rule_has_a_case():
    # Those of MXNet's own operators are compared with these: tests/optimizers/test_parity.py.
    own = {rule for rule in _native.rules if "_mxnet" not in rule}
    assert set(oracle.RULES) == own


@pytest.mark.parametrize(
    "case, name, dtype",
    [
        pytest.param(case, name, dtype, id=f"{case}-{name}-{dtype}")
        for case in CASES
        for name, value in {**COMMON, **case.hyperparameters}.items()
        for dtype in ("float32", "float64")
        if not isinstance(value, bool)
        # A gradient that is normalized can have any factor.
        and not (case.rule.bounds_direction and name == "rescale_grad")
        # Here 1 - lr * wd is the same float32.
        and not (
            (case.optimizer is mxadamax.AdamW or case.rule.formula is oracle.signsgd)
            and (name, dtype) == ("wd", "float32")
        )
        # No other number has the sign of another.
        and not (
            case.rule.formula is oracle.signsgd
            and name in ("rescale_grad", "clip_gradient", "momentum")
        )
    ],
)
def test_a_hyperparameter_slightly_off_is_noticed(case, name, dtype):
    options = {**case.options("coupled_wd"), **case.theirs}
    options[name] *= 1 + 1e-4
    assert any(
        misses(after, oracle.step(case.rule.formula, before[0], grad, before[1:], t, **options))
        for t, (before, grad, after) in enumerate(case.run("coupled_wd", dtype), 1)
    )


@dtypes
@pytest.mark.parametrize(
    "formula",
    [
        lambda a, b, module: a + b,
        lambda a, b, module: a - b,
        lambda a, b, module: a * b,
        lambda a, b, module: a / b,
        lambda a, b, module: module.sqrt(abs(a)),
        lambda a, b, module: module.sqrt(module.square(a)) - module.maximum(b, -b),
        lambda a, b, module: (b - module.square(a)) / (module.sqrt(abs(b)) + 1),
    ],
)
def test_bounds_hold_and_are_close(formula, dtype):
    """Of the oracle's own arithmetic, also where results are next to the smallest numbers."""
    rng = np.random.RandomState(0)
    lowest = {"float32": -22, "float64": -160}[dtype]
    magnitude = 10.0 ** rng.uniform(lowest, 5, 20_000)
    a, b = (rng.uniform(-1, 1, (2, magnitude.size)) * magnitude).astype(dtype)
    found = formula(oracle.Rounded(a, dtype), oracle.Rounded(b, dtype), oracle)
    off = abs(formula(a, b, np) - found.value)
    assert np.all(off <= found.error)
    assert np.max(off / found.error) > 0.8
