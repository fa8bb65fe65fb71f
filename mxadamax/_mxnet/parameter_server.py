# SPDX-License-Identifier: Apache-2.0
"""What this package does in a process that MXNet has made a parameter server."""

import os
import sys
from typing import Any


def end_where_mxnet_would_go_on() -> None:
    """On a parameter server, end the process where MXNet would drop an exception.

    MXNet calls Python through C there, for the optimizer and for every update. What is raised is
    printed and dropped, and training goes on without the update. Does nothing in other processes.
    """
    if os.environ.get("DMLC_ROLE") == "server":
        sys.unraisablehook = _print_and_end


def _print_and_end(unraisable: Any) -> None:
    sys.__unraisablehook__(unraisable)
    if str(getattr(unraisable.object, "__module__", "")).startswith("mxnet.kvstore"):
        print(
            "mxadamax: this parameter server ends here; MXNet would go on without the update",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
