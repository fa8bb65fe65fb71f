# SPDX-License-Identifier: Apache-2.0
"""Optimizers for Apache MXNet with native kernels: one engine operation per step.

Importing this package registers its optimizers with MXNet: ``gluon.Trainer(params, 'adamax_ext')``.
"""

import sys as _sys
import warnings as _warnings

__version__ = "0.1.0"

from ._mxnet.parameter_server import end_where_mxnet_would_go_on as _end_where_mxnet_would_go_on
from ._mxnet.versions import SUPPORTED as _SUPPORTED
from .commands.import_diagnostics import explain_where_the_import_fails as _explain_where_it_fails
from .native_module import refuse as _refuse

_explain_where_it_fails()
# Before MXNet, whose import is where a parameter server runs.
_end_where_mxnet_would_go_on()

# MXNet is older than the NumPy and the Python that it may be installed with.
try:
    import numpy as _numpy

    # MXNet's import asks for this name. NumPy 1.24 to 1.26 do not have it, and warn when asked.
    with _warnings.catch_warnings():
        _warnings.simplefilter("ignore")
        if not hasattr(_numpy, "bool"):
            _numpy.bool = bool  # type: ignore[attr-defined]
    import mxnet as _mx  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name in ("mxnet", "numpy"):
        raise ImportError(
            "mxadamax needs Apache MXNet: install it with pip install 'mxadamax[mxnet]', "
            f"or the flavour for your machine of {_SUPPORTED.replace(' and ', ' or ')}."
        ) from None
    if _error.name == "distutils":
        raise ImportError(
            "mxadamax: MXNet needs distutils, which Python 3.12 and later do not have: "
            "install them with pip install setuptools"
        ) from _error
    raise
except AttributeError as _error:
    if int(_numpy.__version__.split(".")[0]) < 2:
        raise
    raise ImportError(
        f"mxadamax: MXNet needs NumPy 1, found NumPy {_numpy.__version__}: install it with "
        f"pip install 'numpy<{'2' if _sys.version_info >= (3, 12) else '1.24'}'"
    ) from _error

# After MXNet, so that both run on the OpenMP library that MXNet has loaded.
try:
    from . import _native  # noqa: F401
except ImportError as _error:
    _refuse(_error)

from .averaging import averaged_weights
from .checkpoints import load_states, save_states
from .optimizers import info as _info
from .optimizers.info import *
from .pickling import alias_moved_modules as _alias_moved_modules

_alias_moved_modules()

__all__ = ["averaged_weights", "load_states", "save_states"]
__all__ += _info.__all__
