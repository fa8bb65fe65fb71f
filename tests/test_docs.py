# SPDX-License-Identifier: Apache-2.0
"""What the documentation quotes is what the code says."""

import re
from pathlib import Path

import mxnet as mx
import pytest
from family import CLASSES

ROOT = Path(__file__).resolve().parents[1]


def test_the_walk_through_quotes_the_files():
    text = (ROOT / "docs" / "adding-an-optimizer.md").read_text()
    files = {
        path for path in re.findall(r"`([a-z_/]+\.(?:h|py))`", text) if (ROOT / path).is_file()
    }
    sources = [(ROOT / path).read_text() for path in files]
    blocks = re.findall(r"```(?:cpp|python)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 7
    for block in blocks:
        assert any(block in source for source in sources), block


@pytest.mark.parametrize("name", CLASSES)
def test_the_guide_has_every_optimizer(name):
    text = (ROOT / "docs" / "optimizers.md").read_text()
    optimizer = CLASSES[name]
    assert f"`{optimizer.registered_name}`" in text
    assert mx.optimizer.Optimizer.opt_registry[optimizer.registered_name] is optimizer
    made = optimizer()
    for option in optimizer.ranges:
        # Defaults as in the table of the section.
        value = getattr(made, option)
        default = f"{value:g}" if isinstance(value, float) else str(value)
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        assert f"`{option}={default}`" in section, f"{name}: {option}={default}"
