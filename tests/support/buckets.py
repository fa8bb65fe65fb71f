# SPDX-License-Identifier: Apache-2.0
"""A network for sequences of several lengths, as `BucketingModule` takes it, and its data."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np


def by_length(length: int) -> Any:
    """The symbol, and the names of data and labels."""
    table = mx.sym.Embedding(mx.sym.Variable("data"), input_dim=7, output_dim=4, name="table")
    net = mx.sym.FullyConnected(mx.sym.sum(table, axis=1), num_hidden=3, name="last")
    return mx.sym.SoftmaxOutput(net, name="softmax"), ("data",), ("softmax_label",)


def batch(seed: int, length: int, size: int) -> Any:
    """A batch of sequences of one length."""
    random = np.random.RandomState(seed)
    return mx.io.DataBatch(
        [mx.nd.array(random.randint(0, 7, (size, length)))],
        [mx.nd.array(random.randint(0, 3, size))],
        bucket_key=length,
        provide_data=[("data", (size, length))],
        provide_label=[("softmax_label", (size,))],
    )
