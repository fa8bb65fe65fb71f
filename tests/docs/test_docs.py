# SPDX-License-Identifier: Apache-2.0
"""What the documentation says is what the code does: blocks of code, messages, names, docstrings."""

from __future__ import annotations

import contextlib
import doctest
import functools
import inspect
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import messages
import mxnet as mx
import numpy as np
import pytest
from common import Run, assert_same_bits, gradients, run_python
from family import CLASSES
from mxnet import gluon
from pages import ADDED, PAGES, ROOT, blocks

import mxadamax
from mxadamax.__main__ import COMMANDS, main
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.checkpoints import convert
from mxadamax.optimizers.base import FusedOptimizer, register
from mxadamax.optimizers.options import OPTIONS, Range

pytestmark = pytest.mark.quick

BLOCKS = list(blocks())
NEEDS_MXNET_1 = "needs MXNet 1"
RUN = [
    b
    for b in BLOCKS
    if b.language in ("python", "pycon") and b.mark in ("", NEEDS_MXNET_1 if IS_MXNET_1 else "")
]
SHELL = [b for b in BLOCKS if b.language == "bash" and not b.mark]
REHEARSED = [b for b in BLOCKS if re.match(ADDED, b.mark)]
NOT_RUN = [b for b in BLOCKS if b.mark.startswith("not run: ")]
OF_MXNET_1 = [b for b in BLOCKS if b.mark == NEEDS_MXNET_1]

SHOWN = ("text", "{toctree}", "{eval-rst}", "{include}")
"""Blocks that are no code: formulas, and what Sphinx reads."""

SMALL_TRAINING = """
import mxadamax
import mxnet as mx
from mxnet import autograd, gluon

net = gluon.nn.HybridSequential()
net.add(gluon.nn.Dense(1, in_units=3))
net.initialize()
params = net.collect_params()
trainer = gluon.Trainer(params, "adamax_ext")
step = 12

def train_a_step(trainer=None):
    "Of the trainer that is there last, unless one is given."
    inputs = mx.np.ones((4, 3)) if mx.__version__ >= "2" else mx.nd.ones((4, 3))
    with autograd.record():
        loss = net(inputs).sum()
    loss.backward()
    (trainer or globals()["trainer"]).step(4)

def evaluate(net):
    return 1.0

def main():
    pass
"""
"""What the pieces of a program that pages show have around them."""

RUN_PAGES = """
import contextlib, doctest, json, os, sys, traceback
import mxnet as mx

def run(page, blocks, surroundings):
    namespace = {"__name__": "page"}
    exec(surroundings, namespace)
    for language, line, code in blocks:
        if language == "python":
            # Tracebacks then name the line of the page.
            exec(compile("\\n" * (line - 1) + code, page, "exec"), namespace)
            continue
        test = doctest.DocTestParser().get_doctest(code, namespace, page, page, line - 1)
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
        said = []
        if runner.run(test, out=said.append, clear_globs=False).failed:
            raise AssertionError("".join(said))
        namespace.update(test.globs)

folder, surroundings, pages = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
like_numpy = mx.util.is_np_array()
errors = {}
for number, (page, blocks) in enumerate(pages.items()):
    os.makedirs(os.path.join(folder, str(number)))
    os.chdir(os.path.join(folder, str(number)))
    errors[page] = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            run(page, blocks, surroundings)
    except BaseException:
        errors[page] = traceback.format_exc()
    if not like_numpy:
        mx.npx.reset_np()
print(json.dumps(errors))
"""


@functools.lru_cache(maxsize=None)
def errors_of_pages() -> dict[str, str | None]:
    """What went wrong on each page. One process for all: it takes seconds to import MXNet."""
    pages = {page: [] for page in sorted({block.page for block in RUN})}
    for block in RUN:
        pages[block.page].append((block.language, block.line, block.code))
    with tempfile.TemporaryDirectory() as folder:
        output = run_python(RUN_PAGES, folder, SMALL_TRAINING, json.dumps(pages))
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("page", sorted({block.page for block in RUN}))
def test_code_of_a_page_runs(page):
    error = errors_of_pages()[page]
    assert error is None, error


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_code_that_cannot_run(block):
    if block.language == "python":
        compile(block.code, str(block), "exec")
    pytest.skip(block.mark[len("not run: ") :])


@pytest.mark.parametrize("block", OF_MXNET_1, ids=str)
def test_code_for_mxnet_1_compiles(block):
    """`test_code_of_a_page_runs` runs it there."""
    compile(block.code, str(block), "exec")


