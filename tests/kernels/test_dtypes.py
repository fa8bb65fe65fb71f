# SPDX-License-Identifier: Apache-2.0
"""The table of types in Python is that of C++."""

from mxadamax import _native_testing
from mxadamax.dtypes import DTYPES


def test_types_have_the_same_names_and_sizes_in_both_languages():
    sizes = {name: dtype.item_size for name, dtype in DTYPES.items()}
    # Of row indices, which C++ counts with its own type.
    assert sizes.pop("int64") == 8
    assert sizes == _native_testing.dtype_sizes
