# SPDX-License-Identifier: Apache-2.0
"""The messages of the package, read from its sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

HOLE = "..."
"""What stands for whatever a message fills in."""

_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')


def in_python(path: Path) -> Iterator[str]:
    """The messages of a Python file: of exceptions, warnings and stderr, and what they are made of."""
    tree = ast.parse(path.read_text())
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    said = [
        constants.get(text.id, text) if isinstance(text, ast.Name) else text
        for node in ast.walk(tree)
        for text in _said_by(node)
    ]
    # Not what only hands on the text of another exception.
    yield from (text for text in map(_text_of, said) if re.search(r"\w", text))


def _said_by(node: ast.AST) -> Sequence[ast.AST]:
    """What a statement or an expression says, or returns for another to say."""
    if isinstance(node, (ast.Return, ast.Assign)) and node.value is not None:
        texts = (ast.JoinedStr, ast.Constant)
        return [part for part in ast.walk(node.value) if isinstance(part, texts)]
    call = node.exc if isinstance(node, ast.Raise) else node
    if not isinstance(call, ast.Call) or not call.args:
        return []
    is_error = isinstance(call.func, ast.Name) and call.func.id.endswith("Error")
    warns = getattr(call.func, "attr", None) == "warn"
    to_stderr = any(getattr(k.value, "attr", None) == "stderr" for k in call.keywords)
    return call.args[:1] if isinstance(node, ast.Raise) or is_error or warns or to_stderr else []


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
