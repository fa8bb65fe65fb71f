# SPDX-License-Identifier: Apache-2.0
"""Record cases of test_rules.cc from the installed MXNet: what its own optimizers compute.

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/native/record_mxnet_cases.py

writes mxnet1_cases.txt or mxnet2_cases.txt in this folder, in the format of rule_cases.py. Rules of
MXNet's operators have to equal these numbers to the last bit. The dtype "masters" is float32 with the
float16 weight as one more number before the step, for rules that take norms of it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import mxadamax  # noqa: F401  # isort: skip  # Before MXNet: Python 3.12 cannot import that alone.
import mxnet as mx
import numpy as np
import oracle
from engine_scalars import handed_over

from mxadamax import _native
from mxadamax.conversion import built_in_name, master_first
from mxadamax.optimizers import native_step
from mxadamax.optimizers.arithmetic import SERIES, Arithmetic, built_in_class, names_in_mxnet
from mxadamax.optimizers.info import OPTIMIZERS, OptimizerInfo
from mxadamax.optimizers.state_layout import arrays_of

FOLDER = Path(__file__).parent
SHAPE = (4, 2)
STEPS = 2
COMMON = {"learning_rate": 0.31, "wd": 0.23, "clip_gradient": 0.8, "rescale_grad": 0.37}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"wd": 0.0},
    {"clip_gradient": None},
    {"rescale_grad": -1.5, "clip_gradient": None, "wd": 0.0},
]
LARGE = {
    **{"beta1": 0.83, "beta2": 0.71, "epsilon": 0.053, "rho": 0.77, "clip_weights": 1.1},
    **{"eta": 0.1, "schedule_decay": 2.0, "wd_lh": 0.4, "lamda1": 0.1, "beta": 0.3, "lamda": 0.4},
}
"""Hyperparameters that all show in a step."""
SPECIAL = (np.nan, np.inf, -np.inf, 0.0)

pushed: list[tuple[Arithmetic, Mapping[str, Any]]] = []


def scalars(arithmetic: Arithmetic, table: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of one parameter, as the engine hands them to the kernel."""
    first = {name: x[0] if isinstance(x, list) else x for name, x in table.items()}
    return {name: float(handed_over(arithmetic, name, value)) for name, value in first.items()}


def kinds(rule: str) -> tuple[str, ...]:
    """The kinds of a rule's states: those of the portable rule that it varies."""
    portable = re.sub("^single_|_rows|_alone|_mxnet.*", "", rule).replace("adamw", "adam")
    found = oracle.RULES[portable].kinds
    # MXNet 1 keeps the mean of squares before that of gradients.
    return (found[1], found[0], *found[2:]) if rule == "rmsprop_centered_mxnet1" else found


def numbers(rng: np.random.RandomState, low: float, high: float, dtype: str) -> np.ndarray:
    """Numbers of few digits, without zero: of zeros alone, MXNet 1's AdaMax makes NaN."""
    return (np.floor(rng.uniform(low, high, SHAPE) * 64).astype(dtype) + 0.5) / 64


def text(x: float) -> str:
    """The shortest exact text of a number."""
    if not np.isfinite(x):
        return repr(float(x))
    mantissa, _, exponent = float(x).hex().partition("p")
    return mantissa.rstrip("0").rstrip(".") + "p" + exponent


def columns(arrays: list[Any]) -> list[np.ndarray]:
    return [array.asnumpy().ravel().astype("float64") for array in arrays]


def primary(optimizer: Any, weight: Any, state: Any) -> list[Any]:
    """The weight that is computed with, and its states."""
    arrays = arrays_of(master_first(state, built_in_name(optimizer) or ""))
    return arrays if copies(weight) else [weight, *arrays]


def copies(weight: Any) -> list[Any]:
    """The weight that is rounded from its master."""
    return [weight] if weight.dtype == np.float16 else []


