# SPDX-License-Identifier: Apache-2.0
"""Run programs of others plainly and under `mxadamax run`, and compare their results to the bit.

    python scripts/compare_programs.py tests/programs/gluonts_forecasts.py ...

Each runs twice plainly and twice accelerated, in turn. Prints the results that are equal, the ones
that are not, what was native, and the CPU time of both ways; the exit status is 1 if a result
differs where the two plain runs agree.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path


def run(command: list[str]) -> tuple[list[str], str, float]:
    """Return the results that a program prints, what it says otherwise, and its CPU time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    results = [line for line in done.stdout.splitlines() if line.startswith("result: ")]
    if not results:
        raise SystemExit(f"{' '.join(command)} printed no result")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return results, done.stderr, seconds


def main() -> int:
    """Compare all programs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="+", type=Path)
    given = parser.parse_args()
    start = [sys.executable, "-c", "import mxadamax_hook; mxadamax_hook.main()", "run"]
    failed = False
    for program in given.programs:
        plain, accelerated = [], []
        for _ in range(2):
            plain.append(run([sys.executable, str(program)]))
            accelerated.append(run([*start, "--report", "--verify", "2", str(program)]))
        print(f"{program.name}:")
        for position, result in enumerate(plain[0][0]):
            name = result.split(" [")[0][len("result: ") :]
            repeats = plain[1][0][position] == result
            equal = all(found[0][position] == result for found in accelerated)
            failed = failed or (repeats and not equal)
            said = "the same bits" if equal else "OTHER BITS" if repeats else "not repeatable"
            print(f"  {name}: {said}")
        for line in accelerated[0][1].splitlines():
            if "native" in line or " by MXNet: " in line:
                print(f"  {line.replace('mxadamax: ', '').strip()}")
        times = [min(found[2] for found in runs) for runs in (plain, accelerated)]
        print(f"  CPU time {times[0]:.1f} s plainly, {times[1]:.1f} s accelerated", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
