# SPDX-License-Identifier: Apache-2.0
"""Write the cases of test_rules.cc: inputs of each rule, and what the oracle makes of them.

    python rule_cases.py FILE

Each case is a rule, a dtype, the rule's scalars, and for each element the gradient, the weight and
the states before the step, then the weight and the states after it, each with its largest error.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import oracle

USUAL = 40
"""Elements of a case without special values."""
LARGE = {
    **{"lr": 0.31, "beta1": 0.83, "beta2": 0.71, "epsilon": 0.053, "rho": 0.77},
    **{"momentum": 0.67, "clip_weights": 0.9, "schedule_decay": 2.0},
}
"""Hyperparameters that all show in a step; of others, those of the oracle do."""
SIGNED = ("with_sign", "earlier_weight")
SPECIAL = (np.nan, np.inf, -np.inf, 0.0)
STEP = 3

COMMON = {"rescale_grad": 0.37, "clip_gradient": 0.8, "wd": 0.23}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"wd": 0.0},
    {"decoupled_wd": True},
    {"decoupled_wd": True, "wd": 0.0},
    {"clip_gradient": np.inf, "clip_weights": np.inf},
    {"clip_gradient": np.inf, "clip_weights": np.inf, "decoupled_wd": True},
    {"rescale_grad": -1.5},
    # Without a gradient: what a rule does to a sum that is zero.
    {"clip_gradient": 0.0, "decoupled_wd": True},
]


ALIKE = {
    **dict.fromkeys(("adam_mxnet1", "adam_rows_mxnet1", "adam_mxnet2", "adam_rows_mxnet2"), "adam"),
    **dict.fromkeys(("adabelief_mxnet2", "adabelief_rows_mxnet2"), "adabelief"),
    # MXNet's own fails with a momentum.
    "dcasgd_momentum_mxnet1": "dcasgd_momentum",
    **{
        "adamax_mxnet1": "adamax",
        "nadam_mxnet1": "nadam",
        "nag_mxnet2": "nag",
        "lans_mxnet2": "lans",
    },
    **{"rmsprop_mxnet2": "rmsprop", "rmsprop_centered_mxnet2": "rmsprop_centered"},
    **{"ftrl_mxnet1": "ftrl", "ftrl_mxnet2": "ftrl", "lamb_mxnet1": "lamb"},
    **{"lars_alone_mxnet2": "lars", "lars_momentum_alone_mxnet2": "lars_momentum"},
}
"""Rules of MXNet's operators that compute the same, but for roundings and the order of clipping."""
MORE_ROUNDINGS = 8
"""How many times as large the error of one of those can be."""
IN_FLOAT32 = ("lars_alone_mxnet2", "lars_momentum_alone_mxnet2", "lamb_mxnet1")
"""Those that round to float32 in between."""


def scalars(rule: oracle.Rule, given: dict[str, Any]) -> dict[str, float]:
    """What the kernel is given for these hyperparameters, as the optimizers compute it."""
    found = {"decay_factor": 1.0, **given}
    decoupled = found.pop("decoupled_wd", False)
    if rule.decays:
        found.update(weight_decay=given["wd"] if decoupled else 0.0)
        found.update(wd=-1.0 if decoupled else given["wd"])
    elif decoupled:
        # A negative one is none.
        found.update(decay_factor=1 - given["lr"] * given["wd"], wd=-1.0)
    found.update(
        {f"one_minus_{name}": 1 - given[name] for name in rule.hyperparameters if name in given}
    )
    if rule.scalars is not None:
        found.update(rule.scalars(given, STEP))
    found.setdefault("weight_decay", 0.0)
    return {name: value for name, value in found.items() if not isinstance(value, bool)}


def inputs(rule: oracle.Rule, dtype: str, seed: int) -> list[np.ndarray]:
    """Gradients, weights and states: usual ones, then special values in each place in turn."""
    rng = np.random.RandomState(seed)
    places = [(place, x) for place in range(2 + len(rule.kinds)) for x in SPECIAL]
    if rule.sums:
        # One of them would be in all results.
        places = []
    count = USUAL + 2 * len(places)
    arrays = [rng.uniform(-3, 3, count), rng.uniform(-1.5, 1.5, count)]
    for kind in rule.kinds:
        low, high = (-3, 3) if kind in SIGNED else rule.positive
        arrays.append(rng.uniform(low, high, count))
    for k, (place, value) in enumerate(places):
        # States that are never negative, or never so small.
        least = rule.positive[0] if rule.positive[0] > 1 else 0
        if place > 1 and rule.kinds[place - 2] not in SIGNED and value < least:
            continue
        arrays[place][[USUAL + 2 * k, USUAL + 2 * k + 1]] = value
    return [array.astype(dtype) for array in arrays]


def after_step(
    rule: oracle.Rule, arrays: list[np.ndarray], given: dict[str, Any]
) -> tuple[oracle.Rounded, ...]:
    """What the oracle makes of a case."""
    grad, weight, *states = arrays
    with np.errstate(all="ignore"):
        return oracle.step(rule.formula, weight, grad, states, STEP, **given)


