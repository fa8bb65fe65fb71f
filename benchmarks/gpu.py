# SPDX-License-Identifier: Apache-2.0
"""Time the kernels for GPUs beside PyTorch's, on a GPU. Needs PyTorch, and no MXNet.

    python benchmarks/gpu.py --json gpu.json

Each round runs every contender once, so that what disturbs the machine disturbs all; medians over
rounds. Before each step the GPU is kept busy for as long as the host takes to queue the step, so
that the GPU's own time is what CUDA's events measure; the host's time is measured beside it. What
the bytes alone take is a copy within the GPU's memory that reads and writes as many as AdaMax with
float32.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))
from without_mxnet import prepare

prepare()
from mxadamax import cuda  # noqa: E402

Shape = Tuple[int, ...]
Step = Callable[[], None]
Samples = Dict[str, Dict[str, Dict[str, List[float]]]]

DEVICE = "cuda"
OURS, OURS_ADAM, COPY = "mxadamax adamax", "mxadamax adam", "copy of the same bytes"
OURS_INT8 = "mxadamax adam, states in int8"
TORCH_FUSED, TORCH_FOREACH = "torch Adam, fused", "torch Adamax, foreach"
# AdaMax reads gradient, weight and two states, and writes all but the gradient.
BYTES_PER_ELEMENT = 28
SCALARS = {
    **{"rescale_grad": 1.0, "clip_gradient": math.inf, "wd": 0.0, "keep": 1.0},
    **{"lr": 1e-3, "beta1": 0.9, "one_minus_beta1": 0.1, "beta2": 0.999, "one_minus_beta2": 1e-3},
    "epsilon": 1e-8,
}
BUSY_CYCLES = 40_000_000
WARM_UP_ROUNDS = 3


def resnet50_shapes() -> list[Shape]:
    """The trainable parameters of ResNet-50 for ImageNet."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, channels, 1, 1))
            for convolution in convolutions:
                shapes += [convolution, (convolution[0],), (convolution[0],)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


CASES: Mapping[str, Sequence[Shape]] = {
    "one array of 100 M": [(100_000_000,)],
    "ResNet-50": resnet50_shapes(),
    "1000 arrays of 64": [(64,)] * 1000,
}


def contenders(shapes: Sequence[Shape]) -> dict[str, Step]:
    """A step of each over arrays of these shapes, all prepared."""
    import torch

    def arrays() -> list[Any]:
        return [torch.rand(shape, device=DEVICE) for shape in shapes]

    def scalars_of(rule: str) -> dict[str, float]:
        return {name: SCALARS[name] for name in cuda.kernels().rules[rule][1] if name in SCALARS}

    def stepping(batch: cuda.Batch, scalars: Mapping[str, float]) -> Step:
        stream = torch.cuda.current_stream()
        return lambda: batch.update(scalars, stream=stream)

    def ours(rule: str) -> Step:
        states = cuda.kernels().rules[rule][0]
        weights, grads, *columns = (arrays() for _ in range(2 + states))
        return stepping(cuda.Batch(rule, weights, grads, list(zip(*columns))), scalars_of(rule))

    def ours_in_int8() -> Step:
        def zeros(dtype: Any, of: Sequence[Shape] = shapes) -> list[Any]:
            return [torch.zeros(shape, dtype=dtype, device=DEVICE) for shape in of]

        states = list(zip(zeros(torch.int8), zeros(torch.uint8)))
        length = cuda.kernels().scaled_block
        blocks = [(-(-math.prod(shape) // length), 2) for shape in shapes]
        batch = cuda.Batch(
            *("adam", arrays(), arrays(), states),
            state_dtype="int8",
            scales=zeros(torch.float32, blocks),
        )
        return stepping(batch, scalars_of("adam"))

    def theirs(optimizer: Any, **options: Any) -> Step:
        parameters = [torch.nn.Parameter(array) for array in arrays()]
        for parameter in parameters:
            parameter.grad = torch.rand_like(parameter)
        return optimizer(parameters, lr=1e-3, **options).step

    def copy() -> Step:
        size = sum(math.prod(shape) for shape in shapes) * BYTES_PER_ELEMENT // 2
        source, target = (torch.empty(size, dtype=torch.uint8, device=DEVICE) for _ in range(2))
        return lambda: target.copy_(source)

    return {
        OURS: ours("adamax"),
        OURS_ADAM: ours("adam"),
        OURS_INT8: ours_in_int8(),
        TORCH_FUSED: theirs(torch.optim.Adam, fused=True),
        TORCH_FOREACH: theirs(torch.optim.Adamax, foreach=True),
        COPY: copy(),
    }


def measure(step: Step) -> tuple[float, float]:
    """How long a step takes the GPU, and how long it takes the host to queue it, in ms."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    begin.record()
    started = time.perf_counter()
    step()
    host = time.perf_counter() - started
    end.record()
    end.synchronize()
    return begin.elapsed_time(end), 1e3 * host


def run(rounds: int) -> Samples:
    """All samples, in ms, by case, contender, and where the time was measured."""
    import torch

    found: Samples = {}
    for case, shapes in CASES.items():
        steps = contenders(shapes)
        samples = found[case] = {name: {"gpu": [], "host": []} for name in steps}
        for k in range(WARM_UP_ROUNDS + rounds):
            for name, step in steps.items():
                times = measure(step)
                if k >= WARM_UP_ROUNDS:
                    for where, value in zip(("gpu", "host"), times):
                        samples[name][where].append(value)
        del steps, step
        torch.cuda.empty_cache()
    return found


class Row(NamedTuple):
    """A contender in a case: medians in ms, and how many times as long as ours it takes the GPU."""

    case: str
    contender: str
    gpu: float
    host: float
    ratio: float


def rows_of(samples: Samples) -> list[Row]:
    """The table, from all samples."""
    rows = []
    for case, by_name in samples.items():
        ours = statistics.median(by_name[OURS]["gpu"])
        for name, times in by_name.items():
            gpu, host = (statistics.median(times[where]) for where in ("gpu", "host"))
            rows.append(Row(case, name, gpu, host, gpu / ours))
    return rows


HEADINGS = ("arrays", "contender", "GPU, ms", "host, ms", "of ours")


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """What is printed, a case's name only once."""
    found: list[tuple[str, ...]] = []
    before = None
    for row in rows:
        case = "" if row.case == before else row.case
        before = row.case
        found.append(
            (case, row.contender, f"{row.gpu:.4f}", f"{row.host:.4f}", f"{row.ratio:.2f} x")
        )
    return found


def plain_table(lines: Sequence[Sequence[str]]) -> str:
    """A table in plain text: two columns to the left, the others to the right."""
    lines = [HEADINGS, *lines]
    widths = [max(len(line[k]) for line in lines) for k in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k < 2 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def show(rows: Sequence[Row]) -> None:
    """Print the table, by rich where there is rich."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(plain_table(cells(rows)))
        return
    table = Table(*HEADINGS[:2])
    for heading in HEADINGS[2:]:
        table.add_column(heading, justify="right")
    for line in cells(rows):
        table.add_row(*line)
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write all samples")
    parser.add_argument("--rounds", type=int, default=50, help="samples of each (default: 50)")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"argument --rounds: must be 1 or more, got {given.rounds}")
    described = cuda.describe()
    problem = described.problem
    if not problem:
        try:
            import torch

            if not torch.cuda.is_available():
                problem = "PyTorch finds no GPU"
        except ImportError:
            problem = "PyTorch is not installed"
    if problem:
        print(f"benchmarks/gpu.py: {problem}", file=sys.stderr)
        return 2
    samples = run(given.rounds)
    rows = rows_of(samples)
    show(rows)
    if given.json:
        machine = {
            "gpu": described.gpus[0].name,
            "driver": described.driver,
            "compiler": described.compiler,
            "architectures": described.architectures,
            "torch": torch.__version__,
        }
        found = {"machine": machine, "table": [row._asdict() for row in rows], "samples": samples}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
