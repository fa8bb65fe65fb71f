# SPDX-License-Identifier: Apache-2.0
"""Nothing that a user computes changes: digests of weights and states, as version 0.1 had them.

Those with low-precision states are of today: they are rounded by other random bits since.

They are the same on every MXNet, instruction set and number of threads; those of built-ins on every
MXNet of a series. To record those of new cases,
and of no others: ``PYTHONPATH=.:tests/support python tests/optimizers/test_digests.py --record``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mxadamax  # noqa: F401  # isort: skip  # Before MXNet: Python 3.12 cannot import that alone.
import common
import mxnet as mx
import numpy as np
import pytest

from mxadamax import _native
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.optimizers.arithmetic import SERIES, built_in_class
from mxadamax.optimizers.info import OPTIMIZERS as RECORDS

pytestmark = pytest.mark.quick

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
FILE = Path(__file__).with_suffix(".json")
STEPS = 8
SHAPES = ((0,), (1,), (3, 5), (), (130,), (2, 0, 3), (33, 4))
TABLE = (33, 4)
"""The shape of the weight whose gradient can hold some rows."""

OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    **{record.name: {} for record in RECORDS if record.name not in ("lamb_ext", "lars_ext")},
    "adamw_ext, no correction": {"correct_bias": False},
    "bertadam_ext": {},
    "adabelief_ext, no correction": {"correct_bias": False},
    "rmsprop_ext, clip_weights": {"clip_weights": 0.3},
    "rmsprop_ext, centered": {"centered": True, "epsilon": 1e-3},
    "sgd_ext, momentum": {"momentum": 0.9},
    "signum_ext, no momentum": {"momentum": 0.0},
    "lars_ext": {"numerics": "portable", "eta": 0.1},
    "lars_ext, momentum": {"numerics": "portable", "eta": 0.1, "momentum": 0.9},
    "dcasgd_ext, momentum": {"momentum": 0.9},
    # The built-in's bits, which are not the same in both.
    f"lamb_ext, MXNet {1 if IS_MXNET_1 else 2}": {"lower_bound": 0.5, "upper_bound": 2.0},
}
BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    " ".join([f"{record.name}, built-in of MXNet {SERIES}", *map(str, record.options)]): {
        **{"numerics": "builtin", **record.options, **record.fixed_order}
    }
    for record in RECORDS
    if built_in_class(record.built_in) is not None
}
"""With the bits of the built-in, which are not the same in both series."""
COMMON = {"wd": 0.01, "rescale_grad": 0.5, "clip_gradient": 2.0}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "common": COMMON,
    "maximize": {**COMMON, "maximize": True},
    "decoupled_wd": {**COMMON, "decoupled_wd": True},
    "clip_global_norm": {**COMMON, "clip_global_norm": 0.75},
    "skip_nonfinite": {**COMMON, "skip_nonfinite": True},
    "ema_decay": {**COMMON, "ema_decay": 0.9},
    "one by one": {**COMMON, "aggregate_num": 1},
    "lazy_update": {**COMMON, "lazy_update": True},
    "all": {
        **COMMON,
        **{"clip_global_norm": 0.75, "skip_nonfinite": True, "ema_decay": 0.9},
        **{"decoupled_wd": True, "maximize": True, "begin_num_update": 5},
    },
    "reference": {**COMMON, "use_fused_step": False},
}
LOW_PRECISION = ("float16", "bfloat16", "int8")


def rule_of(optimizer: str, options: Mapping[str, Any]) -> Any:
    """What the native module says of an optimizer's rule."""
    name = optimizer.partition(",")[0]
    return _native.rules[mx.optimizer.create(name, **{"numerics": "portable", **options}).rule]


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each case, and what it is made from."""
    for optimizer, own in OPTIMIZERS.items():
        for options, more in OPTIONS.items():
            for dtype in ("float32", "float64"):
                yield f"{optimizer}; {options}; {dtype}", {"options": {**own, **more}}
        for dtype in ("float16", "bfloat16"):
            for master in (False, True):
                for options in ("common", "all"):
                    name = f"{optimizer}; {options}; {dtype}{', master' * master}"
                    given = {**own, **OPTIONS[options], "multi_precision": master}
                    yield name, {"options": given}
        for options in ("common", "lazy_update", "all"):
            for dtype in ("float32", "float64", "float16"):
                name = f"{optimizer}; {options}; {dtype}; row_sparse"
                yield name, {"options": {**own, **OPTIONS[options]}, "rows": True}
        for state_dtype in LOW_PRECISION:
            rule = rule_of(optimizer, own)
            if not (rule.states and rule.supports_low_precision_state):
                continue
            if state_dtype == "int8" and not rule.supports_int8_state:
                continue
            for options in ("common", "all"):
                for dtype in ("float32", "bfloat16"):
                    given = {"state_dtype": {".*": state_dtype}, "state_seed": 3}
                    name = f"{optimizer}; {options}; {dtype}; states {state_dtype}"
                    yield name, {"options": {**own, **OPTIONS[options], **given}}
    for optimizer, own in BUILT_IN.items():
        for kind in ("float32", "float64", "float16, master"):
            given = {**own, **COMMON, "multi_precision": "master" in kind}
            yield f"{optimizer}; common; {kind}", {"options": given}


CASES = dict(cases())


def numbers(rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of many magnitudes that every machine makes the same."""
    return np.ldexp(rng.randint(-255, 256, shape).astype("float64"), rng.randint(-20, -5, shape))


