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

from .adabelief import AdaBelief
from .adadelta import AdaDelta
from .adagrad import AdaGrad
from .adam import Adam, AMSGrad
from .adamax import Adamax
from .adamw import AdamW
from .averaging import averaged_weights
from .nadam import Nadam
from .nag import NAG
from .rmsprop import RMSProp
from .sgd import SGD

__all__ = [
    "NAG",
    "SGD",
    "AMSGrad",
    "AdaBelief",
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Nadam",
    "RMSProp",
    "averaged_weights",
]
__version__ = "0.1.0"
