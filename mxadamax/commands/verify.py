# SPDX-License-Identifier: Apache-2.0
"""``mxadamax verify``: compare every optimizer with the installed MXNet, on this machine.

Results must be equal bit for bit, or within the number of ULP in docs/optimizers.md. Weights have
odd sizes, up to some that several threads share. The steps use weight decay, clipping, rescaling
and multipliers, with all parameters in one call and with three per call.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import mxnet
import numpy
from mxnet.context import Context
from mxnet.ndarray import NDArray
from mxnet.optimizer import Optimizer
from numpy.typing import NDArray as NumpyArray
from rich.console import Console
from rich.table import Table

from .. import _native
from ..conversion import built_in_name, master_first
from ..dtypes import BFLOAT16
from ..optimizers.arithmetic import SERIES
from ..optimizers.base import FusedOptimizer, State
from ..optimizers.info import OPTIMIZERS, OptimizerInfo
from ..optimizers.state_layout import arrays_of

Numbers = NumpyArray[Any]
CPU = mxnet.cpu()

STEPS = 6
SHAPES = [(1,), (2,), (15,), (17,), (33,), (3, 4, 5), (1000,), (17_001,)]
"""Around the widths of vectors, and longer than a chunk."""

LARGE = (140_001,)
"""Large enough for several threads to share. Only for float32, to finish in a minute."""

TABLES = [(100, 10), (33, 3)]
OPTIONS = {"learning_rate": 0.0123, "wd": 0.013, "clip_gradient": 0.37, "rescale_grad": 1 / 3}

AGGREGATIONS: Sequence[Dict[str, int]] = ({}, {"aggregate_num": 3})
"""All parameters in one call, and three per call."""


class Type(NamedTuple):
    """A dtype of weights, with or without float32 masters.

    Parameters
    ----------
    label : str
        Its name in the table.
    dtype : numpy.dtype
        MXNet's dtype.
    multi_precision : bool
        The option of that name.
    """

    label: str
    dtype: Any
    multi_precision: bool = False


TYPES = [
    Type("float32", numpy.dtype("float32")),
    Type("float64", numpy.dtype("float64")),
    Type("float16", numpy.dtype("float16")),
    Type("float16, multi_precision", numpy.dtype("float16"), True),
    Type("bfloat16", BFLOAT16),
    Type("bfloat16, multi_precision", BFLOAT16, True),
]

ROW_SPARSE = "row_sparse gradients"
"""The column of the comparisons with row_sparse gradients of float32."""

SUMS_ON_GPU = 1000.0
"""The allowed difference in a step with norms on a GPU, which adds squares in another order.

