# SPDX-License-Identifier: Apache-2.0
"""Change csrc/cpu, csrc/engine and csrc/python in one place at a time; see tests fail.

    python scripts/mutate_native.py                      everything; prints what no test has noticed
    python scripts/mutate_native.py batch.cc task.cc     these files
    python scripts/mutate_native.py --list task.cc       says what would be changed

All mutants are compiled into one module, in a copy of the sources in build/mutants. A file that all
processes map says which of them is at work, and takes down which of them were asked for. The suite
is run once to learn which tests reach which mutant. Then, for each mutant, a fork of a process that
has imported everything runs the tests that reach it, until one fails. Mutants that change nothing
are listed in scripts/equivalent_mutants.txt, with their reasons.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import hashlib
import json
import mmap
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "mutants"
UNITS = [
    *sorted((ROOT / "csrc" / "cpu").glob("*.cc")),
    *sorted((ROOT / "csrc" / "engine").glob("*.cc")),
    ROOT / "csrc" / "python" / "bandwidth_baseline.cc",
    ROOT / "csrc" / "python" / "module.cc",
]
EQUIVALENT = ROOT / "scripts" / "equivalent_mutants.txt"

OPERATORS = {
    "<": ["<=", ">="],
    "<=": ["<"],
    ">": [">=", "<="],
    ">=": [">"],
    "==": ["!="],
    "!=": ["=="],
    "&&": ["||"],
    "||": ["&&"],
    "+": ["-"],
    "-": ["+"],
    "*": ["/"],
    "/": ["*"],
    "%": ["*"],
    "<<": [">>"],
    ">>": ["<<"],
    "&": ["|"],
    "|": ["&"],
    "^": ["&"],
    "+=": ["-="],
    "-=": ["+="],
    "*=": ["/="],
    "/=": ["*="],
}
FUNCTION_KINDS = (
    *("FUNCTION_DECL", "FUNCTION_TEMPLATE", "CXX_METHOD", "CONSTRUCTOR", "DESTRUCTOR"),
    "LAMBDA_EXPR",
)
FUNCTIONS = {"min": "max", "max": "min", "all_of": "any_of"}

MUTANTS_H = """\
// Which mutant is at work, and which were asked for, in memory that all processes share.
#pragma once
struct MutantState {
  unsigned active;
  unsigned char asked[COUNT];
};
extern MutantState* mutant_state;
// Where the compiler computes, none.
constexpr bool mutant(unsigned k) {
  if (__builtin_is_constant_evaluated()) return false;
  mutant_state->asked[k] = 1;
  return *static_cast<volatile unsigned*>(&mutant_state->active) == k;
}
"""
MUTANTS_CC = """\
#include <fcntl.h>
#include <sys/mman.h>

#include <cstdlib>

MutantState* mutant_state;

// Before what else is initialized.
__attribute__((constructor(101))) static void map_mutants() {
  const int file = open(std::getenv("MUTANTS"), O_RDWR);
  void* const mapped =
      mmap(nullptr, sizeof(MutantState), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) std::abort();
  mutant_state = static_cast<MutantState*>(mapped);
}
"""

DRIVER_TEST = """\
import os, pathlib, subprocess
import pytest

@pytest.mark.parametrize("tests", ["rules", "kernels", "codecs", "update"])
def test_native_driver(tests):
    subprocess.run([pathlib.Path(__file__).with_name("native_driver"), tests], check=True)