def nd(values: np.ndarray, dtype: str) -> mx.nd.NDArray:
    """An array of MXNet's of any dtype and shape."""
    array = common.nd(np.asarray(values, "float32"))
    return mx.nd.cast(array, dtype=BFLOAT16 if dtype == "bfloat16" else dtype)


def digest(name: str) -> str:
    """The digest of all weights and states after each of some steps."""
    with mx.util.np_shape(True):
        return _digest(name)


def _digest(name: str) -> str:
    optimizer_name, _, rest = name.partition("; ")
    dtype = rest.split("; ")[1].partition(",")[0]
    case = CASES[name]
    rng = np.random.RandomState(7)
    # The same on every MXNet.
    options = {"numerics": "portable", **case["options"]}
    optimizer = mx.optimizer.create(optimizer_name.partition(",")[0], **options)
    optimizer.set_lr_mult({1: 0.5, 4: 2.0})
    optimizer.set_wd_mult({2: 0.0, 6: 3.0})
    updater = mx.optimizer.get_updater(optimizer)
    weights = [nd(numbers(rng, shape), dtype) for shape in SHAPES]
    found = hashlib.sha256()
    for step in range(STEPS):
        grads = [nd(numbers(rng, shape), dtype) for shape in SHAPES]
        if case.get("rows"):
            chosen = np.flatnonzero(rng.randint(0, 2, TABLE[0]))
            rows = nd(numbers(rng, (len(chosen), *TABLE[1:])), dtype)
            grads[-1] = mx.nd.sparse.row_sparse_array((rows, chosen), shape=TABLE, dtype=rows.dtype)
        if step == 5 and case["options"].get("skip_nonfinite"):
            grads[2][:] = float("inf")
        updater(list(range(len(weights))), grads, list(weights))
        for array in (
            *weights,
            *common.leaves([updater.states[i] for i in sorted(updater.states)]),
        ):
            if array.dtype == BFLOAT16:
                array = mx.nd.cast(array, dtype="float32")
            found.update(array.asnumpy().tobytes())
    if optimizer.clip_global_norm is not None or optimizer.skip_nonfinite:
        found.update(f"{optimizer.skipped_steps}".encode())
    return found.hexdigest()[:16]


def recorded() -> dict[str, str]:
    """All digests there are."""
    found: dict[str, str] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *BUILT_IN])
def test_bits_are_those_that_were_recorded(optimizer):
    wanted = {name: value for name, value in recorded().items() if name.startswith(f"{optimizer};")}
    assert set(wanted) == {name for name in CASES if name.startswith(f"{optimizer};")}
    differing = [name for name, value in wanted.items() if digest(name) != value]
    assert not differing


def test_nearly_all_digests_differ():
    """A case that computes nothing would have that of another."""
    found = recorded()
    assert len(set(found.values())) > 0.8 * len(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Record the digests of new cases.")
    parser.add_argument("--record", action="store_true", required=True)
    parser.parse_args()
    known = recorded()
    found = {**known, **{name: known.get(name) or digest(name) for name in CASES}}
    FILE.write_text(json.dumps(found, indent=0) + "\n")
    print(f"{len(found)} digests, {len(set(found) - set(known))} new")