The sums of MXNet's operators, in float32, are themselves 500 ULP off for weights of `LARGE`.
"""


@dataclass(frozen=True)
class Result:
    """One comparison.

    Parameters
    ----------
    optimizer, against, instruction_set : str
        The compared optimizer, its counterpart, and the instruction set or the GPU.
    allowed, found : float
        The largest difference, in ULP.
    """

    optimizer: str
    against: str
    instruction_set: str
    allowed: float
    found: float

    @property
    def passed(self) -> bool:
        """Return whether the difference is within the allowed one."""
        return self.found <= self.allowed


# ---------------------------------------------------------------- numbers


def nd(array: Numbers, dtype: Any) -> NDArray:
    """Create an NDArray; MXNet creates those of bfloat16 only by conversion."""
    made = mxnet.nd.array(array, dtype=array.dtype)
    return made if dtype == array.dtype else made.astype(dtype)


def to_float32(array: NDArray) -> Numbers:
    """Convert a 16-bit array to float32 numbers; return others unchanged."""
    short = array.dtype == BFLOAT16 or array.dtype == numpy.float16
    found: Numbers = (array.astype("float32") if short else array).asnumpy()
    return found


def rounded(values: Numbers, dtype: Any) -> Numbers:
    """Round float32 numbers to 16 bits, in NumPy, independently of the tested code."""
    if dtype == numpy.float16:
        with numpy.errstate(over="ignore"):
            return values.astype(numpy.float16).astype(numpy.float32)
    bits = numpy.atleast_1d(values).view(numpy.uint32)
    # Add half of the last place, minus a bit if the number below is even.
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    found: Numbers = kept.astype(numpy.uint32).view(numpy.float32).reshape(values.shape)
    return found


def ordered_integers(values: Numbers, dtype: Any) -> Numbers:
    """Map numbers to integers in the order of all numbers of a dtype; 0 and -0 are neighbours."""
    values = numpy.atleast_1d(values)
    if dtype == numpy.float16:
        bits = values.astype(numpy.float16).view(numpy.int16).astype(numpy.int64)
    elif dtype == BFLOAT16:
        bits = values.view(numpy.int32).astype(numpy.int64) >> 16
    else:
        bits = values.view(f"int{8 * values.itemsize}").astype(numpy.int64)
    digits = {2: 15, 4: 31, 8: 63}[numpy.dtype(dtype).itemsize]
    return numpy.where(bits < 0, -(bits & ((1 << digits) - 1)) - 1, bits)


def ulp_distance(actual: Numbers, expected: Numbers, dtype: Any) -> float:
    """Return the largest distance in ULP; two NaN have distance 0."""
    if actual.shape != expected.shape:
        return float("inf")
    if actual.tobytes() == expected.tobytes():
        return 0.0
    a, b = ordered_integers(actual, dtype), ordered_integers(expected, dtype)
    # Unsigned: the distance can exceed the range of signed integers.
    distance = numpy.where(a > b, a - b, b - a).astype(numpy.uint64)
    nan = numpy.isnan(actual), numpy.isnan(expected)
    distance[numpy.atleast_1d(nan[0] & nan[1])] = 0
    if numpy.any(nan[0] != nan[1]):
        return float("inf")
    return float(numpy.max(distance, initial=0))


def ulp_of_largest(actual: Numbers, expected: Numbers, dtype: Any) -> float:
    """Return the largest difference in ULP of the largest number of the array.

    Those of float64 are ULP of float32, in which MXNet's operators take norms.
    """
    if actual.tobytes() == expected.tobytes():
        return 0.0
    digits, least = (11, -24) if dtype == numpy.float16 else (24, -149)
    if dtype == BFLOAT16:
        digits, least = 8, -133
    with numpy.errstate(invalid="ignore"):
        largest = float(numpy.max(numpy.abs(expected)))
        distance = numpy.max(numpy.abs(actual.astype("float64") - expected))
        found = float(distance / max(largest * 2.0 ** (1 - digits), 2.0**least))
    return float("inf") if numpy.isnan(found) else found


def units_apart(actual: Numbers, expected: Numbers, before: Numbers) -> Numbers:
    """Return how far elements differ, in ULP of the largest number in their sum.

    That is the value before, the value after, or the difference.
    """
    largest = numpy.max(numpy.abs([expected, before, expected - before]), axis=0)
    unit = numpy.maximum(numpy.spacing(largest), numpy.finfo(actual.dtype).tiny)
    units = numpy.abs(actual - expected) / unit
    found: Numbers = numpy.where(numpy.isnan(units), numpy.inf, units)
    return found


class Data(NamedTuple):
    """The weights and gradients of a training, with the same numbers for ours and the reference.

    Parameters
    ----------
    weights, grads : list
        Arrays of the dtype; gradients for each step.
    wide_weights, wide_grads : list
        The same numbers in the dtype of the reference.
    """

    weights: List[NDArray]
    grads: List[List[NDArray]]
    wide_weights: List[NDArray]
    wide_grads: List[List[NDArray]]


@functools.lru_cache(maxsize=None)
def data(dtype: Any) -> Data:
    """Generate weights, and gradients of many magnitudes, all within the range of float16."""
    random = numpy.random.RandomState(0)
    computed = "float64" if dtype == numpy.float64 else "float32"
    shapes = [*SHAPES, LARGE] if dtype == numpy.float32 else SHAPES

    def arrays(magnitudes: Tuple[float, float]) -> Tuple[List[NDArray], List[NDArray]]:
        made = [
            nd(
                numpy.asarray(
                    random.standard_normal(shape) * 10.0 ** random.uniform(*magnitudes, shape),
                    computed,
                ),
                dtype,
            )
            for shape in shapes
        ]
        return made, [nd(to_float32(array), computed) for array in made]

    weights, wide_weights = arrays((0.0, 0.0))
    grads, wide_grads = zip(*(arrays((-6, 2)) for _ in range(STEPS)))
    return Data(weights, list(grads), wide_weights, list(wide_grads))


# ---------------------------------------------------------------- trainings


class Run:
    """An optimizer with weights and states on a device, like a Trainer."""

    def __init__(self, optimizer: Optimizer, weights: Sequence[NDArray], device: Context = CPU):
        self.optimizer = optimizer
        self.device = device
        self.weights = [weight.copyto(device) for weight in weights]
        self.updater = mxnet.optimizer.get_updater(optimizer)

    def step(self, grads: Sequence[NDArray]) -> None:
        """Run one update. MXNet's own optimizers get copies of gradients, which they overwrite."""
        if not isinstance(self.optimizer, FusedOptimizer):
            grads = [grad.copy() for grad in grads]
        grads = [grad.as_in_context(self.device) for grad in grads]
        self.updater(list(range(len(grads))), list(grads), list(self.weights))

    def states(self) -> List[NDArray]:
        """Return the arrays of all states, after a step."""
        return [
            leaf for index in range(len(self.weights)) for leaf in arrays_of(self._state(index))
        ]

    def _state(self, index: int) -> State:
        state = self.updater.states[index]
        return master_first(state, built_in_name(self.optimizer) or "")

    def arrays(self) -> List[NDArray]:
        """Return weights and states."""
        return [*self.weights, *self.states()]