def steps(
    info: OptimizerInfo,
    options: dict[str, Any],
    dtype: str,
    rows: str,
    seed: int,
    factors: tuple[float, float] = (1.0, 1.0),
) -> Iterator[list[str]]:
    """The lines of one case for each of some steps; factors are of weight and gradient."""
    rng = np.random.RandomState(seed)
    optimizers = (
        info.create(**options),
        info.create_reference("masters" if dtype == "float16" else dtype, **options),
    )
    weights = [mx.nd.array(factors[0] * numbers(rng, -1.5, 1.5, dtype), dtype=dtype)]
    if rows == "all":
        weights = [weights[0].tostype("row_sparse")]
    weights += [weights[0].copy()]
    updaters = [mx.optimizer.get_updater(optimizer) for optimizer in optimizers]
    states = [x.create_state_multi_precision(0, w) for x, w in zip(optimizers, weights)]
    for updater, state in zip(updaters, states):
        updater.states[0], updater.states_synced[0] = state, True
    for step in range(STEPS):
        values = factors[1] * numbers(rng, -3, 3, dtype)
        special = not info.name.startswith(("lars", "lamb", "lans")) and step == STEPS - 1
        if special:
            values.ravel()[: len(SPECIAL)] = SPECIAL
        before = columns([*primary(optimizers[0], weights[0], states[0]), *copies(weights[0])])
        pushed.clear()
        for updater, weight in zip(updaters, weights):
            grad = mx.nd.array(values, dtype=dtype)
            updater([0], [grad.tostype("row_sparse") if rows else grad], [weight])
        after, expected = (columns(primary(*of_one)) for of_one in zip(optimizers, weights, states))
        for found, theirs in zip(after, expected):
            np.testing.assert_array_equal(found, theirs, f"{info}, {options}, {dtype}, step {step}")
        ((arithmetic, table),) = pushed
        rule = _native.rules[arithmetic.rule]
        low_precision = int(rule.supports_low_precision_state)
        row = scalars(arithmetic, table)
        label = "masters" if dtype == "float16" else dtype
        lines = [f"case {arithmetic.rule} {label} {low_precision} {values.size}"]
        lines += [" ".join([str(rule.states), *kinds(arithmetic.rule)])]
        lines += [" ".join([str(len(row)), *(f"{k} {text(x)}" for k, x in row.items())])]
        given = [values.ravel().astype("float64"), *before]
        for element in zip(*given, *expected):
            numbers_before, numbers_after = element[: len(given)], element[len(given) :]
            lines += [
                " ".join([*map(text, numbers_before), *(f"{text(x)} 0" for x in numbers_after)])
            ]
        yield lines


def takes(info: OptimizerInfo, name: str) -> bool:
    """Whether the built-in has an argument, and does not fail with it."""
    taken = inspect.signature(built_in_class(info.built_in).__init__).parameters
    fails = SERIES == 1 and name == "wd_lh" and info.options.get("momentum") == 0
    return names_in_mxnet(name, taken) in taken and not fails


def cases(info: OptimizerInfo) -> Iterator[tuple[Any, ...]]:
    """The options, the dtype, which arrays are row_sparse, and factors, of each training."""
    given = {**COMMON, **{k: x for k, x in LARGE.items() if takes(info, k)}, **info.options}
    own = [
        variant
        for variant in (*info.variants, info.fixed_order)
        if variant and all(name in COMMON or takes(info, name) for name in variant)
    ]
    for variant in VARIANTS + own:
        yield {**given, **variant}, "float32", ""
        if ("float64", SERIES) not in info.exceptions and variant in VARIANTS:
            yield {**given, **variant}, "float64", ""
    if _native.rules[info.create().rule].sums:
        for order in [{}, *([info.fixed_order] if info.fixed_order else [])]:
            if ("masters", SERIES) not in info.exceptions:
                yield {**given, **order, "multi_precision": True}, "float16", ""
            yield {**given, **order}, "float32", "", (2.0**-8, 2.0**-8)
            yield {**given, **order}, "float32", "", (0.0, 1.0)
            if info.built_in == "lars":
                yield {**given, **order}, "float32", "", (1.0, 0.0)
                yield {**given, **order, "param_idx2name": {0: "a_gamma"}}, "float32", ""
    if ("row_sparse", SERIES) not in info.exceptions:
        for variant in [{}, *own]:
            yield {**given, **variant, **info.row_sparse_options}, "float32", "gradients"
            # Only MXNet 1 has a formula of its own for weights of rows.
            if SERIES == 1 and info.built_in == "nag":
                yield {**given, **variant}, "float32", "all"


def main() -> None:
    def hand_over(arithmetic: Arithmetic, batch: Any, tables: Any, *how: Any, **more: Any) -> None:
        pushed.append((arithmetic, dict(tables[0])))
        original(arithmetic, batch, tables, *how, **more)

    original, native_step._hand_over = native_step._hand_over, hand_over
    lines: list[str] = []
    recorded = set()
    for info in OPTIMIZERS:
        if built_in_class(info.built_in) is None or ("float32", SERIES) in info.exceptions:
            continue
        for seed, (options, dtype, rows, *factors) in enumerate(cases(info)):
            for case in steps(info, options, dtype, rows, seed, *factors):
                rule = case[0].split()[1]
                if "_mxnet" in rule and not (rows and rule in recorded):
                    lines += case
                    recorded.update([] if rows else [rule])
    (FOLDER / f"mxnet{SERIES}_cases.txt").write_text("\n".join(lines) + "\n")
    left = {rule for rule in _native.rules if re.search(f"_mxnet{SERIES}?$", rule)} - {
        line.split()[1] for line in lines if line.startswith("case ")
    }
    print(f"{len(lines)} lines; no cases of {', '.join(sorted(left)) or 'none'}", file=sys.stderr)


if __name__ == "__main__":
    main()
