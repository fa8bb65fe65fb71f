# SPDX-License-Identifier: Apache-2.0
"""Run MXNet's own optimizer tests with this package's classes in place of the built-ins.

    git clone --depth 1 --branch 2.0.0.beta1 https://github.com/apache/mxnet
    python scripts/mxnet_tests.py mxnet

The checkout must be of the installed MXNet's release. Its tests compare two optimizers, and call
the one under test `opt2`: in MXNet 2 the fused side, `opt1` being the built-in's operators; in
MXNet 1 the built-in, `opt1` being a reference in Python. Here `opt2` is this package's class, and
so are the optimizers that MXNet's `Module` and the tests of learning rates create.

Prints one line per test, with the number of comparisons; the exit status is 1 if one failed.
"""

from __future__ import annotations

import os

# MXNet would say of each sparse array that an operator copies it to a dense one.
os.environ.setdefault("MXNET_STORAGE_FALLBACK_LOG_VERBOSE", "0")

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax

# isort: split
import argparse
import collections
import contextlib
import io
import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any, Callable

from mxadamax._mxnet.compatibility import seed_all

REPLACEMENTS = (
    (r"\bopt2 = mx\.optimizer\.", "opt2 = mxadamax."),
    # Not the third, which must have no learning rate of its own.
    (r"\b(o[12]?) = mx\.optimizer\.Optimizer\(", r"\1 = mxadamax.SGD("),
    (r"\boptimizer='nadam'", "optimizer='nadam_ext'"),
    (r"\binit_optimizer\(", "init_optimizer(optimizer='sgd_ext', "),
    # MXNet 1's SGD and NAG keep the master weight last, this package first on every MXNet.
    (r"\(momentum, weight_master_copy\)", "(weight_master_copy, momentum)"),
    (r"\bmom = state\[0\]", "mom = state[1]"),
    (r"\bweight32 = state\[1\]", "weight32 = state[0]"),
    # MXNet 1's RMSProp keeps a tuple of one array, this package the array.
    (r"\((mx\.nd\.zeros\(weight\.shape, weight\.context\)), \)", r"\1"),
    (r"\(n, \) = state", "n = state"),
)
"""What is changed in the text of the tests."""

FILE = "test_optimizer.py"
FOLDERS = ("", "unittest", "python/unittest", "tests/python/unittest")


class Comparisons:
    """Counts the comparisons of a test, and goes on after one that fails."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin a test."""
        self.made = 0
        self.failures: collections.Counter[str] = collections.Counter()

    def around(self, compare: Callable[..., None]) -> Callable[..., None]:
        """Wrap one of MXNet's functions that compare two optimizers."""

        def counted(*arguments: Any, **options: Any) -> None:
            self.made += 1
            try:
                compare(*arguments, **options)
            except Exception as error:
                self.failures[describe(error)] += 1

        return counted


def describe(error: BaseException) -> str:
    """Return the type of an error and a line of it; MXNet's C++ begins with a traceback."""
    lines = list(filter(str.strip, str(error).splitlines()))
    line = next((line for line in lines if "Error: " in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {line.strip()[:160]}"


def stand_ins() -> dict[str, types.ModuleType]:
    """Make the modules that MXNet's tests import from its build and from nose."""

    def unchanged(test: Any) -> Any:
        return test

    def raises(expected: type[BaseException]) -> Callable[..., Any]:
        def decorate(test: Callable[[], None]) -> Callable[[], None]:
            def wrapped() -> None:
                try:
                    test()
                except expected:
                    return
                raise AssertionError(f"{expected.__name__} was not raised")

            return wrapped

        return decorate

    common = types.ModuleType("common")
    common.__dict__.update(
        with_seed=lambda: unchanged,
        retry=lambda times: unchanged,
        xfail_when_nonstandard_decimal_separator=unchanged,
        setup_module=None,
        teardown=None,
    )
    tools = types.ModuleType("nose.tools")
    tools.__dict__["raises"] = raises
    return {"common": common, "nose": types.ModuleType("nose"), "nose.tools": tools}


def main() -> int:
    """Run the tests of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help=f"a checkout of MXNet, its tests, or {FILE}")
    parser.add_argument("names", nargs="*", help="run only these tests")
    given = parser.parse_args()
    candidates = [given.path, *(given.path / folder / FILE for folder in FOLDERS)]
    file = next(filter(Path.is_file, candidates), None)
    if file is None:
        parser.error(f"found no {FILE} in {given.path}")

    source = file.read_text(encoding="utf-8")
    for theirs, ours in REPLACEMENTS:
        source = re.sub(theirs, ours, source)
    sys.modules.update(stand_ins())
    tests: dict[str, Any] = {"__name__": "test_optimizer", "mxadamax": mxadamax}
    exec(compile(source, str(file), "exec"), tests)
    comparisons = Comparisons()
    for name in ("compare_optimizer", "compare_optimizer_noise_seeded"):
        if name in tests:
            tests[name] = comparisons.around(tests[name])

    failed = 0
    for name, body in re.findall(r"(?ms)^def (test_\w+)\(\):(.*?)(?=^\S|\Z)", source):
        if given.names and name not in given.names:
            continue
        if "mxadamax" not in body and "_ext" not in body:
            print(f"{name}: not applicable, makes no optimizer", flush=True)
            continue
        comparisons.start()
        seed_all(1)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                tests[name]()
        except Exception as error:
            comparisons.failures[describe(error)] += 1
        total = f"{comparisons.made} comparisons"
        if comparisons.failures:
            failed += 1
            why = "; ".join(f"{n} x {text}" for text, n in comparisons.failures.most_common())
            print(f"{name}: FAILED, of {total}: {why}", flush=True)
        else:
            print(f"{name}: passed" + f", {total}" * bool(comparisons.made), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