def with_multipliers(optimizer: Optimizer) -> Optimizer:
    """Set multipliers of learning rates and weight decay for some parameters."""
    optimizer.set_lr_mult({0: 0.5, 2: 1.1, 4: 1.7, 6: 2.3})
    optimizer.set_wd_mult({0: 0.0, 3: 2.1, 6: 4.2})
    return optimizer


def expected_of(run: Run, dtype: Any, multi_precision: bool) -> List[Numbers]:
    """Return the expected arrays of a dtype after a step of a reference in float32.

    With `multi_precision`, the reference is the float32 master. Without, everything is rounded
    once, and the reference continues from the rounded numbers.
    """
    if dtype in (numpy.float32, numpy.float64):
        return [array.asnumpy() for array in run.arrays()]
    if not multi_precision:
        for array in run.arrays():
            array[:] = nd(rounded(array.asnumpy(), dtype), "float32")
        return [array.asnumpy() for array in run.arrays()]
    found = [rounded(weight.asnumpy(), dtype) for weight in run.weights]
    for index, weight in enumerate(run.weights):
        state = arrays_of(run.updater.states[index])
        found += [weight.asnumpy(), *(leaf.asnumpy() for leaf in state)]
    return found


def difference_of_bits(info: OptimizerInfo, kind: Type, device: Context = CPU) -> float:
    """Return the largest difference between ours and the reference over some steps, in ULP.

    The reference runs on the CPU.
    """
    options = {**OPTIONS, **info.options}
    given = data(kind.dtype)
    in_other_order = has_other_sums(info, device)
    distance = ulp_of_largest if in_other_order else ulp_distance

    def run(optimizer: Optimizer, weights: Sequence[NDArray], on: Context = CPU) -> Run:
        return Run(with_multipliers(optimizer), weights, on)

    runs = [
        run(
            info.create(**{**options, "multi_precision": kind.multi_precision, **aggregation}),
            given.weights,
            device,
        )
        # Where sums depend on the number of threads, they depend on aggregation.
        for aggregation in (AGGREGATIONS[:1] if info.fixed_order else AGGREGATIONS)
    ]
    by_master = kind.multi_precision and kind.dtype == numpy.float16
    if by_master and ("masters", SERIES) not in info.exceptions:
        reference = run(
            info.create_reference("masters", **options, multi_precision=True), given.weights
        )
    else:
        by_master = False
        wide = given.wide_weights[0].dtype.__name__
        reference = run(info.create_reference(wide, **options), given.wide_weights)
    worst = 0.0
    for grads, wide_grads in zip(given.grads, given.wide_grads):
        reference.step(grads if by_master else wide_grads)
        if by_master:
            expected = [to_float32(array) for array in reference.arrays()]
        else:
            expected = expected_of(reference, kind.dtype, kind.multi_precision)
        for ours in runs:
            ours.step(grads)
            found = ours.arrays()
            if len(found) != len(expected):
                return float("inf")
            for array, numbers in zip(found, expected):
                worst = max(worst, distance(to_float32(array), numbers, array.dtype))
                if in_other_order:
                    # Later steps would magnify the difference.
                    array[:] = nd(numbers, array.dtype)
    return worst


