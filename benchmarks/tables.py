# SPDX-License-Identifier: Apache-2.0
"""The tables of figures in README.md and docs/, from what `mxadamax bench` and benchmarks/ wrote.

Run, it prints them, to be put there; with ``--write`` it replaces those there. A test compares.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from mxadamax.commands.bench.cases import FAMILY
from mxadamax.commands.bench.reporting import limit_of, ratio

RESULTS = Path(__file__).resolve().parent / "results"


class Measured:
    """What one run has measured."""

    def __init__(self, name: str):
        self.cases: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())["cases"]

    def has(self, case: str) -> bool:
        """Whether a case was measured."""
        return case in self.cases

    def ratio(self, case: str, contender: str, *others: str) -> str:
        """How many times as long one takes as others together, with "limit" for the baseline."""
        samples = {name: found["samples_ms"] for name, found in self.cases[case].items()}
        limit = limit_of(samples)
        return ratio(samples, contender, *(limit if name == "limit" else name for name in others))

    def ms(self, case: str, contender: str) -> str:
        """A median in milliseconds; nothing where it was not measured."""
        found = self.cases[case].get(contender)
        return "" if found is None else f"{found['median_ms']:.1f}"

    def peer(self, case: str, contender: str, ours: str, note: str = "") -> str:
        """The same, and how many times as long as ours."""
        medians = [self.cases[case][name]["median_ms"] for name in (contender, ours)]
        times = medians[0] / medians[1]
        return f"{medians[0]:.1f} ({times:.{0 if times >= 30 else 1}f} x{note})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


UPDATES = {
    "resnet50": "ResNet-50, 25.6 M in 161 arrays",
    "single-25m": "one array, 25 M",
    "small-1000x64": "1000 arrays of 64",
    "bert-base": "BERT-base, 109 M in 199 arrays",
}
TRAININGS = {
    "mlp-2048-b32": "MLP 784-2048-2048-10, batch 32",
    "mlp-2048-b256": "the same, batch 256",
    "layers-8x64-b32": "8 layers of 64, batch 32",
    "cnn-b32": "small CNN, batch 32",
}


def updates(run: Measured) -> str:
    """`Trainer.step` of models' shapes."""
    columns = ["parameters", "`adamax_ext`", "MXNet's `adamax`", "MXNet's `adam`"]
    return table(
        [*columns, "`Trainer` alone", "bandwidth baseline"],
        [
            [
                label,
                run.ms(case, "adamax_ext"),
                run.peer(case, "adamax", "adamax_ext"),
                *(run.ms(case, contender) for contender in ("adam", "no_op", "bandwidth_baseline")),
            ]
            for case, label in UPDATES.items()
        ],
    )


def trainings(run: Measured) -> str:
    """Whole training steps."""
    return table(
        ["model", "`adamax_ext`", "MXNet's `adamax`", "no update"],
        [
            [
                label,
                run.ms(case, "adamax_ext"),
                run.peer(case, "adamax", "adamax_ext"),
                run.ms(case, "no_op"),
            ]
            for case, label in TRAININGS.items()
        ],
    )


LABELS = {
    "rmsprop-centered": "`rmsprop_ext`, centered",
    "sgd-momentum": "`sgd_ext`, momentum",
    "signsgd": "`signum_ext`, no momentum",
    "lars-momentum": "`lars_ext`, momentum",
}
"""Of those that are an optimizer with an option."""


def family(run: Measured) -> str:
    """All optimizers."""
    rows = []
    for name, info in FAMILY.items():
        case, ours, theirs = f"family-{name}", info.name, info.timed_beside
        if not run.has(case):
            continue
        note = "" if ours == f"{theirs}_ext" else f", `{theirs}`"
        others = [run.ms(case, contender) for contender in ("no_op", "bandwidth_baseline", "torch")]
        label = LABELS.get(name, f"`{ours}`")
        rows.append([label, run.ms(case, ours), run.peer(case, theirs, ours, note), *others])
    header = ["ResNet-50's shapes, ms", "ours", "MXNet's", "`Trainer` alone", "bandwidth baseline"]
    return table([*header, "torch's"], rows)


def limits(*runs: Measured) -> str:
    """All optimizers, in units of what memory or arithmetic and `Trainer` take, of each run."""
    rows = []
    for name, info in FAMILY.items():
        case, ours = f"family-{name}", info.name
        row = [LABELS.get(name, f"`{ours}`")]
        for run in runs:
            for contender in (ours, f"{ours}, mxadamax.Trainer"):
                row.append(run.ratio(case, contender, "limit", "no_op"))
            row.append(run.ratio(case, info.timed_beside, ours))
        rows.append(row)
    columns = ["`gluon.Trainer`", "`mxadamax.Trainer`", "MXNet's / ours"]
    return table(["ResNet-50's shapes", *len(runs) * columns], rows)


