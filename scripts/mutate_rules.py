# SPDX-License-Identifier: Apache-2.0
"""Change each operator, constant and index in csrc/rules, one at a time, and see the tests fail.

    python scripts/mutate_rules.py                     all rules; prints what no test has noticed
    python scripts/mutate_rules.py adam.h rule.h       these
    python scripts/mutate_rules.py --list adam.h       says what would be changed

For each mutant one file is compiled, the kernels of the plainest instruction set, and the driver in
tests/native compares every rule with the oracle. Mutants that change nothing are listed below.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "csrc" / "rules"
DRIVER = ("main.cc", "test_codecs.cc", "test_kernels.cc", "test_rules.cc", "test_update.cc")

TOKEN = re.compile(
    r"""(?P<skip>//[^\n]*|"[^"\n]*"|\#[^\n]*|template\s*<[^>]*>|RuleList<[^>]*>|GradientTransform<T>|
        static_cast<(?:[^<>]|<[^<>]*>)*>|Scalars<T>|prepared_gradient<R>|updated_weight<R>|AdamRule<(?:true|false)>|Total<T>|conditional_t<[^;{]*>|static_assert[^;]*;|T&|T\*|
        const\ char\*|kinds\[\d\])
    |(?P<name>[A-Za-z_][\w.:]*)|(?P<number>\d+)|(?P<operator>==|!=|<=|>=|&&|\|\||[-+*/<>!?=])""",
    re.VERBOSE,
)

OPERATORS = {
    "+": ["-"],
    "-": ["+"],
    "*": ["/"],
    "/": ["*"],
    "<": [">=", "<="],
    ">": ["<=", ">="],
    "!=": ["=="],
    "!": [""],
}
NAMES = {
    "true": "false",
    "false": "true",
    "StateKind::with_sign": "StateKind::second_moment",
    "StateKind::second_moment": "StateKind::non_negative",
    "StateKind::non_negative": "StateKind::with_sign",
    "square": "",
    "sign": "",
    "square_root": "",
    "absolute": "",
    "maximum": "clipped",
    "clipped": "maximum",
    "__builtin_fabs": "-",
    "__builtin_fabsf": "-",
    "__builtin_sqrt": "",
    "__builtin_sqrtf": "",
    "g": "(-g)",
}

BOUND = (
    "where both are equal, either is the result; only the sign of a zero differs, for a bound of 0"
)
EQUIVALENT = {
    "rule.h: '<' -> '<=' in const T below = bound < x ? bound : x;": BOUND,
    "rule.h: '>' -> '>=' in return -bound > below ? -bound : below;": BOUND,
    "rule.h: '>' -> '>=' in return a != a ? a : (a > b ? a : b);": (
        "the same, and of two zeros neither is negative"
    ),
    "rule.h: '<' -> '<=' in const T unit = a < 0 ? "
    "constant<T>(-1) : constant<T>(1);": "of 0 it is not asked for",
    "rule.h: '+' -> '-' in return a != 0 && a == a ? unit : a + 0;": (
        "the sign of a zero that is added to a weight"
    ),
    "lamb.h: '<' -> '<=' in const Total<T> bounded_below = found < lower_bound ? lower_bound : "
    "found;": BOUND,
    "lamb.h: '<' -> '<=' in const Total<T> weight_norm = upper_bound < bounded_below ? "
    "upper_bound : bounded_below;": BOUND,
    **dict.fromkeys(
        (
            "lans.h: '<' -> '<=' in const T bounded_below = found < s.lower_bound ? s.lower_bound "
            ": found;",
            "lans.h: '<' -> '<=' in scale[weight_norm] = s.upper_bound < bounded_below ? "
            "s.upper_bound : bounded_below;",
        ),
        BOUND,
    ),
    "lamb.h: '0' -> '1' in static constexpr int half_squares = of_mxnet1 ? 1 : 0;": (
        "of copies, which others do not sum up"
    ),
    "adamax.h: '1' -> '2' in return -(step / (step == 0 && divisor == 0 ? "
    "constant<T>(1) : divisor));": ("what zero is divided by"),
    "ftrl.h: '>' -> '>=' in return (sign(z) * s.lamda1 - z) / divisor * (size > s.lamda1 ? T{1} : "
    "T{0});": "where both are equal, zero is multiplied",
    **dict.fromkeys(
        (
            "lars.h: '+' -> '-' in sum[0] += w;",
            "lars.h: '+' -> '-' in sum[1] += g;",
            "lars.h: 'g' -> '(-g)' in sum[1] += g;",
            "lars.h: 'g' -> '(-g)' in sum[1] += square(static_cast<double>(g));",
        ),
        "terms begin at zero, and are squared",
    ),
    "lars.h: '1' -> '2' in static constexpr int scales = 1;": "nobody finds or uses the second",
    "lars.h: '<' -> '<=' in const auto wd = static_cast<float>(transform.wd < 0 ? 0 : "
    "transform.wd);": "zero either way",
    **dict.fromkeys(
        (
            f"{header}: 'StateKind::with_sign' -> 'StateKind::second_moment' in static constexpr "
            "StateKind kinds[] = {StateKind::with_sign};"
            for header in ("sgd.h", "signum.h")
        ),
        "where there are no states; C++ has no arrays without elements",
    ),
    "rule.h: '1' -> '2' in static constexpr int stages = 1;": "a second one finds the same again",
    "rule.h: '1' -> '2' in static constexpr int scales = 1;": "nobody finds or uses the second",
    "rule.h: 'false' -> 'true' in static constexpr bool sums_copy = false;": (
        "all rules with sums say which they take"
    ),
    "rule.h: '0' -> '1' in } else if constexpr (R::sums > 0) {": "all that have sums have two",
}
"""Those that no test can notice, and why."""


def mutants(text: str) -> list[tuple[int, int, str]]:
    """Where in a header what is replaced by what."""
    found = []
    scalars = re.findall(r"T ((?:\w+, )*\w+);", text)
    names = list(dict.fromkeys(name for names in scalars for name in names.split(", ")))
    body = text.index("namespace")
    for match in TOKEN.finditer(text, body):
        kind, token, at = match.lastgroup, match.group(), match.start()
        begin = text.rfind("\n", 0, at) + 1
        line = text[begin : text.find("\n", at)]
        before = text[:at].rstrip()[-1:]
        after = text[match.end() :].lstrip()[:1]
        # What comes before a function's body is no formula.
        declares = "MXADAMAX_RULE" in line and at < begin + (line + "{").index("{")
        replacements: list[str] = []
        if kind == "operator":
            if declares:
                continue
            replacements = OPERATORS.get(token, [])
            # What begins a term is a sign.
            if token == "-" and (before in "(=?:,*/+" or text[:at].rstrip().endswith("return")):
                replacements = [""]
        elif kind == "number":
            replacements = [str(int(token) + 1)]
            if before == "[":
                replacements = ["1" if token == "0" else str(int(token) - 1)]
        elif kind == "name":
            prefix, _, scalar = token.partition("s.")
            if prefix == "" and scalar in names and len(names) > 1:
                replacements = ["s." + names[(names.index(scalar) + 1) % len(names)]]
            elif token == "g" and text[:at].endswith(("square(", "absolute(")):
                # Of either sign the same.
                continue
            elif token in NAMES and not declares and "struct" not in line:
                if token[0].islower() and token not in ("true", "false", "g") and after != "(":
                    continue
                replacements = [NAMES[token]]
        found += [(at, match.end(), new) for new in replacements]
    return found


LIST = re.compile(r"(AllRules =\s*RuleList<)(.*?)>;", re.DOTALL)


def rules_of(header: str) -> list[str]:
    """The rules that a header has, of those that all.h lists."""
    listed = re.findall(r"\w+(?:<[^>]*>)?", LIST.search((RULES / "all.h").read_text())[2])
    names = set(re.findall(r"(?:struct|using) (\w+)", (RULES / header).read_text()))
    return [rule for rule in listed if header == "all.h" or rule.partition("<")[0] in names]


def run(*command: object, seconds: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


class Driver:
    """The driver with the kernels of one instruction set, compiled anew for each mutant."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sources = folder / "csrc"
        shutil.copytree(ROOT / "csrc", self.sources)
        self.objects = []
        native = ROOT / "tests" / "native"
        cases = folder / "rule_cases.txt"
        written = run(sys.executable, native / "rule_cases.py", cases)
        if written.returncode:
            raise RuntimeError(written.stderr[-2000:])
        defined = f'-DMXADAMAX_RULE_CASES="{cases}"', f'-DMXADAMAX_MXNET_CASES="{native}"'
        others = [native / name for name in DRIVER]
        others += [self.sources / "cpu" / name for name in ("instruction_set.cc", "update.cc")]
        for source in others:
            self.objects.append(self.compile(source, f"-I{native}", *defined, "-O1"))

    def keep_rules_of(self, header: str) -> None:
        """Leave out the rules of other headers, which takes most of the time to compile."""
        listed = (RULES / "all.h").read_text()
        # rule.h has none of its own: it needs all.
        kept = rules_of(header) or rules_of("all.h")
        written = re.sub(LIST, lambda found: f"{found[1]}{', '.join(kept)}>;", listed)
        (self.sources / "rules" / "all.h").write_text(written)

    def compile(self, source: Path, *options: str) -> Path:
        target = self.folder / (source.stem + ".o")
        command = ("c++", "-std=c++17", "-ffp-contract=off", "-fopenmp")
        done = run(*command, f"-I{self.sources}", *options, "-c", source, "-o", target)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return target

    def test(self) -> str | None:
        """What the tests say of the rules as they are now; None where they pass."""
        try:
            kernels = self.compile(
                self.sources / "cpu" / "kernels.cc", "-DMXADAMAX_KERNELS=kernels_baseline"
            )
        except RuntimeError:
            return "does not compile"
        driver = self.folder / "driver"
        linked = run("c++", "-fopenmp", *self.objects, kernels, "-o", driver)
        if linked.returncode:
            raise RuntimeError(linked.stderr[-2000:])
        try:
            done = run(driver, "rules")
        except subprocess.TimeoutExpired:
            return "hangs"
        return None if done.returncode == 0 else (done.stderr.strip() or "crashed").splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("headers", nargs="*", help="files in csrc/rules; by default all")
    parser.add_argument("--list", action="store_true", help="compile nothing")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so many")
    arguments = parser.parse_args()
    headers = arguments.headers or sorted(p.name for p in RULES.glob("*.h") if p.name != "all.h")
    end = time.monotonic() + (arguments.seconds or 1e9)
    survivors, tried, uncompiled, equivalent = [], 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        driver = None if arguments.list else Driver(Path(folder))
        if driver and (reason := driver.test()):
            sys.exit(f"without any change the driver fails: {reason}")
        for header in headers:
            text = (RULES / header).read_text()
            if driver is not None:
                driver.keep_rules_of(header)
            for first, last, new in mutants(text):
                line = text.count("\n", 0, first) + 1
                shown = text.splitlines()[line - 1].strip()
                change = f"{text[first:last]!r} -> {new!r} in {shown}"
                what = f"{header}:{line}: {change}"
                if driver is None:
                    print(what)
                    continue
                if time.monotonic() > end:
                    print(f"stopped before {what}")
                    break
                (driver.sources / "rules" / header).write_text(text[:first] + new + text[last:])
                reason = driver.test()
                tried += 1
                uncompiled += reason == "does not compile"
                if reason is None and f"{header}: {change}" in EQUIVALENT:
                    equivalent += 1
                elif reason is None:
                    survivors.append(what)
                    print("survives", what, flush=True)
                elif tried % 10 == 0:
                    print(f"{tried} mutants", flush=True)
            if driver is not None:
                (driver.sources / "rules" / header).write_text(text)
                print(f"{header}: done, {tried} so far", flush=True)
    if driver is None:
        return
    print(
        f"{tried} mutants: {uncompiled} do not compile, {equivalent} change nothing, "
        f"{len(survivors)} survive"
    )
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