"""


@dataclass
class Change:
    """One mutant: `old` at `line` becomes `new`."""

    file: str
    line: int
    old: str
    new: str
    text: str
    nth: int = 0
    function: str = ""

    @property
    def name(self) -> str:
        which = f" ({self.nth + 1})" if self.nth else ""
        return f"{self.file}: {self.old!r} -> {self.new!r}{which} in {self.text}"

    def __str__(self) -> str:
        return self.name.replace(":", f":{self.line}:", 1)


@dataclass
class Span:
    """A piece of a file, and what it becomes: {k} is a mutant and {it} the piece."""

    first: int
    last: int
    forms: list[tuple[str, int]] = field(default_factory=list)


class Source:
    """A file with its mutants."""

    def __init__(self, path: Path):
        self.path = path
        self.bytes = path.read_bytes()
        self.spans: dict[tuple[int, int, int], Span] = {}

    def line_of(self, at: int) -> tuple[int, str]:
        begin = self.bytes.rfind(b"\n", 0, at) + 1
        end = self.bytes.find(b"\n", at)
        return self.bytes.count(b"\n", 0, at) + 1, self.bytes[begin:end].decode().strip()

    def text(self, first: int, last: int) -> str:
        return self.bytes[first:last].decode()

    def rewritten(self, first: int, last: int, inside: list[Span]) -> str:
        """The text of a range with the outermost of the spans in it, and so on, rewritten."""
        parts, at = [], first
        while inside:
            span, rest = inside[0], inside[1:]
            own = [s for s in rest if s.last <= span.last]
            inside = rest[len(own) :]
            parts.append(self.text(at, span.first))
            it = self.rewritten(span.first, span.last, own)
            for form, k in span.forms:
                it = form.replace("{k}", str(k)).replace("{it}", it)
            parts.append(it)
            at = span.last
        return "".join([*parts, self.text(at, last)])

    def mutated(self) -> str:
        # Of two that begin together the longer first; of the same piece what goes outside first.
        order = sorted(self.spans.items(), key=lambda item: (item[0][0], -item[0][1], -item[0][2]))
        return self.rewritten(0, len(self.bytes), [span for _, span in order])


class Finder:
    """Finds what can be changed, in the syntax tree that clang makes of the sources."""

    def __init__(self, ours) -> None:
        import clang.cindex as clang

        self.clang = clang
        self.kinds = clang.CursorKind
        self.ours = ours
        self.sources: dict[Path, Source] = {}
        self.changes: list[Change] = []
        self.seen: collections.Counter[str] = collections.Counter()
        self.function = ""

    def read(self, unit: Path, options: list[str]) -> None:
        parsed = self.clang.Index.create().parse(
            str(unit),
            args=options,
            options=self.clang.TranslationUnit.PARSE_DETAILED_PROCESSING_RECORD,
        )
        errors = [d for d in parsed.diagnostics if d.severity >= self.clang.Diagnostic.Error]
        if errors:
            raise RuntimeError("\n".join(map(str, errors)))
        self.macros = collections.defaultdict(list)
        new = {}
        for cursor in parsed.cursor.get_children():
            if cursor.location.file is None:
                continue
            path = resolved(cursor.location.file.name)
            if path in self.sources or not self.ours(path):
                continue
            if cursor.kind == self.kinds.MACRO_INSTANTIATION:
                self.macros[path].append((cursor.extent.start.offset, cursor.extent.end.offset))
                continue
            self.source = new.setdefault(path, Source(path))
            self.visit(cursor, [])
        self.sources.update(new)

    def digest(self) -> str:
        text = "".join(map(str, self.changes))
        return hashlib.sha256(text.encode()).hexdigest()

    # What can be changed

    def add(
        self, first: int, last: int, at: int, old: str, new: str, form: str, level: int
    ) -> None:
        # What a macro stands for is not there to be changed.
        if first == last or any(b <= first < e for b, e in self.macros[self.source.path]):
            return
        line, text = self.source.line_of(at)
        change = Change(self.source.path.name, line, old, new, text, function=self.function)
        self.seen[change.name] += 1
        change.nth = self.seen[change.name] - 1
        self.changes.append(change)
        span = self.source.spans.setdefault((first, last, level), Span(first, last))
        span.forms.append((form, len(self.changes)))

    def alternative(self, cursor, at: int, old: str, new: str, text: str) -> None:
        first, last = cursor.extent.start.offset, cursor.extent.end.offset
        self.add(first, last, at, old, new, f"(mutant({{k}}) ? {text} : {{it}})", 0)

    def negated(self, cursor, at: int, old: str) -> None:
        first, last = cursor.extent.start.offset, cursor.extent.end.offset
        form = "(mutant({k}) != static_cast<bool>({it}))"
        self.add(first, last, at, old, f"{old} not", form, 1)

    def visit(self, cursor, parents: list) -> None:
        kinds = self.kinds
        kind = cursor.kind
        extent = cursor.extent
        first, last = extent.start.offset, extent.end.offset
        source = self.source
        # Of an array whose length another file says, clang shows that file's number.
        if extent.start.file is None or resolved(extent.start.file.name) != source.path:
            return
        if kind in (kinds.STATIC_ASSERT, kinds.CXX_UNARY_EXPR, kinds.ENUM_DECL, kinds.TYPE_REF):
            return
        # Evaluated by the compiler.
        if kind in (kinds.VAR_DECL, kinds.FIELD_DECL, kinds.UNEXPOSED_DECL):
            # Of what is made of a template, clang leaves the first words out.
            declaration = source.line_of(first)[1] + source.text(first, last)
            if re.search(r"\bconstexpr\b", declaration.split("=")[0]):
                return
            # What a function of C fills in.
            if re.search(rf"&{cursor.spelling}\b", source.text(last, last + 250)):
                return
        if kind.name in FUNCTION_KINDS and kind != kinds.LAMBDA_EXPR:
            self.function = cursor.spelling
        children = list(cursor.get_children())
        if kind == kinds.BINARY_OPERATOR or kind == kinds.COMPOUND_ASSIGNMENT_OPERATOR:
            self.operator(cursor, *children)
        elif kind == kinds.UNARY_OPERATOR:
            self.unary(cursor, children[0])
        elif kind in (kinds.INTEGER_LITERAL, kinds.FLOATING_LITERAL) and not is_null(parents):
            self.add(first, last, first, source.text(first, last), "+ 1", "({it} + mutant({k}))", 0)
        elif kind == kinds.CXX_BOOL_LITERAL_EXPR:
            old = source.text(first, last)
            new = "false" if old == "true" else "true"
            self.add(first, last, first, old, new, "(mutant({k}) != {it})", 0)
        elif kind == kinds.CALL_EXPR and cursor.spelling in FUNCTIONS:
            old, new = cursor.spelling, FUNCTIONS[cursor.spelling]
            text = source.text(first, last)
            if text.startswith(f"std::{old}"):
                changed = text.replace(f"std::{old}", f"std::{new}", 1)
                self.alternative(cursor, first, old, new, changed)
        elif kind == kinds.CONDITIONAL_OPERATOR and not is_compared(self.plain(children[0])):
            self.negated(children[0], children[0].extent.start.offset, "?")
        elif kind == kinds.IF_STMT:
            if re.match(rb"if\s+constexpr", source.bytes[first:last]):
                children = children[1:]
            elif children[0].kind.is_expression() and not is_compared(self.plain(children[0])):
                self.negated(children[0], first, "if")
        elif kind == kinds.WHILE_STMT and not is_compared(self.plain(children[0])):
            self.negated(children[0], first, "while")
        elif kind == kinds.RETURN_STMT and children:
            self.returned(cursor, children[0])
        if parents and self.is_statement(cursor, parents[-1]):
            self.statement(cursor, parents)
        if kind == kinds.FOR_STMT and re.search(
            r"#pragma omp[^\n]*\n\s*$", source.text(max(0, first - 200), first)
        ):
            children = children[-1:]
        for child in children:
            # The length of an array.
            after = source.bytes[child.extent.end.offset :].lstrip()[:1]
            if kind not in (kinds.VAR_DECL, kinds.FIELD_DECL) or after != b"]":
                self.visit(child, [*parents, cursor])

    def plain(self, cursor):
        """An expression without what clang adds to it."""
        while cursor.kind in (self.kinds.UNEXPOSED_EXPR, self.kinds.PAREN_EXPR):
            inner = list(cursor.get_children())
            if len(inner) != 1:
                break
            cursor = inner[0]
        return cursor

    def operator(self, cursor, left, right) -> None:
        source, begin, end = self.source, left.extent.end.offset, right.extent.start.offset
        between = source.text(begin, end)
        old = between.strip().rstrip("(").strip()
        if old not in OPERATORS:
            return
        pointers = [is_of_pointer(side) for side in (left, right)]
        if old in ("+", "-") and all(pointers):
            return
        at = begin + between.index(old)
        for new in OPERATORS[old]:
            if any(pointers) and new in ("*", "/"):
                continue
            text = source.text(cursor.extent.start.offset, begin)
            text += between.replace(old, new) + source.text(end, cursor.extent.end.offset)
            self.alternative(cursor, at, old, new, f"({text})")

    def unary(self, cursor, operand) -> None:
        first, last = cursor.extent.start.offset, cursor.extent.end.offset
        token = self.source.text(first, operand.extent.start.offset).strip()
        if token == "!":
            form = "(mutant({k}) != static_cast<bool>({it}))"
            self.add(first, last, first, "!", "", form, 1)
        elif token in ("-", "~"):
            inner = self.source.text(operand.extent.start.offset, last)
            self.alternative(cursor, first, token, "", f"({inner})")

    def returned(self, cursor, value) -> None:
        types = self.clang.TypeKind
        kind = value.type.get_canonical().kind
        plain = self.plain(value)
        at = cursor.extent.start.offset
        numbers = (types.INT, types.LONG, types.UINT, types.ULONG, types.FLOAT, types.DOUBLE)
        if kind == types.BOOL:
            if not is_compared(plain) and plain.kind != self.kinds.CXX_BOOL_LITERAL_EXPR:
                self.negated(value, at, "return")
        elif kind in numbers and plain.kind in (
            self.kinds.DECL_REF_EXPR,
            self.kinds.CALL_EXPR,
        ):
            # Nothing is added where it is not at work: that would make a plain zero of -0.0.
            text = self.source.text(value.extent.start.offset, value.extent.end.offset)
            self.alternative(value, at, "return", "return 1 +", f"1 + ({text})")

    def is_statement(self, cursor, parent) -> bool:
        kinds = self.kinds
        if not self.source.bytes[cursor.extent.end.offset :].lstrip().startswith(b";"):
            return False
        if parent.kind == kinds.COMPOUND_STMT:
            return True
        # The head of these ends with a closing bracket or a word.
        before = self.source.bytes[: cursor.extent.start.offset].rstrip()
        return parent.kind in (
            *(kinds.IF_STMT, kinds.FOR_STMT, kinds.WHILE_STMT, kinds.CXX_FOR_RANGE_STMT),
        ) and before.endswith((b")", b"else"))

    def statement(self, cursor, parents) -> None:
        kinds = self.kinds
        first = cursor.extent.start.offset
        last = self.source.bytes.index(b";", cursor.extent.end.offset) + 1
        plain = self.plain(cursor)
        word = self.source.bytes[first:last].split()[0].decode().rstrip(";")
        if cursor.kind == kinds.RETURN_STMT or word == "throw":
            if not goes_on(cursor, parents):
                return
            old = word
        elif cursor.kind in (kinds.BREAK_STMT, kinds.CONTINUE_STMT):
            old = word
        elif cursor.kind == kinds.DECL_STMT or not (
            cursor.kind.is_expression() or plain.kind.is_expression()
        ):
            return
        else:
            old = " ".join(self.source.text(first, last - 1).split())
            old = old if len(old) < 40 else old[:36] + " ..."
        self.add(first, last, first, old, "", "{ if (!mutant({k})) {it} }", 2)


@functools.lru_cache(maxsize=None)
def resolved(name: str) -> Path:
    return Path(name).resolve()


def is_compared(cursor) -> bool:
    """Whether an expression has an operator whose mutants say no where it says yes."""
    if cursor.kind.name == "UNARY_OPERATOR":
        return next((token.spelling for token in cursor.get_tokens()), "") == "!"
    if cursor.kind.name != "BINARY_OPERATOR":
        return False
    left, right = cursor.get_children()
    middle = [
        token.spelling
        for token in cursor.get_tokens()
        if left.extent.end.offset <= token.extent.start.offset < right.extent.start.offset
    ]
    return middle[:1] in (["<"], [">"], ["=="], ["!="])


def is_of_pointer(cursor) -> bool:
    return cursor.type.get_canonical().kind.name in ("POINTER", "CONSTANTARRAY", "INCOMPLETEARRAY")


def is_null(parents: list) -> bool:
    """Whether a literal with these parents stands for no address."""
    return parents[-1].kind.name == "UNEXPOSED_EXPR" and is_of_pointer(parents[-1])


def goes_on(cursor, parents: list) -> bool:
    """Whether the function has something to do after this statement, where it does not leave."""
    inner = cursor
    for parent in reversed(parents):
        kind = parent.kind.name
        if kind == "COMPOUND_STMT":
            *_, last = parent.get_children()
            if last.extent.end.offset > inner.extent.end.offset + 1:
                return True
        if kind in FUNCTION_KINDS:
            break
        inner = parent
    # What gives nothing back may end anywhere.
    return cursor.kind.name == "RETURN_STMT" and not list(cursor.get_children())


def is_ours(path: Path) -> bool:
    if not path.is_relative_to(ROOT / "csrc"):
        return False
    inside = path.relative_to(ROOT / "csrc")
    if inside.with_suffix("") == Path("cpu", "bandwidth_baseline"):
        return False
    return inside.parts[0] in ("cpu", "engine", "python")


def run(*command: object, **options) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    if done.returncode:
        raise RuntimeError(f"{command}: {(done.stdout + done.stderr)[-8000:]}")
    return done.stdout


def write(path: Path, text: str) -> None:
    """Write a file, unless it is as it should be: what is built of it is, too."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def find() -> Finder:
    import clang_tidy
    import pybind11

    # libclang comes without the headers of its compiler.
    tidy = next((Path(clang_tidy.__file__).parent / "data" / "lib" / "clang").iterdir())
    gcc = run("c++", "-print-file-name=include").strip()
    options = [
        *("-std=c++17", "-mavx2", "-mf16c", "-DMXADAMAX_X86_64", "-DMXADAMAX_KERNELS=kernels"),
        *("-resource-dir", str(tidy), f"-idirafter{gcc}", "-D__malloc__(...)="),
        *(f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}"),
        f"-I{sysconfig.get_path('include')}",
    ]
    finder = Finder(is_ours)
    for unit in UNITS:
        finder.read(unit, options)
    return finder