OPTIONS = {
    "bandwidth_baseline": "bandwidth baseline, float32",
    "adamax_ext": "no option",
    "adamax_ext, clip_global_norm": "`clip_global_norm`",
    "adamax_ext, gluon clip": "`gluon.utils.clip_global_norm`, then the step",
    "adamax, gluon clip": "the same with MXNet's `adamax`",
    "adamax_ext, skip_nonfinite": "`skip_nonfinite`",
    "adamax_ext, ema_decay": "`ema_decay`",
    "adamax_ext, bfloat16 states": "`state_dtype='bfloat16'`",
    "adamax_ext, float16 states": "`state_dtype='float16'`",
    "adamax_ext, int8 states": "`state_dtype='int8'`",
}


def options(run: Measured) -> str:
    """What options cost."""
    return table(
        ["25 M parameters in one array, ms", "`adamax_ext`"],
        [[label, run.ms("options-25m", contender)] for contender, label in OPTIONS.items()],
    )


def gpu(name: str) -> str:
    """One step on a GPU, as benchmarks/gpu.py has measured it."""
    rows = json.loads((RESULTS / f"{name}.json").read_text())["table"]
    cases: dict[str, dict[str, Any]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["contender"]] = row
    ours, torch = "mxadamax adam", "torch Adam, fused"
    header = ["ms", "`adam`", "of the copy's bandwidth", "torch's fused Adam", "host: `adam`"]
    return table(
        [*header, "host: torch"],
        [
            [
                *(case, f"{found[ours]['gpu']:.3f}", f"{found[ours]['of_copy']:.0%}"),
                *(f"{found[torch]['gpu']:.3f}", f"{found[ours]['host']:.2f}"),
                f"{found[torch]['host']:.2f}",
            ]
            for case, found in cases.items()
        ],
    )


LOSSES = {
    "digits": "MNIST, CNN",
    "text": "Markov chain, transformer",
    "ratings": "ratings, matrix factorization",
}
STATE_TYPES = ("perturbed", "bfloat16", "float16", "int8")


def losses(model: str) -> str:
    """Held-out losses with float32 states, and what other types of states add to them."""
    found = json.loads((RESULTS / "low-precision-losses.json").read_text())["table"]
    cases: dict[str, dict[str, Any]] = {}
    for row in found:
        if row["model"] == model:
            cases.setdefault(row["optimizer"], {})[row["dtype"]] = row

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return ""
        text = f"{row['difference']:+.4f} ± {row['error']:.4f}"
        return text if row["within_noise"] else f"**{text}**"

    rows = []
    for name, by_type in cases.items():
        any_row = next(iter(by_type.values()))
        label = LABELS.get(name, f"`{name}_ext`")
        float32 = f"{any_row['float32']:.4f} ± {any_row['spread']:.4f}"
        cells = (cell(by_type.get(dtype)) for dtype in STATE_TYPES)
        rows.append([label, f"{any_row['rate']:g}", float32, *cells])
    types = ("float32, perturbed", *(f"`'{dtype}'`" for dtype in STATE_TYPES[1:]))
    return table([LOSSES[model], "learning rate", "float32", *types], rows)


def tables() -> dict[str, list[str]]:
    """All of them, by the file that has them."""
    run, whole = Measured("cpu-2-cores"), Measured("cpu-2-cores-family")
    of_avx512 = [Measured(f"cpu-2-cores-avx512-family{mxnet}") for mxnet in ("", "-mxnet-1.9.1")]
    return {
        "README.md": [updates(run), trainings(run)],
        "docs/performance.md": [family(whole), limits(*of_avx512), options(run)],
        "docs/cuda.md": [gpu("gpu-h100")],
    }


def write(root: Path) -> None:
    """Replace the tables in the pages, each by the one with the same head."""
    for page, found in tables().items():
        text = (root / page).read_text()
        for new in found:
            head = "".join(new.splitlines(keepends=True)[:2])
            old = re.compile(re.escape(head) + r"(?:\|.*\n)*")
            if len(old.findall(text)) != 1:
                raise SystemExit(f"{page} must have one table that begins with\n{head}")
            text = old.sub(lambda _, new=new: new, text)
        (root / page).write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write them into the pages")
    if parser.parse_args().write:
        write(Path(__file__).resolve().parents[1])
    else:
        print("\n".join(found for group in tables().values() for found in group))
