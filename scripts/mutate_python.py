# SPDX-License-Identifier: Apache-2.0
"""Change the Python code of mxadamax, a little at a time, and see the tests fail.

    python scripts/mutate_python.py                    all of it; prints what no test has noticed
    python scripts/mutate_python.py 'mxadamax.optimizers.adam.*'  these mutants
    python scripts/mutate_python.py --again            those that no test has noticed so far
    mutmut show NAME                                   what a mutant changes

mutmut makes the mutants, all of them in one copy of the package, where an environment variable says
which is meant. Here they are tested faster than by `mutmut run`: pytest collects once, and each
mutant is a fork that runs the tests that reach the changed function, until one fails. Mutants that
change nothing are listed in scripts/equivalent_python_mutants.txt, with their reasons.

Some of the code is for one MXNet alone. What one leaves over, the other can try: the verdicts are
kept, so run it with an environment of each, with --again the second time.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import os
import pickle
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable

import pytest
from mutate_native import equivalents
from mutmut import __main__ as mutmut
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.utils.format_utils import mangled_name_from_mutant_name

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = ROOT / "mutants"
MXNET = version("mxnet")

IGNORED = [
    "adam_paper",
    "amsgrad_counterexample",
    "benchmark",
    "broken_installations",
    "combinations",
    "cuda_benchmark",
    "cuda_code",
    "cuda_in_mxnet",
    "distributed",
    "docs",
    "fuzz_findings",
    "gluonts",
    "guide",
    "horovod",
    "import_order",
    "install",
    "kernels",
    "kill_and_resume",
    "landscapes",
    "native_driver",
    "oracle",
    "release",
    "robustness",
    "stubs",
    "torch",
    "train_mnist",
    "unmodified_programs",
    "verify",
    "without_mxnet",
]
"""Tests of something else, that start processes of their own, or that take long."""

CASES = 30
"""Of a test with more cases, so many are drawn."""

SECONDS = 4.0
"""Of the processor, which the tests of a mutant may take together, if nothing else is said."""

IN_PROCESSES = {
    "mxadamax.native_module": ["native_module"],
    "mxadamax.shared_library": ["native_module"],
    "mxadamax._mxnet.importing": ["command_line"],
    "mxadamax._mxnet.installation": ["command_line"],
    "mxadamax._mxnet.parameter_server": ["parameter_server"],
    "mxadamax._mxnet.versions": ["command_line", "native_module"],
}
"""Modules that files of tests reach in processes that they start, where it is not seen."""

EQUIVALENT = ROOT / "scripts" / "equivalent_python_mutants.txt"

ENOUGH = 0.9
"""The share of mutants that tests have to notice."""

KILLED, SURVIVED, NO_TESTS, TIMEOUT, CRASHED = 1, 0, 33, 36, -11
"""As mutmut writes it down."""
NOTICED = (KILLED, TIMEOUT, CRASHED)


def in_fork(function: Callable[[], Any], seconds: float | None = None) -> tuple[int, Any]:
    """What a function returns in a fork of this process, behind 0, or behind how it ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.close(reading)
        # Whatever the process does then, also inside C.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds or 0)
        try:
            with os.fdopen(writing, "wb") as stream:
                pickle.dump(function(), stream)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status), pickle.loads(content) if content else None