def write_case(
    file: TextIO,
    name: str,
    rule: oracle.Rule,
    arrays: list[np.ndarray],
    row: dict[str, float],
    after: Sequence[oracle.Rounded],
    errors: int = 1,
) -> None:
    shape = arrays[1].shape
    columns = list(arrays)
    with np.errstate(all="ignore"):
        for number in after:
            value = np.broadcast_to(number.value, shape).astype("float64")
            # Of what float64 cannot hold.
            error = number.error + np.where(np.isfinite(value), abs(number.value - value), 0)
            columns += [value, errors * np.nextafter(error.astype("float64"), np.inf)]
    print("case", name, arrays[0].dtype, int(rule.low_precision), *shape, file=file)
    print(len(rule.kinds), *rule.kinds, file=file)
    doubled = {f"double_{key}": x for key, x in row.items() if key.startswith("correction")}
    row = {**row, **doubled}
    print(len(row), *(f"{key} {float(value)!r}" for key, value in row.items()), file=file)
    for line in zip(*columns):
        print(*(repr(float(x)) for x in line), file=file)


def cases(rule: oracle.Rule) -> Iterator[tuple[list[np.ndarray], dict[str, Any], str]]:
    """The inputs, hyperparameters and dtype of each case of a rule."""
    own = {name: LARGE.get(name, value) for name, value in rule.hyperparameters.items()}
    own.pop("decoupled_wd", None)
    if "correct_bias" in inspect.signature(rule.formula).parameters:
        own["correct_bias"] = False
    for dtype in ("float32", "float64"):
        bounds = [{"lower_bound": 50.0}, {"upper_bound": 0.5}] if rule.has_bounds else []
        for seed, variant in enumerate(VARIANTS + bounds):
            given = {**COMMON, **own, **variant}
            if "clip_weights" not in own:
                given.pop("clip_weights", None)
            arrays = inputs(rule, dtype, seed)
            yield arrays, given, dtype
            if rule.sums and seed == 0:
                # A norm of zero, of the weight and of the delta. LANS divides by that of the gradient.
                zero = [np.zeros_like(array) for array in arrays]
                yield [arrays[0], zero[1], *arrays[2:]], given, dtype
                if rule.bounds_direction:
                    bounded = {**given, "wd": 0.0, "clip_gradient": 0.0}
                    yield [*arrays[:2], *zero[2:]], bounded, dtype
                else:
                    yield [zero[0], arrays[1], *zero[2:]], {**given, "wd": 0.0}, dtype
            if rule.adapts and seed == 0:
                # The product of such norms would be zero in single precision.
                yield [array * array.dtype.type(1e-25) for array in arrays], given, dtype
            if given["clip_gradient"] == 0:
                for state in arrays[2:]:
                    state[:] = 0
                yield arrays, given, dtype


def write_cases_of_lars_without_its_ratio(file: TextIO) -> None:
    """Of parameters whose rate is left as it is, LARS is plain gradient descent."""
    own = {"adapts": 0.0, "eta": 0.01, "epsilon": 5.0, "grad_scale": 1.0}
    for name in ("sgd", "sgd_momentum"):
        rule = oracle.RULES[name]
        for arrays, given, _ in list(cases(rule))[:2]:
            usual = [array[:USUAL] for array in arrays]
            row = {**scalars(rule, given), "momentum": 0.0, **given, **own}
            after = after_step(rule, usual, given)
            write_case(file, name.replace("sgd", "lars"), rule, usual, row, after)


def write_cases_of_zero_divided_by_zero(file: TextIO) -> None:
    """Where MXNet 1's AdaMax does that, ours takes no step."""
    rule = oracle.RULES["adamax"]
    zero, weight = np.zeros(USUAL, "float32"), inputs(rule, "float32", 0)[1][:USUAL]
    given = {**COMMON, **rule.hyperparameters, "wd": 0.0, "epsilon": 0.0}
    arrays = [zero, weight, zero, zero]
    unchanged = [oracle.Rounded(array, array.dtype) for array in arrays[1:]]
    write_case(file, "adamax_mxnet1", rule, arrays, scalars(rule, given), unchanged)


def main() -> None:
    with open(sys.argv[1], "w") as file:
        for name, rule in oracle.RULES.items():
            for arrays, given, _ in cases(rule):
                after = after_step(rule, arrays, given)
                write_case(file, name, rule, arrays, scalars(rule, given), after)
        write_cases_of_lars_without_its_ratio(file)
        write_cases_of_zero_divided_by_zero(file)
        for name, portable in ALIKE.items():
            rule = oracle.RULES[portable]
            # MXNet 1 clips after weight decay, and DCASGD's correction does not see the decay.
            changed = {"clip_gradient": np.inf, **({"wd": 0.0} if "dcasgd" in name else {})}
            for arrays, given, dtype in cases(rule):
                if dtype == "float32" or name not in IN_FLOAT32:
                    given = {**given, **changed}
                    usual = [array[:USUAL] for array in arrays]
                    after = after_step(rule, usual, given)
                    write_case(file, name, rule, usual, scalars(rule, given), after, MORE_ROUNDINGS)


if __name__ == "__main__":
    main()