def test_every_block_is_run_or_says_why_not():
    known = {
        *RUN,
        *SHELL,
        *REHEARSED,
        *NOT_RUN,
        *OF_MXNET_1,
        *(b for b in BLOCKS if b.language in SHOWN),
    }
    assert [str(block) for block in BLOCKS if block not in known] == []
    assert len(RUN) >= 15 and len(SHELL) >= 5 and len(REHEARSED) >= 10
    assert len(NOT_RUN) <= 6


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_commands_exist(block):
    commands = block.code.replace("\\\n", " ").splitlines()
    assert commands
    for command in commands:
        words = [w for w in shlex.split(command, comments=True) if not re.match(r"[A-Z_]+=", w)]
        if words:
            check_command(words)


def check_command(words: Sequence[str]) -> None:
    """Fail unless a command, its options and what they name exist."""
    program, *rest = words
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert targets.issuperset(rest), rest
        return
    if program == "git":
        return
    if program == "python" and rest[:2] == ["-m", "mxadamax"]:
        program, *rest = rest[1:]
    if program == "mxadamax":
        help_text = help_of_ours(rest[0])
    elif (ROOT / program).is_file():
        help_text = (ROOT / program).read_text()
    elif program == "python":
        help_text = help_of(sys.executable, str(ROOT / rest[0]))
    else:
        assert program == "pip", f"a command that no test knows: {program}"
        help_text = help_of(sys.executable, "-m", "pip", rest[0])
        extras = [x for found in re.findall(r"\[(.+?)\]", " ".join(rest)) for x in found.split(",")]
        project = (ROOT / "pyproject.toml").read_text()
        for extra in extras:
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    for option in rest:
        if option.startswith("--"):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_text), option


