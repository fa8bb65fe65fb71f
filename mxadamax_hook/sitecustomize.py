# SPDX-License-Identifier: Apache-2.0
"""Switch the hook on in a process that ``mxadamax run`` has started, or one that such a one has.

Python imports the first module of this name at its start. The one of the machine comes after it.
"""

import os
import sys

_folder = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _folder]
_this = sys.modules.pop("sitecustomize")
try:
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
except ImportError as _error:
    if _error.name != "sitecustomize":
        raise
    # The import that runs here expects one.
    sys.modules["sitecustomize"] = _this

try:
    import mxadamax_hook
except ImportError:
    # A Python of another environment.
    pass
else:
    if os.environ.get(mxadamax_hook.VARIABLE) == "1":
        mxadamax_hook.install()
