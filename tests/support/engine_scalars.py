# SPDX-License-Identifier: Apache-2.0
"""What MXNet's engine makes of the scalars of an optimizer: `push` in csrc/python/module.cc."""

import numpy as np

from mxadamax import _native


def handed_over(arithmetic, name, value):
    """The number that a kernel gets for a scalar that every rule or formula has."""
    if name.startswith("clip_"):
        return _native.as_mxnet_reads_float32(value)
    if not arithmetic.by_operator:
        return _native.as_mxnet_reads(value)
    if name in arithmetic.exact:
        return value
    if name in arithmetic.listed:
        return float(np.float32(value))
    return _native.as_mxnet_reads_float32(value)