def difference_of_rows(info: OptimizerInfo, device: Context = CPU) -> float:
    """Return the largest difference of a step with row_sparse gradients, from equal numbers."""
    options = {**OPTIONS, **info.options, **info.row_sparse_options}
    if ("row_sparse", SERIES) in info.exceptions:
        # The reference step in MXNet's operators updates all rows.
        options["lazy_update"] = False
    return difference_of_steps(
        info.create(**options), info.create_reference("row_sparse", **options), device
    )


def difference_of_steps(ours: Optimizer, theirs: Optimizer, device: Context = CPU) -> float:
    """Return the largest difference of a step of two optimizers, each from equal numbers.

    The second runs on the CPU.
    """
    random = numpy.random.RandomState(2)

    def numbers() -> List[Numbers]:
        return [numpy.asarray(random.standard_normal(shape), "float32") for shape in TABLES]

    def gradients() -> List[NDArray]:
        found = []
        for array in numbers():
            array[random.random_sample(len(array)) < 0.5] = 0
            found.append(nd(array, array.dtype).tostype("row_sparse"))
        return found

    weights = [nd(array, array.dtype) for array in numbers()]
    runs = [Run(ours, weights, device), Run(theirs, weights)]
    worst = 0.0
    for step in range(STEPS):
        grads = gradients()
        before = [array.asnumpy() for array in runs[0].arrays()] if step else []
        for run in runs:
            run.step(grads)
        arrays = [[array.asnumpy() for array in run.arrays()] for run in runs]
        # After the first step, which makes the states.
        for values in zip(*arrays, before):
            worst = max(worst, float(numpy.max(units_apart(*values), initial=0)))
        for mine, number in zip(runs[1].arrays(), arrays[0]):
            mine[:] = nd(number, "float32")
    return worst


# ---------------------------------------------------------------- the command


def has_other_sums(info: OptimizerInfo, device: Context) -> bool:
    """Return whether an optimizer has norms, and the device adds their squares in another order."""
    rule = info.name[: -len("_ext")]
    return device.device_type == "gpu" and any(
        found.sums > 0 for name, found in _native.rules.items() if name.startswith(rule)
    )


def comparisons(device: Context) -> Iterator[Tuple[OptimizerInfo, str, float, Any]]:
    """Yield the optimizer, its counterpart, the allowed difference, and the comparing function."""
    for info in OPTIMIZERS:
        allowed = SUMS_ON_GPU if has_other_sums(info, device) else 0.0
        for kind in TYPES:
            bits = functools.partial(difference_of_bits, info, kind, device)
            yield info, kind.label, allowed, bits
        yield info, ROW_SPARSE, allowed, functools.partial(difference_of_rows, info, device)


def verify_here(console: Console, device: Context = CPU) -> List[Result]:
    """Run all comparisons on a device; on a CPU, with the instruction set of this process."""
    results = []
    name = _native.instruction_set if device.device_type == "cpu" else str(device)
    with console.status(f"{name}: ") as status:
        for info, against, allowed, difference in comparisons(device):
            status.update(f"{name}: {info}, {against}")
            results.append(Result(str(info), against, name, allowed, difference()))
    return results