def build(finder: Finder) -> None:
    """Compile the module, and the driver, with all mutants."""
    import pybind11

    copy = BUILD / "source"
    tests = ROOT / "tests"
    oracle = tests / "support" / "oracle.py"
    for path in [*(ROOT / "csrc").rglob("*"), *(tests / "native").rglob("*"), oracle]:
        if path.is_file():
            source = finder.sources.get(path)
            text = source.mutated() if source else path.read_text()
            write(copy / path.relative_to(ROOT), text)
    header = MUTANTS_H.replace("COUNT", str(len(finder.changes) + 1))
    write(copy / "mutants.h", header)
    write(copy / "mutants.cc", MUTANTS_CC)
    cmake = (ROOT / "CMakeLists.txt").read_text().replace("-O3", "-O1")
    cmake += (
        "foreach(name ${target} _native_testing)\n"
        "  if(TARGET ${name})\n"
        "    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/mutants.cc)\n"
        "  endif()\n"
        "endforeach()\n"
    )
    write(copy / "CMakeLists.txt", cmake)
    flags = f"-O1 -w -Wno-narrowing -include {copy / 'mutants.h'}"
    for name, option in (("module", "OFF"), ("driver", "ON")):
        run(
            *("cmake", "-G", "Unix Makefiles", "-S", copy, "-B", BUILD / name),
            *("-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={flags}", "-DMXADAMAX_CUDA=OFF"),
            "-DMXADAMAX_TESTING=ON",
            *(f"-DMXADAMAX_DRIVER={option}", f"-DPython_EXECUTABLE={sys.executable}"),
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        )
        run("cmake", "--build", BUILD / name)
    package = BUILD / "package"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "mxadamax", package / "mxadamax")
    for module in (package / "mxadamax").glob("_native*.so"):
        module.unlink()
    for module in (BUILD / "module").glob("_native*.so"):
        shutil.copy(module, package / "mxadamax")
    shutil.copy(next((BUILD / "driver").rglob("native_driver")), package)
    (package / "test_driver.py").write_text(DRIVER_TEST)


