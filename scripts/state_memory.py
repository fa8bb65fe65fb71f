# SPDX-License-Identifier: Apache-2.0
"""The table in docs/mixed-precision.md of the memory that `state_dtype` saves, from the layouts.

Weights are float32, and one dtype is given for all parameters, so arrays that are small have
float32 states. Run, it prints the table, to be put there; a test compares.
"""

from __future__ import annotations

# Before mxnet, which Python 3.12 cannot import by itself.
import mxadamax  # noqa: F401

# isort: split
import math
from collections.abc import Sequence

import numpy as np

from mxadamax.commands.bench.cases import bert_base_shapes, resnet50_shapes
from mxadamax.optimizers.state_dtypes import SMALL
from mxadamax.optimizers.state_layout import state_specs

Shape = "tuple[int, ...]"

MODELS = {
    "ResNet-50": resnet50_shapes(),
    "BERT-base": bert_base_shapes(),
    "embedding of 1 M x 64, dense gradients": [(1_000_000, 64)],
}
RULES = {"two states": "adam", "one state": "lion"}
DTYPES = {"16 bits": "bfloat16", "`'int8'`": "int8"}


def state_bytes(rule: str, shape: Shape, state_dtype: str | None) -> int:
    """The bytes of the states of a float32 weight."""
    specs = state_specs(rule, np.dtype("float32"), state_dtype)
    return sum(math.prod(spec.shape(shape)) * np.dtype(spec.dtype).itemsize for spec in specs)


def bytes_saved(rule: str, shapes: Sequence[Shape], state_dtype: str) -> int:
    """The bytes that a model saves by one dtype for all parameters."""
    large = [shape for shape in shapes if math.prod(shape) >= SMALL]
    return sum(state_bytes(rule, s, None) - state_bytes(rule, s, state_dtype) for s in large)


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def table() -> str:
    """Markdown: a row for each model, with the bytes saved per parameter and in all."""
    kinds = [(f"{dtype}, {n}", r, d) for n, r in RULES.items() for dtype, d in DTYPES.items()]
    text = line(["model", "parameters", "of them in small arrays", *(name for name, _, _ in kinds)])
    text += line(["---"] * (3 + len(kinds)))
    for model, shapes in MODELS.items():
        sizes = [math.prod(shape) for shape in shapes]
        total, small = sum(sizes), [size for size in sizes if size < SMALL]
        cells = [model, f"{total / 1e6:.1f} M in {len(sizes)}"]
        cells.append(f"{100 * sum(small) / total:.2g} % in {len(small)}" if small else "none")
        for _, rule, dtype in kinds:
            saved = bytes_saved(rule, shapes, dtype)
            cells.append(f"{saved / total:.2f} ({saved / 1e6:.0f} MB)")
        text += line(cells)
    return text


if __name__ == "__main__":
    print(table(), end="")