class Tests:
    """The tests that pytest has collected; a plugin that runs them for one mutant after another."""

    def __init__(self, patterns: list[str], again: bool, limit: float):
        self.patterns = patterns
        self.again = again
        self.limit = limit
        self.verdicts: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.failure = ""

    def pytest_configure(self, config: pytest.Config) -> None:
        # Others parse the whole file, in which there are all mutants of all functions.
        config.option.tbstyle = "native"

    def pytest_collection(self) -> None:
        from hypothesis import settings

        # A slow moment is no mistake of the code.
        settings.register_profile("mutation", settings.get_profile("repeatable"), deadline=None)
        settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failure = f"{report.nodeid}\n{report.longreprtext}"

    def passes(self, item: pytest.Item, following: pytest.Item | None) -> bool:
        self.failure = ""
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return not self.failure

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        gc.freeze()
        begin = time.monotonic()
        self.learn(session)
        print(f"{len(self.seconds)} tests in {time.monotonic() - begin:.0f} s", flush=True)
        with mutmut_folder():
            found, _ = mutmut.collect_source_file_mutation_data(mutant_names=self.patterns)
        left = [
            (data, name) for data, name, verdict in found if not (self.again and verdict in NOTICED)
        ]
        # First those that have never been tried.
        left.sort(key=lambda found: found[0].exit_code_by_key[found[1]] is not None)
        for k, (data, name) in enumerate(left):
            start = time.monotonic()
            self.verdicts[name] = data.exit_code_by_key[name] = self.verdict(name)
            with mutmut_folder():
                data.save()
            if os.environ.get("MUTATE_VERBOSE"):
                print(f"{self.verdicts[name]:3} {time.monotonic() - start:6.2f} {name}", flush=True)
            if k % 100 == 99:
                spent = time.monotonic() - begin
                counts = dict(Counter(self.verdicts.values()))
                print(f"{k + 1} of {len(left)} mutants, {spent:.0f} s, {counts}", flush=True)
        return True

    def learn(self, session: pytest.Session) -> None:
        """Which test reaches which functions, in how many seconds; each file in a fork."""
        cases, files = defaultdict(list), defaultdict(list)
        for item in session.items:
            cases[item.nodeid.partition("[")[0]].append(item)
        for found in cases.values():
            for item in random.Random(0).sample(found, min(len(found), CASES)):
                files[item.path].append(item)
        self.items = {item.nodeid: item for item in session.items}
        self.reaching: dict[str, set[str]] = defaultdict(set)
        self.reached: Counter[str] = Counter()
        self.reach: dict[str, Counter[str]] = {}
        self.found: dict[str, list[str]] = defaultdict(list)

        # What decides how the tests of a file come out, but for the file itself.
        common = [*(ROOT / "mxadamax").rglob("*.py"), *(ROOT / "tests/support").glob("*.py")]
        for path, items in files.items():

            def run(items: list[pytest.Item] = items) -> list[tuple[str, float, set[str], str]]:
                set_mutant_under_test("stats")
                # Not in processes that tests start.
                del os.environ["MUTANT_UNDER_TEST"]
                found = []
                for item, following in zip(items, [*items[1:], None]):
                    state()._stats.clear()
                    begin = sum(os.times()[:4])
                    self.passes(item, following)
                    spent = sum(os.times()[:4]) - begin
                    found.append((item.nodeid, spent, set(state()._stats), self.failure))
                return found

            contents = [p.read_bytes() for p in (path, *sorted(common))]
            key = hashlib.sha256(b"".join([MXNET.encode(), *contents]))
            known = MUTANTS / f"{path.stem}.{key.hexdigest()[:16]}.learned"
            if known.exists():
                found = pickle.loads(known.read_bytes())
            else:
                ending, found = in_fork(run, 600)
                if found is None:
                    sys.exit(f"{path.name} ends with {ending}, without any mutant")
                known.write_bytes(pickle.dumps(found))
                print(f"{path.name}: {sum(f[1] for f in found):.1f} s", flush=True)
            for test, spent, functions, failure in found:
                if failure:
                    print(f"not used, since it fails without any mutant: {failure}", flush=True)
                    continue
                self.seconds[test] = spent
                for function in functions:
                    self.reaching[function].add(test)
                    self.reached[test] += 1

    def chosen(self, name: str) -> list[pytest.Item]:
        """The tests for a mutant, in an order in which it is soon found.

        First those that have found others of this function, and of this file. Then by turns the
        best of two orders: quick tests that reach much of the file, a case of each before the
        next ones, and quick tests that reach little of the package.
        """
        function = mangled_name_from_mutant_name(name)
        module = function.rpartition(".")[0]
        if module not in self.reach:
            self.reach[module] = Counter(
                test
                for other, tests in self.reaching.items()
                if other.rpartition(".")[0] == module
                for test in tests
            )
        by_reach, cases = [], defaultdict(list)
        for test in self.reaching[function]:
            cost = self.seconds[test] + 0.01
            by_reach.append((cost * self.reached[test] ** 2, test))
            cases[test.partition("[")[0]].append((cost / self.reach[module][test] ** 2, test))
        by_cost = [
            (rank, *case) for found in cases.values() for rank, case in enumerate(sorted(found))
        ]
        orders = [[found[-1] for found in sorted(order)] for order in (by_reach, by_cost)]
        by_turns = [test for pair in zip(*orders) for test in pair]
        # Those that start processes, where what these reach is not seen.
        from_outside = [
            test
            for test in self.seconds
            if Path(test.partition("::")[0]).stem[len("test_") :] in IN_PROCESSES.get(module, ())
        ]
        known = [*self.found[function], *self.found[module]]
        chosen: list[pytest.Item] = []
        total = 0.0
        for test in dict.fromkeys([*known, *by_turns, *from_outside]):
            if test not in self.reaching[function] and test not in from_outside:
                continue
            total += self.seconds[test]
            if total > self.limit and chosen and test not in from_outside:
                continue
            chosen.append(self.items[test])
        return chosen

    def verdict(self, name: str) -> int:
        items = self.chosen(name)
        if not items:
            return NO_TESTS

        def run() -> str:
            set_mutant_under_test(name)
            for item, following in zip(items, [*items[1:], None]):
                signal.setitimer(signal.ITIMER_REAL, 10 + 10 * self.seconds[item.nodeid])
                if not self.passes(item, following):
                    return item.nodeid
            return ""

        ending, finder = in_fork(run)
        if finder is None:
            return TIMEOUT if ending == -signal.SIGALRM else CRASHED
        if not finder:
            return SURVIVED
        function = mangled_name_from_mutant_name(name)
        for key in (function, function.rpartition(".")[0]):
            if finder in self.found[key]:
                self.found[key].remove(finder)
            self.found[key].insert(0, finder)
        return KILLED