class State:
    """The file that all processes with mutants map."""

    def __init__(self, count: int):
        path = BUILD / "state"
        path.write_bytes(bytes(4 + count + 4))
        os.environ["MUTANTS"] = str(path)
        with path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)
        self.count = count

    def activate(self, mutant: int) -> None:
        self.map[0:4] = mutant.to_bytes(4, "little")

    def clear(self) -> None:
        self.map[4 : 4 + self.count + 1] = bytes(self.count + 1)

    def asked(self) -> list[int]:
        return [k for k, asked in enumerate(self.map[4 : 4 + self.count + 1]) if asked]


class Runner:
    """A plugin of pytest that runs the tests it collects again and again, each time in a fork."""

    def __init__(self, state: State, action):
        self.state = state
        self.action = action
        self.failed = None

    def pytest_runtestloop(self, session) -> bool:
        self.items = {
            item.nodeid: item for item in session.items if not item.get_closest_marker("skip")
        }
        self.imported = self.state.asked()
        self.action(self)
        return True

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.failed = report

    def run(self, names: list[str], limits: list[float]) -> tuple[str, str, float]:
        """Run tests in a fork until one fails, longer than these seconds or not at all.

        Returns what becomes of them (`outcome_of`), of which test, and after how long.
        """
        begin = time.monotonic()
        outcome, begun = outcome_of(lambda writer: self.run_here(names, writer), limits)
        return outcome, names[max(begun - 1, 0)], time.monotonic() - begin

    def run_here(self, names: list[str], writer: int) -> int:
        items = [self.items[name] for name in names]
        for item, following in zip(items, [*items[1:], None]):
            os.write(writer, b".")
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed is not None:
                return 1
        return 0


