# SPDX-License-Identifier: Apache-2.0
"""End parameter servers whose updates fail."""

import os
import sys
from typing import Any


def end_where_mxnet_would_go_on() -> None:
    """Make a parameter server end when MXNet would drop an exception.

    MXNet calls Python through C there, for the optimizer and for every update. It prints and drops
    exceptions, and training would continue without the update. Does nothing in other processes.
    """
    if os.environ.get("DMLC_ROLE") == "server":
        sys.unraisablehook = _print_and_end


def _print_and_end(unraisable: Any) -> None:
    sys.__unraisablehook__(unraisable)
    if str(getattr(unraisable.object, "__module__", "")).startswith("mxnet.kvstore"):
        print(
            "mxadamax: this parameter server ends here; MXNet would continue without the update",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
