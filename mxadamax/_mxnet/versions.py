# SPDX-License-Identifier: Apache-2.0
"""What this package has been tried with. It imports nothing: it is asked where nothing works."""

PYTHONS = ((3, 8), (3, 12))
"""The oldest and the newest."""

MXNETS = ("2.0.0b1", "1.9.1", "1.9.0", "1.8.0.post0", "1.7.0.post2")
"""The releases of MXNet, those first that the whole test suite is run with."""

SUPPORTED = f"MXNet {', '.join(MXNETS[:-1])} and {MXNETS[-1]}"


def is_tried(version: str) -> bool:
    """Whether `mxnet.__version__` is that of one of `MXNETS`.

    MXNet calls 2.0.0b1 ``2.0.0beta1``, and leaves out the ``.post`` of a release.
    """
    return version.replace("beta", "b") in (*MXNETS, *(name.split(".post")[0] for name in MXNETS))
