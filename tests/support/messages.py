# SPDX-License-Identifier: Apache-2.0
"""The messages of the package, read from its sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

HOLE = "..."
"""What stands for whatever a message fills in."""

_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')


def in_python(path: Path) -> Iterator[str]:
    """The messages of a Python file: of exceptions, of warnings, and of what goes to stderr."""
    tree = ast.parse(path.read_text())
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not call.args:
            continue
        warns = getattr(call.func, "attr", None) == "warn"
        to_stderr = any(getattr(k.value, "attr", None) == "stderr" for k in call.keywords)
        if isinstance(node, ast.Raise) or warns or to_stderr:
            said = call.args[0]
            text = _text_of(constants.get(said.id, said) if isinstance(said, ast.Name) else said)
            # Not what only hands on the text of another exception.
            if re.search(r"\w", text):
                yield text


def _text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text_of(node.left) + _text_of(node.right)
    return HOLE


def in_cpp(path: Path) -> Iterator[str]:
    """The texts of each statement of a C++ file, with holes where it puts something between them."""
    # Semicolons in texts end nothing.
    code = _LITERAL.sub(lambda found: found[0].replace(";", "\0"), path.read_text())
    for statement in code.split(";"):
        texts = _LITERAL.findall(re.sub(r'"\s*"', "", statement))
        if texts:
            yield f"{HOLE}{HOLE.join(texts)}{HOLE}".replace("\0", ";")
