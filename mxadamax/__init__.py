"""Optimizers for Apache MXNet with native kernels: one engine operation per step.

Importing this package registers its optimizers with MXNet: ``gluon.Trainer(params, 'adamax_ext')``.
"""

try:
    import mxnet as _mxnet  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "mxnet":
        raise
    raise ImportError(
        "mxadamax needs Apache MXNet: install it with pip install 'mxadamax[mxnet]', "
        "or install the MXNet 2.0.0b1 flavour for your machine."
    ) from None

from .adamax import Adamax

__all__ = ["Adamax"]
__version__ = "0.1.0"
