# SPDX-License-Identifier: Apache-2.0
"""Run MXNet's own optimizer tests with this package's classes in place of the fused built-ins.

    git clone --depth 1 --branch 2.0.0.beta1 https://github.com/apache/mxnet
    python scripts/run_mxnet_tests.py mxnet/tests/python/unittest/test_optimizer.py

The tests compare, for each optimizer and many options, one update by the built-in's `step` with one
by its fused operator. Here the second is made by this package. Optimizers of MXNet that have no
fused operator are compared with themselves by those tests: here every other one that they make
is this package's.

Further arguments go to pytest.
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax

# isort: split
import itertools
import sys
from collections.abc import Sequence
from typing import Any, Callable

import mxnet as mx
import pytest

FUSED = ("Adam", "AdamW", "AdaBelief", "AdaGrad", "NAG", "RMSProp", "SGD")
OPTIONS_LIKE_THE_BUILT_IN = {
    "Adamax": {},
    "AdaDelta": {},
    "Nadam": {"schedule_per_parameter": True},
}


def fused_ones(name: str) -> Callable[..., mx.optimizer.Optimizer]:
    """What makes this package's optimizer where a fused one is asked for."""
    built_in, ours = getattr(mx.optimizer, name), getattr(mxadamax, name)

    def make(use_fused_step: bool = True, **options: Any) -> mx.optimizer.Optimizer:
        return (ours if use_fused_step else built_in)(use_fused_step=use_fused_step, **options)

    return make


def every_other_one(name: str, extra: dict[str, Any]) -> Callable[..., mx.optimizer.Optimizer]:
    """What makes the built-in and this package's optimizer in turn."""
    built_in, ours = getattr(mx.optimizer, name), getattr(mxadamax, name)
    turns = itertools.cycle([built_in, lambda **options: ours(**options, **extra)])
    return lambda **options: next(turns)(**options)


class Replacement:
    """A pytest plugin that puts this package's classes into MXNet's place, once, for all tests."""

    def pytest_collection_finish(self) -> None:
        """Replace them when the test files have been imported."""
        for name in FUSED:
            setattr(mx.optimizer, name, fused_ones(name))
        for name, extra in OPTIONS_LIKE_THE_BUILT_IN.items():
            setattr(mx.optimizer, name, every_other_one(name, extra))


def main(argv: Sequence[str] | None = None) -> int:
    """Run pytest."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(__doc__)
        return 2
    # MXNet's own pytest.ini and conftest.py are left out: they ask for packages of its build.
    options = ["-c", "/dev/null", "--noconftest", "-p", "no:cacheprovider", "-v"]
    return pytest.main([*options, *arguments], plugins=[Replacement()])


if __name__ == "__main__":
    sys.exit(main())