@contextlib.contextmanager
def mutmut_folder():
    """mutmut looks for its files from the root."""
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


def change_of(name: str, path: Path) -> str:
    """What a mutant changes, in one line."""
    lines = get_diff_for_mutant(name, path=path).splitlines()[2:]
    removed, added = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )
    return f"{path.name}: {removed} -> {added}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("patterns", nargs="*", help="of names of mutants; by default all")
    parser.add_argument("--again", action="store_true", help="only what no test has noticed so far")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of tests for one mutant")
    parser.add_argument("--tests", nargs="*", default=[], help="files of tests; by default most")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    MUTANTS.mkdir(exist_ok=True)
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        mutmut.copy_src_dir()
        mutmut.copy_also_copy_files()
        mutmut.setup_source_paths()
        mutmut.create_mutants(1)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(MUTANTS), os.environ.get("PYTHONPATH", "")])
    set_mutant_under_test("")

    tests = Tests(arguments.patterns, arguments.again, arguments.seconds)
    os.chdir(MUTANTS)
    ignored = [f"--ignore-glob=*/test_{name}.py" for name in IGNORED]
    options = ["-o", "addopts=--import-mode=importlib", "--capture=sys"]
    for name in ("terminal", "cacheprovider", "xdist"):
        options += ["-p", f"no:{name}"]
    files = [f"tests/{name}" for name in arguments.tests] or ["tests"]
    code = pytest.main([*options, *ignored, *files], plugins=[tests])
    os.chdir(ROOT)
    if not tests.seconds:
        sys.exit(f"pytest ends with {code!r}")

    equivalent = equivalents(EQUIVALENT)
    unknown = set(equivalent)
    total: Counter[str] = Counter()
    for path in sorted(mutmut.walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        counts: Counter[str] = Counter()
        for name, verdict in data.exit_code_by_key.items():
            if verdict is None:
                continue
            counts["mutants"] += 1
            if verdict in NOTICED:
                counts["noticed"] += 1
                continue
            change = change_of(name, path)
            unknown.discard(change)
            if change in equivalent:
                counts["equivalent"] += 1
            else:
                counts["survive"] += 1
                print(f"survives {name}\n    {change}")
        total += counts
        if counts:
            print(f"{path}: " + ", ".join(f"{counts[k]} {k}" for k in counts))
    meant = total["mutants"] - total["equivalent"]
    print("together: " + ", ".join(f"{total[k]} {k}" for k in total))
    print(f"{total['noticed']} of {meant} noticed, {total['noticed'] / max(meant, 1):.1%}")
    if unknown and not arguments.patterns:
        print(f"{EQUIVALENT.name} lists what is noticed, or no mutant:", *sorted(unknown), sep="\n")
    if total["noticed"] < ENOUGH * meant:
        sys.exit(f"fewer than {ENOUGH:.0%} are noticed")


if __name__ == "__main__":
    main()
