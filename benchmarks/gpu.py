# SPDX-License-Identifier: Apache-2.0
"""Time the kernels for GPUs beside PyTorch's, on a GPU. Needs PyTorch, and no MXNet.

    python benchmarks/gpu.py --json gpu.json

Each round runs every contender once, so that what disturbs the machine disturbs all; medians over
rounds. Three times are taken. Host: how long queueing a step takes. GPU: before a step the GPU is
kept busy for longer than that, so that CUDA's events measure the GPU's own time; of a step of more
kernels than fit into CUDA's queue, about a thousand, they measure some of the host's too. In a row:
several steps one after another until all are done, for each, which is what a training sees. The
learning rate changes at every step, as it does in training.

The bandwidth baseline is a copy within the GPU's memory that reads and writes as many bytes as
AdaMax with float32. The last column compares bandwidths: the bytes that a contender has to move,
over its time, as a share of the copy's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

from mxadamax import cuda

Shape = Tuple[int, ...]
Step = Callable[[], None]
Samples = Dict[str, Dict[str, Dict[str, List[float]]]]

DEVICE = "cuda"
OURS, OURS_ADAM = "mxadamax adamax", "mxadamax adam"
OURS_MASTERS = "mxadamax adamax, float16 with masters"
OURS_BFLOAT16, OURS_INT8 = "mxadamax adam, states bfloat16", "mxadamax adam, states int8"
TORCH_FUSED, TORCH_FOREACH = "torch Adam, fused", "torch Adamax, foreach"
COPY = "copy of the same bytes"
# Gradient, weight and two states are read, and all but the gradient are written. With masters the
# weight of 16 bits is written only. 8-bit states have two float32 scales for each 64 elements.
BYTES_PER_ELEMENT = {
    **dict.fromkeys((OURS, OURS_ADAM, TORCH_FUSED, TORCH_FOREACH, COPY), 28.0),
    **{OURS_MASTERS: 28.0, OURS_BFLOAT16: 20.0, OURS_INT8: 16.25},
}
SCALARS = {
    **{"rescale_grad": 1.0, "clip_gradient": math.inf, "wd": 0.0, "decay_factor": 1.0},
    **{"lr": 1e-3, "beta1": 0.9, "one_minus_beta1": 0.1, "beta2": 0.999, "one_minus_beta2": 1e-3},
    "epsilon": 1e-8,
}
# A GPU counts about two million cycles in a millisecond.
CYCLES_PER_MS = 2_000_000
WARM_UP_ROUNDS = 3
STEPS_IN_A_ROW = 4
# After so long, and so many rounds, a case has fewer than were asked for.
SECONDS_PER_CASE, LEAST_ROUNDS = 4.0, 5


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


def bert_base_shapes() -> list[Shape]:
    """The parameters of BERT-base with its pooler."""
    units, hidden = 768, 3072

    def dense(inputs: int, outputs: int) -> list[Shape]:
        return [(outputs, inputs), (outputs,)]

    norm: list[Shape] = [(units,), (units,)]
    layer = 4 * dense(units, units) + norm + dense(units, hidden) + dense(hidden, units) + norm
    return [(30522, units), (512, units), (2, units), *norm, *12 * layer, *dense(units, units)]


CASES: Mapping[str, Sequence[Shape]] = {
    "one array of 1 M": [(1_000_000,)],
    "one array of 16 M": [(16_000_000,)],
    "one array of 100 M": [(100_000_000,)],
    "ResNet-50": resnet50_shapes(),
    "BERT-base": bert_base_shapes(),
    "1000 arrays of 1024": [(1024,)] * 1000,
    "10000 arrays of 64": [(64,)] * 10_000,
}


def contenders(shapes: Sequence[Shape]) -> dict[str, Callable[[], Step]]:
    """What makes a step of each over arrays of these shapes."""
    import torch

    def arrays(dtype: Any = torch.float32) -> list[Any]:
        return [torch.rand(shape, device=DEVICE).to(dtype) for shape in shapes]

    def zeros(dtype: Any, of: Sequence[Shape] = shapes) -> list[Any]:
        return [torch.zeros(shape, dtype=dtype, device=DEVICE) for shape in of]

    def stepping(batch: cuda.Batch) -> Step:
        names = cuda.kernels().rules[batch.rule][1]
        scalars = {name: SCALARS[name] for name in names if name in SCALARS}
        stream = torch.cuda.current_stream() if DEVICE == "cuda" else None
        updates = itertools.count(1)

        def step() -> None:
            now = next(updates)
            few = {"step": now} if "step" in names else {}
            batch.update({**scalars, **few, "lr": SCALARS["lr"] / now}, stream=stream)

        return step

    def ours(rule: str) -> Step:
        states = cuda.kernels().rules[rule][0]
        weights, grads, *columns = (arrays() for _ in range(2 + states))
        return stepping(cuda.Batch(rule, weights, grads, list(zip(*columns))))

    def ours_with_masters() -> Step:
        weights, grads = (arrays(torch.float16) for _ in range(2))
        masters, *columns = (arrays() for _ in range(3))
        states = list(zip(*columns))
        return stepping(cuda.Batch("adamax", weights, grads, states, masters=masters))

    def ours_with_states(dtype: str, kept_in: Any) -> Step:
        scales = None
        if dtype == "int8":
            length = cuda.kernels().block_size
            blocks = [(-(-math.prod(shape) // length), 2) for shape in shapes]
            scales = zeros(torch.float32, blocks)
        states = list(zip(zeros(kept_in), zeros(kept_in)))
        options = {"state_dtype": dtype, "scales": scales}
        return stepping(cuda.Batch("adam", arrays(), arrays(), states, **options))

    def theirs(optimizer: Any, **options: Any) -> Step:
        parameters = [torch.nn.Parameter(array) for array in arrays()]
        for parameter in parameters:
            parameter.grad = torch.rand_like(parameter)
        return optimizer(parameters, lr=1e-3, **options).step

    def copy() -> Step:
        size = int(sum(math.prod(shape) for shape in shapes) * BYTES_PER_ELEMENT[COPY]) // 2
        source, target = (torch.empty(size, dtype=torch.uint8, device=DEVICE) for _ in range(2))
        return lambda: target.copy_(source)

    return {
        OURS: lambda: ours("adamax"),
        OURS_ADAM: lambda: ours("adam"),
        OURS_MASTERS: ours_with_masters,
        OURS_BFLOAT16: lambda: ours_with_states("bfloat16", torch.bfloat16),
        OURS_INT8: lambda: ours_with_states("int8", torch.int8),
        TORCH_FUSED: lambda: theirs(torch.optim.Adam, fused=True),
        TORCH_FOREACH: lambda: theirs(torch.optim.Adamax, foreach=True),
        COPY: copy,
    }


class Times(NamedTuple):
    """How long a step takes, in ms: the GPU, the host that queues it, and each of some in a row."""

    gpu: float
    host: float
    in_a_row: float


def measure(step: Step) -> Times:
    """Time a step, in ms."""
    import torch

    # With nothing to do for the GPU: behind a full queue the host would wait, and that is not its
    # own time. A pause that followed from it would grow from round to round.
    torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    host = time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(int(CYCLES_PER_MS * (0.2 + 2e3 * host)))
    begin.record()
    step()
    end.record()
    end.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS_IN_A_ROW):
        step()
    torch.cuda.synchronize()
    in_a_row = (time.perf_counter() - started) / STEPS_IN_A_ROW
    return Times(begin.elapsed_time(end), 1e3 * host, 1e3 * in_a_row)


def measure_on_host(step: Step) -> Times:
    """Time a step that is done when it returns; for rehearsals."""
    started = time.perf_counter()
    step()
    taken = 1e3 * (time.perf_counter() - started)
    return Times(taken, taken, taken)


def rehearse() -> None:
    """Let the kernels that are compiled for the host stand for those of a GPU."""
    global DEVICE, measure, CASES
    from mxadamax import _cuda_on_host
    from mxadamax.cuda import arrays

    DEVICE, measure = "cpu", measure_on_host
    CASES = {name: [(3, 500), (7,)] for name in CASES}
    sys.modules["mxadamax._cuda"] = _cuda_on_host
    arrays._from_dlpack = lambda array, *_: arrays.DeviceArray(
        array.data_ptr(), str(array.dtype).replace("torch.", ""), tuple(array.shape), None
    )


def run(rounds: int, only: str = "", ours: bool = False) -> Iterator[Samples]:
    """All samples so far, in ms, by case, contender, and what was measured; after each case."""
    import torch

    found: Samples = {}
    for case, shapes in CASES.items():
        if only not in case:
            continue
        steps = {
            name: make()
            for name, make in contenders(shapes).items()
            if not ours or name.startswith("mxadamax")
        }
        samples = found[case] = {name: {key: [] for key in Times._fields} for name in steps}
        started = time.monotonic()
        for k in range(WARM_UP_ROUNDS + rounds):
            for name, step in steps.items():
                times = measure(step)
                if k >= WARM_UP_ROUNDS:
                    for key, value in times._asdict().items():
                        samples[name][key].append(value)
            if k >= WARM_UP_ROUNDS + LEAST_ROUNDS and time.monotonic() - started > SECONDS_PER_CASE:
                break
        del steps, step
        torch.cuda.empty_cache()
        yield found


class Row(NamedTuple):
    """A contender in a case: medians in ms; and its bandwidth as a share of the copy's."""

    case: str
    contender: str
    gpu: float
    host: float
    in_a_row: float
    of_copy: float


