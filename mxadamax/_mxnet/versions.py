# SPDX-License-Identifier: Apache-2.0
"""List the versions that this package is tested with. Imports nothing, so it always works."""

PYTHONS = ((3, 8), (3, 12))
"""The oldest and the newest Python."""

MXNETS = ("2.0.0b1", "1.9.1", "1.9.0", "1.8.0.post0", "1.7.0.post2")
"""The releases of MXNet; the first two run the whole test suite on every Python."""

SUPPORTED = f"MXNet {', '.join(MXNETS[:-1])} and {MXNETS[-1]}"


def is_tried(version: str) -> bool:
    """Return whether `mxnet.__version__` is one of `MXNETS`.

    MXNet calls 2.0.0b1 ``2.0.0beta1``, and omits the ``.post`` of a release.
    """
    return version.replace("beta", "b") in (*MXNETS, *(name.split(".post")[0] for name in MXNETS))