def outcome_of(action, limits: list[float]) -> tuple[str, int]:
    """What becomes of a fork: 'passed', 'failed', 'crashed' or 'hung'; and how far it came.

    It writes a byte at the beginning of each of its parts, which have a limit in seconds each.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = CRASHED
        try:
            os.setsid()
            silence = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(silence, number)
            code = action(writer)
        finally:
            os._exit(code)
    os.close(writer)
    ended = os.pidfd_open(child)
    begun, ready = 0, [reader]
    while ready and ended not in ready:
        ready, _, _ = select.select([reader, ended], [], [], limits[max(begun - 1, 0)])
        if reader in ready:
            begun += len(os.read(reader, 1 << 16))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reader)
    os.close(ended)
    if not ready:
        return "hung", begun
    return {0: "passed", 1: "failed"}.get(os.waitstatus_to_exitcode(status), "crashed"), begun


CRASHED = 3
PYTEST = (
    *("-c", str(ROOT / "pyproject.toml"), "-q", "-s"),
    *("-p", "no:cacheprovider", "-p", "no:faulthandler"),
)

TESTS = (
    *(
        "averaging",
        "bad_input",
        "benchmark",
        "checkpoints",
        "combinations",
        "cuda_in_mxnet",
        "fuzz_findings",
    ),
    *(
        "global_norm",
        "half_precision",
        "kernels",
        "leaves_no_trace",
        "low_precision",
        "oracle",
        "parity",
    ),
    *("properties", "robustness", "scalars", "skip_nonfinite", "sparse", "stubs", "training"),
)
"""Files of tests that reach the native code, and are not about something else."""

SURVIVES = ("passed", "not reached")
ENOUGH = 0.9
"""The share of mutants that tests have to notice."""
MARGIN = 10.0
"""Seconds that a test may take longer than ever, before it counts as hanging."""
LONGEST = 60.0
"""Seconds of tests that are left out."""


@dataclass
class Reach:
    """What is known about a test without mutants."""

    seconds: float
    asked: frozenset[int]

    @property
    def limit(self) -> float:
        return MARGIN + 5 * self.seconds


def learn(runner: Runner, sources: str) -> dict[str, Reach]:
    """Run each test by itself, unless it is known already which mutants it reaches."""
    cache = BUILD / "reach.json"
    known = json.loads(cache.read_text()) if cache.exists() else {}
    if known.get("sources") != sources:
        known = {"sources": sources, "files": {}}
    digests = {}
    for name, item in runner.items.items():
        path = str(item.path)
        if path not in digests:
            digests[path] = hashlib.sha256(item.path.read_bytes()).hexdigest()
            if known["files"].get(path, [None])[0] != digests[path]:
                known["files"][path] = [digests[path], {}]
        tests = known["files"][path][1]
        if name not in tests:
            runner.state.clear()
            outcome, _, seconds = runner.run([name], [LONGEST])
            tests[name] = [outcome, seconds, runner.state.asked()]
            if outcome != "passed":
                print(f"left out: {name} ({outcome} without mutants)", flush=True)
    cache.write_text(json.dumps(known))
    found = {}
    for name, item in runner.items.items():
        outcome, seconds, asked = known["files"][str(item.path)][1][name]
        if outcome == "passed":
            found[name] = Reach(seconds, frozenset(asked))
    return found


class Choice:
    """Chooses the tests for a mutant: what has noticed its neighbours, then the quick ones."""

    def __init__(self, reach: dict[str, Reach], seconds: float):
        self.reach = reach
        self.seconds = seconds
        self.noticed: dict[str, list[str]] = collections.defaultdict(list)
        # Of cases of one test all but the first come later.
        cases: collections.Counter[str] = collections.Counter()
        self.costs = {}
        for name in sorted(reach, key=lambda name: reach[name].seconds):
            test = name.split("[")[0]
            cases[test] += 1
            self.costs[name] = reach[name].seconds * cases[test] ** 2

    def tests(self, mutant: int, function: str) -> list[str]:
        reaching = [name for name in self.reach if mutant in self.reach[name].asked]
        before = self.noticed[function]
        reaching.sort(key=lambda name: (name not in before[:8], self.costs[name]))
        chosen, spent = [], 0.0
        for name in reaching:
            spent += self.reach[name].seconds
            if chosen and spent > self.seconds:
                break
            chosen.append(name)
        return chosen

    def note(self, function: str, name: str) -> None:
        before = self.noticed[function]
        if name in before:
            before.remove(name)
        before.insert(0, name)


def try_all(
    runner: Runner, changes: dict[int, Change], seconds: float, sources: str
) -> dict[int, list]:
    """What becomes of each mutant."""
    runner.state.activate(0)
    reach = learn(runner, sources)
    print(f"{len(reach)} tests reach {len(set().union(*(r.asked for r in reach.values())))}")
    choice = Choice(reach, seconds)
    results = {}
    for k, change in changes.items():
        names = choice.tests(k, change.function)
        if not names:
            results[k] = ["not reached", "", 0.0]
        else:
            runner.state.activate(k)
            limits = [reach[name].limit for name in names]
            results[k] = list(runner.run(names, limits))
            runner.state.activate(0)
            if results[k][0] != "passed":
                choice.note(change.function, results[k][1])
        print(f"{k} {results[k][0]} {results[k][2]:.1f} s {change} | {results[k][1]}", flush=True)
    return results


def try_import() -> list:
    """What becomes of a mutant that is asked for at import, in a fork that imports all anew."""
    import pytest

    tests = files_of(AT_IMPORT)
    begin = time.monotonic()
    outcome, _ = outcome_of(lambda _: min(pytest.main([*PYTEST, "-x", *tests]), 1), [300])
    return [outcome, "at import", time.monotonic() - begin]


def files_of(names: tuple[str, ...]) -> list[str]:
    """The files of tests with these names."""
    return [str(next((ROOT / "tests").rglob(f"test_{name}.py"))) for name in names]


AT_IMPORT = ("stubs", "scalars", "kernels", "bad_input")
"""Tests of what is done at import."""


def equivalents(listed: Path) -> set[str]:
    """The mutants that change nothing; the reason comes before each group of them."""
    lines = listed.read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def report(changes: dict[int, Change], results: dict[int, list]) -> None:
    """Say for each file how many mutants there were, and for how many no test has failed."""
    lived = [k for k in changes if results[k][0] in SURVIVES]
    print("\nnoticed by no test:", *(f"  {results[k][0]}: {changes[k]}" for k in lived), sep="\n")
    print()
    for file in [*sorted({change.file for change in changes.values()}), "all"]:
        tried = [k for k in changes if file in (changes[k].file, "all")]
        outcomes = collections.Counter(results[k][0] for k in tried)
        killed = len(tried) - sum(outcomes[outcome] for outcome in SURVIVES)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        print(f"{file}: {killed} of {len(tried)} noticed, {killed / len(tried):.1%} ({counts})")
    if len(lived) > (1 - ENOUGH) * len(changes):
        sys.exit(f"fewer than {ENOUGH:.0%} are noticed")


def try_here(state: State, changes: dict[int, Change], arguments, sources: str) -> list:
    """What becomes of each mutant but at import, and which are asked for then."""
    import pytest

    found = {}
    tests = arguments.tests or files_of(TESTS)
    runner = Runner(
        state, lambda runner: found.update(try_all(runner, changes, arguments.seconds, sources))
    )
    code = pytest.main([*PYTEST, *tests, "test_driver.py"], plugins=[runner])
    if not found:
        raise RuntimeError(f"pytest ends with {code}")
    return [list(found.items()), runner.imported]


def in_fork(action):
    """What action() returns in a process of its own, which imports for itself."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            with open(writer, "w") as file:
                json.dump(action(), file)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="files in csrc; by default all")
    parser.add_argument("--list", action="store_true", help="compile nothing")
    parser.add_argument("--seconds", type=float, default=60, help="of tests for one mutant at most")
    parser.add_argument("--survivors", type=Path, help="mutants that this output names")
    parser.add_argument("--tests", nargs="*", default=None, help="of pytest; else those in TESTS")
    parser.add_argument("--no-build", action="store_true", help="run what was compiled before")
    arguments = parser.parse_args()
    finder = find()
    equivalent = equivalents(EQUIVALENT)
    if unknown := equivalent - {change.name for change in finder.changes}:
        sys.exit("\n  ".join([f"{EQUIVALENT.name} lists what is no mutant:", *sorted(unknown)]))
    again = arguments.survivors.read_text() if arguments.survivors else None
    changes = {
        k: change
        for k, change in enumerate(finder.changes, 1)
        if (not arguments.files or change.file in arguments.files)
        and (again is None or str(change) in again)
        and change.name not in equivalent
    }
    if arguments.list:
        print(*changes.values(), sep="\n")
        return
    if not arguments.no_build:
        build(finder)
    state = State(len(finder.changes))
    package = BUILD / "package"
    os.environ["PYTHONPATH"] = str(package)
    sys.path.insert(0, str(package))
    os.chdir(package)
    # What forks need not import again.
    import mxnet  # noqa: F401
    import pytest  # noqa: F401

    found, imported = in_fork(lambda: try_here(state, changes, arguments, finder.digest()))
    results = dict(map(tuple, found))
    for k, change in changes.items():
        if results[k][0] in SURVIVES and k in imported:
            state.activate(k)
            results[k] = try_import()
            state.activate(0)
            print(k, *results[k], change, flush=True)
    path = BUILD / "results.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept.update({changes[k].name: results[k] for k in changes})
    path.write_text(json.dumps(kept, indent=1))
    report(changes, results)


if __name__ == "__main__":
    main()
