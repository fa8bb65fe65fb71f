# SPDX-License-Identifier: Apache-2.0
"""scripts/mutate_native.py finds what can be changed in C++, and each mutant computes something else."""

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("clang.cindex", reason="needs libclang")
pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a compiler")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "mutate_native.py"

SOURCE = """\
extern "C" int printf(const char*, ...);
template <int n>
constexpr int twice = n + n;
constexpr int length = 4;
enum { first = 2 };
static_assert(length == 3 + 1, "as many");
bool is_small(int x) {
  const bool small = x < 10;
  return small;
}
struct Counter {
  int count = 0;
  void add(int x) { count += x; }
};
int computed(int x) {
  int list[length + 1] = {};
  Counter counter;
  for (int k = 0; k < length; ++k) {
    if (k == 2) continue;
    list[k] = x * 5 - k;
  }
  const auto half = [](double y) { return -y / 2.5; };
  counter.add(list[0]);
  if constexpr (twice<length> > 1) counter.add(list[3]);
  if (is_small(x) && x >= 1) return counter.count + (x > 5 ? 1 : 2);
  if (!is_small(x))
    counter.add(7);
  else
    counter.add(static_cast<int>(half(x - 100)));
  return counter.count;
}
int main() {
  for (int x = -3; x < 14; ++x) printf("%d %d\\n", x, computed(x));
}
"""


@pytest.fixture
def program(tmp_path):
    """The program with all its mutants: what it prints with none or one of them."""
    script = runpy.run_path(str(SCRIPT))
    source = tmp_path / "source.cc"
    source.write_text(SOURCE)
    finder = script["Finder"](lambda path: path == source.resolve())
    finder.read(source, ["-std=c++17"])
    changes = finder.changes
    (tmp_path / "mutants.h").write_text(script["MUTANTS_H"].replace("COUNT", str(len(changes) + 1)))
    (tmp_path / "mutants.cc").write_text(script["MUTANTS_CC"])
    (tmp_path / "mutated.cc").write_text(finder.sources[source.resolve()].mutated())
    subprocess.run(
        ["c++", "-std=c++17", "-w", "-include", "mutants.h", "mutated.cc", "mutants.cc"],
        cwd=tmp_path,
        check=True,
    )

    def run(mutant=0):
        state = tmp_path / "state"
        state.write_bytes(mutant.to_bytes(4, "little") + bytes(len(changes) + 4))
        done = subprocess.run(
            ["./a.out"],
            cwd=tmp_path,
            env={**os.environ, "MUTANTS": str(state)},
            capture_output=True,
            timeout=60,
            check=False,
        )
        asked = {k for k, byte in enumerate(state.read_bytes()[4:]) if byte}
        return done.stdout, asked

    return changes, run


def test_each_mutant_changes_what_a_program_does(program):
    changes, run = program
    plain, asked = run()
    assert plain.splitlines()[3:5] == [b"0 37", b"1 9"]
    assert asked == set(range(1, len(changes) + 1))
    # What no test can notice: nothing reads these numbers.
    assert {changes[k - 1].name for k in asked if run(k)[0] == plain} == {
        "source.cc: 'continue' -> '' in if (k == 2) continue;",
        "source.cc: '<' -> '<=' in for (int k = 0; k < length; ++k) {",
    }


def test_what_is_changed(program):
    changes, _ = program
    found = [(change.line, change.old, change.new) for change in changes]
    assert (8, "<", "<=") in found
    assert (9, "return", "return not") in found
    assert (13, "+=", "-=") in found
    assert (19, "continue", "") in found
    assert (20, "5", "+ 1") in found
    assert (22, "-", "") in found
    assert (23, "counter.add(list[0])", "") in found
    assert (25, "&&", "||") in found
    # Nothing that the compiler computes: constants, lengths, types, conditions of templates.
    assert not {line for line, *_ in found} & {1, 2, 4, 5, 6}
    assert [old for line, old, _ in found if line == 24] == ["counter.add(list[3])", "3"]
