# SPDX-License-Identifier: Apache-2.0
"""Run a test with every instruction set."""

import pytest

from mxadamax import _native

ALL_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


def available(name):
    return pytest.param(
        name,
        marks=pytest.mark.skipif(
            name not in _native.instruction_sets, reason=f"this processor has no {name}"
        ),
    )


instruction_sets = pytest.mark.parametrize(
    "instruction_set", [available(name) for name in ALL_INSTRUCTION_SETS]
)
