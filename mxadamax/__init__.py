# SPDX-License-Identifier: Apache-2.0
"""Optimizers for Apache MXNet with native kernels: one engine operation per step.

Importing this package registers its optimizers with MXNet: ``gluon.Trainer(params, 'adamax_ext')``.
Without MXNet, only `mxadamax.cuda` works.
"""

import sys as _sys
import typing as _typing

__version__ = "0.1.0"

from ._mxnet.versions import PYTHONS as _PYTHONS

if _sys.version_info < _PYTHONS[0]:
    # pip refuses these; a folder in PYTHONPATH is imported by any.
    raise ImportError(
        f"mxadamax needs Python {_PYTHONS[0][0]}.{_PYTHONS[0][1]} or later, this is "
        f"{_sys.version.split()[0]}: install mxadamax and MXNet with another Python"
    )

from ._mxnet.importing import import_mxnet as _import_mxnet
from ._mxnet.importing import missing as _missing
from ._mxnet.parameter_server import end_where_mxnet_would_go_on as _end_where_mxnet_would_go_on
from .commands.import_diagnostics import explain_where_the_import_fails as _explain_where_it_fails
from .native_module import check as _check
from .native_module import refuse as _refuse

_explain_where_it_fails()
# Before MXNet: a parameter server runs inside the import of MXNet.
_end_where_mxnet_would_go_on()

__all__ = [
    "Trainer",
    "accelerate",
    "accelerated",
    "acceleration_report",
    "averaged_weights",
    "decelerate",
    "load_states",
    "save_states",
]

if _import_mxnet():
    # After MXNet, so that both run on the OpenMP library that MXNet has loaded.
    try:
        _check()
        from . import _native  # noqa: F401
    except ImportError as _error:
        _refuse(_error)

    from .acceleration import accelerate, accelerated, acceleration_report, decelerate
    from .averaging import averaged_weights
    from .checkpoints import load_states, save_states
    from .optimizers.info import *
    from .optimizers.info import __all__ as _optimizers
    from .pickling import alias_moved_modules as _alias_moved_modules

    _alias_moved_modules()
    __all__ += _optimizers

    if _typing.TYPE_CHECKING:
        from .trainer import Trainer
    else:

        def __getattr__(name: str) -> _typing.Any:
            # Not at import: a parameter server imports this inside the import of MXNet.
            if name == "Trainer":
                from .trainer import Trainer

                return Trainer
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

# Type checkers know every name, also without MXNet.
elif not _typing.TYPE_CHECKING:

    def __getattr__(name: str) -> _typing.Any:
        # Optimizers are the only names that begin with a capital letter.
        if name in __all__ or name[:1].isupper():
            raise _missing()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