def rows_of(samples: Samples) -> list[Row]:
    """The table, from all samples."""
    rows = []
    for case, by_name in samples.items():
        copied = math.nan
        if COPY in by_name:
            copied = BYTES_PER_ELEMENT[COPY] / statistics.median(by_name[COPY]["gpu"])
        for name, times in by_name.items():
            gpu, host, in_a_row = (statistics.median(times[key]) for key in Times._fields)
            rows.append(
                Row(case, name, gpu, host, in_a_row, BYTES_PER_ELEMENT[name] / gpu / copied)
            )
    return rows


HEADINGS = ("arrays", "contender", "GPU, ms", "host, ms", "in a row, ms", "of copy")


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """What is printed, a case's name only once."""
    found: list[tuple[str, ...]] = []
    before = None
    for row in rows:
        case = "" if row.case == before else row.case
        before = row.case
        times = (f"{time:.4f}" for time in (row.gpu, row.host, row.in_a_row))
        found.append((case, row.contender, *times, f"{row.of_copy:.2f}"))
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
    parser.add_argument("--table", type=Path, help="where to write the table")
    parser.add_argument("--rounds", type=int, default=30, help="samples of each (default: 30)")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--ours", action="store_true", help="only what this package computes")
    parser.add_argument(
        "--rehearse", action="store_true", help="run without a GPU, on few elements"
    )
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"argument --rounds: must be 1 or more, got {given.rounds}")
    if given.rehearse:
        rehearse()
        return measure_and_write(given, {"gpu": "rehearsal"})
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
    machine = {
        "gpu": described.gpus[0].name,
        "driver": described.driver,
        "compiler": described.compiler,
        "architectures": described.architectures,
        "torch": torch.__version__,
    }
    return measure_and_write(given, machine)


def measure_and_write(given: argparse.Namespace, machine: Mapping[str, str]) -> int:
    """Measure, write what was asked for after each case, and print the table."""
    rows: list[Row] = []
    for samples in run(given.rounds, given.case, given.ours):
        rows = rows_of(samples)
        found = {"machine": machine, "table": [row._asdict() for row in rows], "samples": samples}
        for path, text in (
            (given.table, plain_table(cells(rows))),
            (given.json, json.dumps(found, indent=1)),
        ):
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text + "\n")
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
