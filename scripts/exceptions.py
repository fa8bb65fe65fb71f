# SPDX-License-Identifier: Apache-2.0
"""The table in docs/optimizers.md of what does not equal MXNet's built-ins, from the records.

Run, it prints the table, to be put there; a test compares.
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax  # noqa: F401

# isort: split
from collections.abc import Sequence

from mxadamax.optimizers.info import OPTIMIZERS

KINDS = {
    "float32": "float32",
    "float64": "float64",
    "masters": "float16 with masters",
    "row_sparse": "row_sparse gradients",
    "zeros": "gradients that are zero from the start",
}
"""The kinds of arrays in the words of the documentation."""

OF_ALL = (
    *("all", "float16 and bfloat16 without masters", "all"),
    "computed in float32 and rounded once; MXNet's operators round after every operation, and do "
    "not take bfloat16",
)


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def table() -> str:
    """Markdown: a row for all optimizers, arrays and MXNets that have the same reason."""
    alike: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for info in OPTIMIZERS:
        for arrays, reason in info.exceptions.items():
            alike.setdefault((str(info), reason), []).append(arrays)
    rows: dict[tuple[str, str, str], list[str]] = {}
    for (name, reason), found in alike.items():
        kinds = ", ".join(dict.fromkeys(KINDS[kind] for kind, _ in found))
        series = sorted({series for _, series in found})
        which = "all" if len(series) > 1 else f"{series[0]}.x"
        rows.setdefault((kinds, which, reason), []).append(name)
    text = line(["optimizer", "weights or gradients", "MXNet", "reason"]) + line(["---"] * 4)
    text += line(OF_ALL)
    for (kinds, which, reason), names in rows.items():
        # Without options, it stands for those with options as well.
        shown = [name for name in names if name == name.split()[0] or name.split()[0] not in names]
        text += line([", ".join(f"`{name}`" for name in shown), kinds, which, reason])
    return text


if __name__ == "__main__":
    print(table(), end="")
