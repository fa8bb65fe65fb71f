# SPDX-License-Identifier: Apache-2.0
"""The pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

ADDED = r"(?P<how>new|end of|after|instead of) (?:`(?P<where>.*)` in )?(?P<file>\S+)$"
"""Marks of the blocks that a guide adds to files: tests/tools/test_guide.py does so."""


class Block(NamedTuple):
    """A fenced block of a page.

    Parameters
    ----------
    page : str
        The file, from the root of the repository.
    line : int
        Of its first line of code, from 1.
    mark : str
        The comment on the line before: ``not run: REASON``, ``needs MXNet 1``, or as `ADDED`.
    language, code : str
        What the fence says, and what is in it.
    """

    page: str
    line: int
    mark: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    """All blocks of all pages."""
    fence = re.compile(r"(?:<!-- (.*?) -->\n)?^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for path in PAGES:
        text = path.read_text()
        for found in fence.finditer(text):
            line = text.count("\n", 0, found.start(3)) + 1
            mark, language, code = found.groups()
            yield Block(str(path.relative_to(ROOT)), line, mark or "", language, code)