def verify_in_another_process(instruction_set: str, device: Context = CPU) -> List[Result]:
    """Run all comparisons with another instruction set, which needs another process."""
    command = [sys.executable, "-m", "mxadamax", "verify", "--json"]
    done = subprocess.run(
        [*command, "--instruction-set", instruction_set, "--device", str(device)],
        env={**os.environ, "MXADAMAX_INSTRUCTION_SET": instruction_set},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        found = json.loads(done.stdout)["results"]
    except (KeyError, ValueError):
        # If the import fails, the output is a report of that.
        raise ChildProcessError(
            f"verifying {instruction_set} ended with exit status {done.returncode}"
        ) from None
    return [Result(**{k: v for k, v in result.items() if k != "passed"}) for result in found]


def cell(result: Optional[Result]) -> str:
    """Format a comparison for the table."""
    if result is None:
        return ""
    if result.found == 0:
        return "[green]same bits[/]"
    if result.passed:
        return f"[green]{result.found:.2g} ULP[/]"
    return f"[bold red]FAIL {result.found:.4g} ULP[/]"


def table_of(results: Sequence[Result]) -> Table:
    """Format the comparisons of one instruction set, one optimizer per row."""
    table = Table(title=f"{results[0].instruction_set}", title_justify="left")
    columns = list(dict.fromkeys(result.against for result in results))
    for column in ("optimizer", *columns):
        # Wrap names on a narrow terminal instead of truncating them.
        table.add_column(column, overflow="fold")
    for optimizer in dict.fromkeys(result.optimizer for result in results):
        row = {result.against: result for result in results if result.optimizer == optimizer}
        table.add_row(optimizer, *(cell(row.get(column)) for column in columns))
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Compare every optimizer with the installed MXNet, for every dtype of weights and every "
        "instruction set of this CPU: bit for bit where that is guaranteed, else by the largest "
        "difference in units in the last place (ULP). The exit status is 1 if a difference is "
        "larger than allowed."
    )
    parser.add_argument(
        "--instruction-set",
        choices=_native.instruction_sets,
        metavar="NAME",
        help=f"on a CPU, compare only with this one: {', '.join(_native.instruction_sets)}",
    )
    parser.add_argument(
        "--device",
        type=device_of,
        default=CPU,
        help="where ours run: gpu(0), or cpu(0) (default); the counterparts run on the CPU",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def device_of(text: str) -> Context:
    """Return the device of this name, such as gpu(0) or gpu.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is no such name.
    """
    found = re.fullmatch(r"(cpu|gpu)(?:\((\d+)\))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a device such as gpu(0), got {text!r}")
    return Context(found[1], int(found[2] or 0))


def check_device(device: Context) -> None:
    """Refuse a device on which MXNet creates no arrays.

    Raises
    ------
    ValueError
        If there is no such GPU, or MXNet is one for CPUs.
    """
    try:
        mxnet.nd.zeros((1,), ctx=device).wait_to_read()
    except mxnet.MXNetError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"MXNet creates no arrays on {device} ({reason}): this needs a GPU of that number and "
            "an MXNet built for CUDA"
        ) from error


def run(given: argparse.Namespace) -> int:
    """Compare and print the results; return 1 if a difference is larger than allowed."""
    began = time.perf_counter()
    # MXNet tells of each built-in that it runs on dense copies.
    os.environ.setdefault("MXNET_STORAGE_FALLBACK_LOG_VERBOSE", "0")
    # On stderr, because JSON may go to stdout.
    console = Console(stderr=True)
    results: List[Result] = []
    check_device(given.device)
    sets = [given.instruction_set] if given.instruction_set else _native.instruction_sets
    if given.device.device_type == "gpu":
        sets = [str(given.device)]
    for name in sets:
        if name in (_native.instruction_set, str(given.device)):
            results += verify_here(console, given.device)
        else:
            with console.status(f"{name}, in another process"):
                results += verify_in_another_process(name, given.device)
    failed = [result for result in results if not result.passed]
    if given.json:
        found = [{**asdict(result), "passed": result.passed} for result in results]
        print(json.dumps({"mxnet": mxnet.__version__, "results": found}, indent=1))
    else:
        console = Console()
        for name in sets:
            console.print(table_of([r for r in results if r.instruction_set == name]))
        seconds = time.perf_counter() - began
        console.print(f"MXNet {mxnet.__version__}: {len(results)} comparisons, {seconds:.0f} s")
        console.print(
            f"[bold red]{len(failed)} are not as promised[/]" if failed else "all as promised"
        )
    return 1 if failed else 0