@functools.lru_cache(maxsize=None)
def help_of(*command: str) -> str:
    """What a command says of itself."""
    done = subprocess.run(
        [*command, "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def help_of_ours(command: str) -> str:
    """What a command of ours says of itself, without the seconds that its own process takes."""
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    return said.getvalue()


def test_links_lead_to_files():
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


# The guide to the optimizers.


@pytest.mark.parametrize("name", CLASSES)
def test_the_guide_has_every_optimizer(name):
    text = (ROOT / "docs" / "optimizers.md").read_text()
    optimizer = CLASSES[name]
    assert f"`{optimizer.registered_name}`" in text
    assert mx.optimizer.Optimizer.opt_registry[optimizer.registered_name] is optimizer
    # With MXNet 1, other defaults are the built-in's.
    made = optimizer(numerics="portable")
    for option in optimizer.ranges:
        # Defaults as in the table of the section.
        value = getattr(made, option)
        default = f"{value:g}" if isinstance(value, float) else str(value)
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        assert f"`{option}={default}`" in section, f"{name}: {option}={default}"


def test_the_reference_has_everything():
    text = (ROOT / "docs" / "api.md").read_text()
    assert ".. automodule:: mxadamax\n   :members:\n" in text
    (excluded,) = re.findall(r":exclude-members: (.*)", text)
    elsewhere = set(excluded.split(", ")) & set(mxadamax.__all__)
    assert elsewhere <= set(re.findall(r"^\.\. auto(?:function|class):: (\w+)$", text, re.M))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_the_commands_has_every_option(command):
    text = (ROOT / "docs" / "command-line.md").read_text()
    section = text.split(f"\n## {command}\n")[1].split("\n## ")[0]
    options = set(re.findall(r"^  (?:-h, )?(--[\w-]+)", help_of_ours(command), re.MULTILINE))
    assert "--help" in options
    assert {option for option in options - {"--help"} if f"`{option}" not in section} == set()


def row_of(option):
    """The row of docs/options.md for an option."""
    default = f"{option.default:g}" if type(option.default) is float else str(option.default)
    shown = [str(option.values).replace("in ", "", 1)]
    shown += [] if option.default is inspect.Parameter.empty else [default]
    return f"| `{option.name}` | {', '.join(filter(None, shown))} | {option.meaning} |"


def test_the_table_of_options_is_that_of_the_code():
    text = (ROOT / "docs" / "options.md").read_text()
    assert re.findall(r"^\| `.*$", text, re.MULTILINE) == [row_of(option) for option in OPTIONS]


def test_the_table_of_exceptions_is_that_of_the_records():
    text = (ROOT / "docs" / "optimizers.md").read_text()
    (found,) = re.findall(r"^\| optimizer \| weights or gradients .*?\n(?!\|)", text, re.M | re.S)
    expected = runpy.run_path(str(ROOT / "scripts" / "exceptions.py"))["table"]()
    assert found == expected, f"run scripts/exceptions.py; expected:\n{expected}"


def test_the_table_of_memory_is_that_of_the_layouts():
    text = (ROOT / "docs" / "mixed-precision.md").read_text()
    (found,) = re.findall(r"^\| model \| parameters .*?\n(?!\|)", text, re.M | re.S)
    expected = runpy.run_path(str(ROOT / "scripts" / "state_memory.py"))["table"]()
    assert found == expected, f"run scripts/state_memory.py; expected:\n{expected}"


def test_the_bound_of_a_step_of_adamax():
    # Gradients that shrink as fast as `u` forgets: the worst there is.
    weight, lr = mx.nd.zeros((1,), dtype="float64"), 0.5
    update = mx.optimizer.get_updater(mxadamax.Adamax(learning_rate=lr, epsilon=0.0))
    sizes = []
    for t in range(200):
        before = weight.asscalar()
        update(0, mx.nd.array([0.999**t], dtype="float64"), weight)
        sizes.append(abs(weight.asscalar() - before))
    bound = lr * (1 - 0.9) / (1 - 0.9 / 0.999)
    assert lr * 1.009 < max(sizes) <= bound * (1 + 1e-9)
    assert bound == pytest.approx(1.01 * lr, abs=1e-3)


@pytest.mark.skipif(not IS_MXNET_1, reason="compares with MXNet 1.9's AdaMax")
@pytest.mark.parametrize("wd", [0.0, 0.01])
def test_the_distance_from_adamax_of_mxnet_1(wd):
    shapes = [(100,), (7, 5)]
    options = {"learning_rate": 0.01, "wd": wd, "rescale_grad": 1 / 3}
    weights = list(next(gradients(shapes, "float32", 1, seed=1)))
    ours = Run(mx.optimizer.create("adamax_ext", epsilon=0.0, **options), weights)
    theirs = Run(mx.optimizer.create("adamax", **options), weights)
    for grads in gradients(shapes, "float32", 50):
        ours.assign(theirs)
        before = [weight.asnumpy() for weight in theirs.weights]
        ours.step(grads)
        theirs.step(grads)
        found, expected = ours.arrays(), theirs.arrays()
        for a, b, c in zip(found[: len(shapes)], expected, before):
            unit = np.spacing(np.maximum(np.abs(b), np.abs(c)))
            assert np.max(np.abs(a - b) / unit) <= 2
        for a, b in zip(found[len(shapes) :], expected[len(shapes) :]):
            assert_same_bits(a, b)


# Docstrings.


DOCUMENTED = [
    *CLASSES.values(),
    FusedOptimizer,
    Range,
    register,
    mxadamax.averaged_weights,
    mxadamax.save_states,
    mxadamax.load_states,
    convert,
]


def sections_of(documented: object) -> dict[str, str]:
    """The sections of a docstring in NumPy's style, by their titles."""
    text = inspect.getdoc(documented)
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda x: x.__name__)
def test_docstrings_name_every_argument(documented):
    names = [
        name.strip("* ")
        for line in re.findall(r"^(\S.*?) ?(?::|$)", sections_of(documented)["Parameters"], re.M)
        for name in line.split(",")
    ]
    wanted = set(inspect.signature(documented).parameters) - {"args"}
    common = set(inspect.signature(FusedOptimizer).parameters) - {"learning_rate", "use_fused_step"}
    if documented in CLASSES.values():
        # Options that all have are said once.
        wanted -= common - {"kwargs"}
    assert wanted <= set(names)


@pytest.mark.parametrize("name", CLASSES)
def test_docstrings_of_optimizers_are_complete(name):
    found = sections_of(CLASSES[name])
    assert {"Parameters", "Raises", "Notes", "Examples"} <= set(found)
    assert "State for each weight: " in found["Notes"]
    assert re.search(r"^Sources?: ", found["Notes"], re.MULTILINE)
    made = CLASSES[name](numerics="portable")
    for option in CLASSES[name].ranges:
        documented = re.search(rf"^{option} : (.*)$", found["Parameters"], re.MULTILINE)
        if documented is None:
            # The class that it is a variant of documents it.
            assert "**kwargs\n    Arguments of :class:`Adam`" in found["Parameters"]
            continue
        documented = documented[1]
        assert documented.startswith(
            f"float, {CLASSES[name].ranges[option]}".replace(" or", ", or")
        )
        default = documented.split("default ")[1]
        assert default == "None" or float(default) == getattr(made, option)


@pytest.mark.parametrize(
    "documented", [x for x in DOCUMENTED if x is not register], ids=lambda x: x.__name__
)
def test_examples_of_docstrings(documented, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = {"mxadamax": mxadamax, "mx": mx, "gluon": gluon, "convert": convert, "Range": Range}
    exec(SMALL_TRAINING, here)
    (test,) = doctest.DocTestFinder(recurse=False).find(documented, globs=here)
    assert test.examples
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    assert not runner.run(test, out=said.append).failed, "".join(said)


# Messages.


SOURCES = [
    *(
        path
        for folder in ("", "_mxnet", "cuda", "optimizers")
        for path in sorted((ROOT / "mxadamax" / folder).glob("*.py"))
    ),
    *sorted((ROOT / "csrc").rglob("*.cc")),
    *sorted((ROOT / "csrc").rglob("*.h")),
]


@functools.lru_cache(maxsize=None)
def all_messages() -> Sequence[str]:
    read = {".py": messages.in_python, ".cc": messages.in_cpp, ".h": messages.in_cpp}
    return [message for path in SOURCES for message in read[path.suffix](path)]


def quoted_messages() -> list[str]:
    """The messages that docs/troubleshooting.md quotes, without those of other programs."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    text = re.sub(r"## Messages of other programs\n.*?(?=\n## )", "", text, flags=re.DOTALL)
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return [quote for row in rows for quote in re.findall(r"`(.+?)`(?:, |$)", row)]


def fits(quote: str, message: str) -> bool:
    """Whether a message is what is quoted, where a hole of the quote stands for anything."""
    return re.search(".*".join(map(re.escape, quote.split(messages.HOLE))), message) is not None


@pytest.mark.parametrize("quote", quoted_messages())
def test_quoted_messages_exist(quote):
    assert len(re.sub(r"\W", "", quote)) >= 5 or quote in all_messages(), "fits too much"
    assert any(fits(quote, message) for message in all_messages())


# The picture.


def test_the_picture_names_what_there_is():
    names = re.findall(r'class="name"[^>]*>(.*?)<', (ROOT / "docs" / "one-step.svg").read_text())
    sources = "".join(
        p.read_text() for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cc")
    )
    of_python = ["gluon.Trainer.step", "FusedOptimizer.fused_step", "FusedOptimizer.scalars"]
    assert [name for name in names if "::" not in name] == of_python
    assert callable(gluon.Trainer.step)
    assert callable(FusedOptimizer.fused_step) and callable(FusedOptimizer.scalars)
    functions = [name.split("::") for name in names if "::" in name]
    assert len(functions) == 4
    for owner, name in functions:
        assert re.search(rf"\b(?:struct |class |namespace mxadamax::){owner}\b", sources), owner
        assert re.search(rf"\bvoid (?:{owner}::)?{name}\(", sources), name


def test_the_files_of_a_step():
    """Each file has the function that the table names, and calls that of the next one."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w/]+\.(?:py|cc))` \| `(?:\w+::)?(\w+)` \|", text, re.MULTILINE)
    files = [file for file, _ in rows]
    assert len(files) == len(set(files)) and 6 <= len(files) <= 8
    for (file, function), (_, called) in zip(rows, [*rows[1:], (None, "updated_weight")]):
        code = (ROOT / file).read_text()
        assert re.search(rf"^[^#/\n]*\b{function}\(", code, re.MULTILINE), f"{file}: {function}"
        # The engine runs an operation, and a table leads to kernels.
        indirect = {"update_on_host": r"->run\(", "run": r"\.kernels\["}.get(called)
        assert re.search(indirect or rf"\b{called}\b", code), f"{file} does not call {called}"


# Figures.

TABLES = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))["tables"]


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md", "docs/cuda.md"])
def test_figures_are_those_that_were_measured(page):
    """To the last digit, in the tables: by the script that makes them of what the benchmark wrote."""
    for table in TABLES()[page]:
        assert table in (ROOT / page).read_text(), f"run benchmarks/tables.py; missing:\n{table}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_results_that_are_named_are_there(page):
    for name in re.findall(r"benchmarks/results/[\w.-]+", page.read_text()):
        assert (ROOT / name).exists()
