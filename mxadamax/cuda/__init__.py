# SPDX-License-Identifier: Apache-2.0
"""Update arrays of CuPy, PyTorch and others on a GPU. Needs NumPy, but not MXNet.

An array is any object with ``__cuda_array_interface__`` or DLPack::

    from mxadamax import cuda

    batch = cuda.Batch("adam", weights, grads, states)
    batch.update({"lr": 0.001, "beta1": 0.9, ...}, stream=stream)
"""

from .batch import Batch, Scalars, update
from .diagnosis import Description, Gpu, describe
from .loader import kernels

__all__ = ["Batch", "Description", "Gpu", "Scalars", "describe", "kernels", "update"]

# Pickles and messages name the public module.
for _public in (Batch, Description, Gpu, describe, kernels, update):
    _public.__module__ = __name__
del _public
