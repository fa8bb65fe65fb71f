# SPDX-License-Identifier: Apache-2.0
"""``mxadamax verify``: every optimizer against the installed MXNet, on this machine.

What must be equal is equal to the last bit, and everything else is within the units in the last
place that docs/optimizers.md names. Weights have odd sizes, up to some that several threads share;
with weight decay, clipping, rescaling, multipliers, and with all parameters in one call as well as
with three.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import mxnet
import numpy
from mxnet.ndarray import NDArray
from mxnet.optimizer import Optimizer
from numpy.typing import NDArray as NumpyArray
from rich.console import Console
from rich.table import Table

from .. import _native
from .._mxnet.compatibility import IS_MXNET_1
from ..dtypes import BFLOAT16
from ..optimizers.base import FusedOptimizer
from ..optimizers.info import OPTIMIZERS, OptimizerInfo
from ..optimizers.state_layout import arrays_of

Numbers = NumpyArray[Any]

STEPS = 6
SHAPES = [(1,), (2,), (15,), (17,), (33,), (3, 4, 5), (1000,), (17_001,)]
"""Around the widths of vectors, and more than a chunk."""

LARGE = (140_001,)
"""What several threads share, where there are some. Of float32 only, to be done in a minute."""

FUSED_SHAPES = [(1000,), (33, 3)]
OPTIONS = {"learning_rate": 0.0123, "wd": 0.013, "clip_gradient": 0.37, "rescale_grad": 1 / 3}

AGGREGATIONS: Sequence[Dict[str, int]] = ({}, {"aggregate_num": 3})
"""All parameters in one call, and three."""

# MXNet's fused operators compute 1 - beta in single precision, for the defaults 1e-5 of its size
# off. With these rates it is exact.
EXACT_RATES = {"beta1": 0.5, "beta2": 0.5, "rho": 0.5}


class Type(NamedTuple):
    """What arrays hold, and whether their optimizers keep a float32 copy.

    Parameters
    ----------
    label : str
        For the table.
    dtype : numpy.dtype
        MXNet's.
    multi_precision : bool
        The option.
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

FUSED = "MXNet's operator"
"""The column of the comparisons with those that do not compute in the same order."""


@dataclass(frozen=True)
class Result:
    """One comparison.

    Parameters
    ----------
    optimizer, against, instruction_set : str
        What was compared.
    allowed, found : float
        The largest difference, in units in the last place.
    """

    optimizer: str
    against: str
    instruction_set: str
    allowed: float
    found: float

    @property
    def passed(self) -> bool:
        """Whether it is as promised."""
        return self.found <= self.allowed


# ---------------------------------------------------------------- numbers


def nd(array: Numbers, dtype: Any) -> NDArray:
    """An NDArray; MXNet makes those of bfloat16 from others only."""
    made = mxnet.nd.array(array, dtype=array.dtype)
    return made if dtype == array.dtype else made.astype(dtype)


def to_float32(array: NDArray) -> Numbers:
    """What an array of 16 bits stands for, or any other as it is."""
    short = array.dtype == BFLOAT16 or array.dtype == numpy.float16
    found: Numbers = (array.astype("float32") if short else array).asnumpy()
    return found


def rounded(values: Numbers, dtype: Any) -> Numbers:
    """Float32 numbers rounded to 16 bits; in NumPy, apart from what is tested."""
    if dtype == numpy.float16:
        with numpy.errstate(over="ignore"):
            return values.astype(numpy.float16).astype(numpy.float32)
    bits = numpy.atleast_1d(values).view(numpy.uint32)
    # Half of the last place, less a bit where the number below is even.
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    found: Numbers = kept.astype(numpy.uint32).view(numpy.float32).reshape(values.shape)
    return found


def ordered_integers(values: Numbers, dtype: Any) -> Numbers:
    """Where numbers are in the order of all numbers of their type: 0 and -0 are neighbours."""
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
    """How many numbers of a type the farthest two are apart; two NaN are not."""
    if actual.shape != expected.shape:
        return float("inf")
    if actual.tobytes() == expected.tobytes():
        return 0.0
    a, b = ordered_integers(actual, dtype), ordered_integers(expected, dtype)
    # Of unsigned numbers: it can be more than the signed ones hold.
    distance = numpy.where(a > b, a - b, b - a).astype(numpy.uint64)
    nan = numpy.isnan(actual), numpy.isnan(expected)
    distance[numpy.atleast_1d(nan[0] & nan[1])] = 0
    if numpy.any(nan[0] != nan[1]):
        return float("inf")
    return float(numpy.max(distance, initial=0))


def units_apart(actual: Numbers, expected: Numbers, before: Numbers) -> Numbers:
    """How far elements differ, in units in the last place of the largest number in their sum.

    That is the value before, the value after, or what was added.
    """
    largest = numpy.max(numpy.abs([expected, before, expected - before]), axis=0)
    unit = numpy.maximum(numpy.spacing(largest), numpy.finfo(actual.dtype).tiny)
    units = numpy.abs(actual - expected) / unit
    found: Numbers = numpy.where(numpy.isnan(units), numpy.inf, units)
    return found


class Data(NamedTuple):
    """What a training of a type starts from and goes by, the same numbers for ours and reference.

    Parameters
    ----------
    weights, grads : list
        Of the type; gradients for each step.
    wide_weights, wide_grads : list
        The same numbers in the type that the reference computes in.
    """

    weights: List[NDArray]
    grads: List[List[NDArray]]
    wide_weights: List[NDArray]
    wide_grads: List[List[NDArray]]


@functools.lru_cache(maxsize=None)
def data(dtype: Any) -> Data:
    """Weights, and gradients of many magnitudes, all below the largest float16 number."""
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
    """An optimizer with weights and states, as a Trainer holds them, without a Trainer."""

    def __init__(self, optimizer: Optimizer, weights: Sequence[NDArray]):
        self.optimizer = optimizer
        self.weights = list(weights)
        self.updater = mxnet.optimizer.get_updater(optimizer)

    def step(self, grads: Sequence[NDArray]) -> None:
        """One update, of copies where it is MXNet's own, which overwrite gradients."""
        if not isinstance(self.optimizer, FusedOptimizer):
            grads = [grad.copy() for grad in grads]
        self.updater(list(range(len(grads))), list(grads), list(self.weights))

    def states(self) -> List[NDArray]:
        """The arrays of all states, after a step."""
        return [
            leaf
            for index in range(len(self.weights))
            for leaf in arrays_of(self.updater.states[index])
        ]

    def arrays(self) -> List[NDArray]:
        """Weights and states."""
        return [*self.weights, *self.states()]


def with_multipliers(optimizer: Optimizer) -> Optimizer:
    """An optimizer by which some parameters learn faster, and others decay more."""
    optimizer.set_lr_mult({0: 0.5, 2: 1.1, 4: 1.7, 6: 2.3})
    optimizer.set_wd_mult({0: 0.0, 3: 2.1, 6: 4.2})
    return optimizer


def expected_of(run: Run, dtype: Any, multi_precision: bool) -> List[Numbers]:
    """What arrays of a type must hold that go with a reference in float32, after its step.

    With `multi_precision` the reference is the float32 copy. Without, everything is rounded once,
    and the reference goes on from that.
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


def difference_of_bits(info: OptimizerInfo, kind: Type) -> float:
    """How far ours gets from the reference over some steps, at the most."""
    options = {**OPTIONS, **info.options}
    given = data(kind.dtype)

    def run(optimizer: Optimizer, weights: Sequence[NDArray]) -> Run:
        return Run(with_multipliers(optimizer), [weight.copy() for weight in weights])

    runs = [
        run(
            info.create(**options, multi_precision=kind.multi_precision, **aggregation),
            given.weights,
        )
        for aggregation in AGGREGATIONS
    ]
    reference = run(info.create_reference(**options), given.wide_weights)
    worst = 0.0
    for grads, wide_grads in zip(given.grads, given.wide_grads):
        reference.step(wide_grads)
        expected = expected_of(reference, kind.dtype, kind.multi_precision)
        for ours in runs:
            ours.step(grads)
            found = ours.arrays()
            if len(found) != len(expected):
                return float("inf")
            for array, numbers in zip(found, expected):
                worst = max(worst, ulp_distance(to_float32(array), numbers, array.dtype))
    return worst


def with_exact_rates(info: OptimizerInfo) -> Dict[str, Any]:
    """Options with which the fused operator of the built-in computes the same formula."""
    ranges = type(info.create()).ranges
    options = {**OPTIONS, **{name: rate for name, rate in EXACT_RATES.items() if name in ranges}}
    if info.built_in == "adamw":
        return options
    # Where weight decay goes is what MXNet 1's operators do otherwise.
    return {**options, "wd": 0.0} if IS_MXNET_1 else options


def difference_from_fused(info: OptimizerInfo) -> float:
    """The largest difference of a step from MXNet's fused operator, each from the same numbers."""
    options = {**with_exact_rates(info), **{k: v for k, v in info.options.items() if k != "wd"}}
    ours = mxnet.optimizer.create(info.name, **options)
    return difference_of_steps(ours, info.create_fused(**options))


def difference_from_adamax_of_mxnet_1() -> float:
    """It has no epsilon, and clips after weight decay: without both it is within 2 units."""
    options = {name: value for name, value in OPTIONS.items() if name != "clip_gradient"}
    ours = mxnet.optimizer.create("adamax_ext", epsilon=0.0, **options)
    return difference_of_steps(ours, mxnet.optimizer.create("adamax", **options))


def difference_of_steps(ours: Optimizer, theirs: Optimizer) -> float:
    """The largest difference of a step of two optimizers, each from the same numbers."""
    random = numpy.random.RandomState(2)

    def numbers() -> List[NDArray]:
        return [
            nd(numpy.asarray(random.standard_normal(shape), "float32"), "float32")
            for shape in FUSED_SHAPES
        ]

    weights = numbers()
    runs = [Run(optimizer, [weight.copy() for weight in weights]) for optimizer in (ours, theirs)]
    worst = 0.0
    for step in range(STEPS):
        grads = numbers()
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


# ---------------------------------------------------------------- all of it


def comparisons() -> Iterator[Tuple[OptimizerInfo, str, float, Any]]:
    """Who is compared with what, how far apart they may be, and what tells how far they are."""
    for info in OPTIMIZERS:
        for kind in TYPES:
            yield info, kind.label, 0.0, functools.partial(difference_of_bits, info, kind)
        if info.name == "adamax_ext" and IS_MXNET_1:
            yield info, FUSED, 2.0, difference_from_adamax_of_mxnet_1
        elif info.fused_ulps and (info.in_mxnet_1 or not IS_MXNET_1):
            yield info, FUSED, info.fused_ulps, functools.partial(difference_from_fused, info)


def verify_here(console: Console) -> List[Result]:
    """Compare with the instruction set that this process has chosen."""
    results = []
    name = _native.instruction_set
    with console.status(f"{name}: ") as status:
        for info, against, allowed, difference in comparisons():
            status.update(f"{name}: {info}, {against}")
            results.append(Result(str(info), against, name, allowed, difference()))
    return results


def verify_in_another_process(instruction_set: str) -> List[Result]:
    """Compare with another instruction set: a process chooses one for good."""
    command = [sys.executable, "-m", "mxadamax", "verify", "--json"]
    done = subprocess.run(
        [*command, "--instruction-set", instruction_set],
        env={**os.environ, "MXADAMAX_INSTRUCTION_SET": instruction_set},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        found = json.loads(done.stdout)["results"]
    except (KeyError, ValueError):
        # Where the import fails, what comes is a report of that.
        raise ChildProcessError(
            f"verifying {instruction_set} ended with exit status {done.returncode}"
        ) from None
    return [Result(**{k: v for k, v in result.items() if k != "passed"}) for result in found]


def cell(result: Optional[Result]) -> str:
    """What a table says of a comparison."""
    if result is None:
        return ""
    if result.found == 0:
        return "[green]same bits[/]"
    if result.passed:
        return f"[green]{result.found:.2g} ULP[/]"
    return f"[bold red]FAIL {result.found:.4g} ULP[/]"


def table_of(results: Sequence[Result]) -> Table:
    """The comparisons of one instruction set, an optimizer in each row."""
    table = Table(title=f"{results[0].instruction_set}", title_justify="left")
    columns = list(dict.fromkeys(result.against for result in results))
    for column in ("optimizer", *columns):
        # On a narrow terminal names are broken, not cut short.
        table.add_column(column, overflow="fold")
    for optimizer in dict.fromkeys(result.optimizer for result in results):
        row = {result.against: result for result in results if result.optimizer == optimizer}
        table.add_row(optimizer, *(cell(row.get(column)) for column in columns))
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.description = (
        "Compare every optimizer with the installed MXNet, with every type of weights and every "
        "instruction set of this processor: the same bits where that is promised, else the largest "
        "difference in units in the last place (ULP). Exit status 1 where one is larger than "
        "promised."
    )
    parser.add_argument(
        "--instruction-set",
        choices=_native.instruction_sets,
        metavar="NAME",
        help=f"only this one, of {', '.join(_native.instruction_sets)}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(given: argparse.Namespace) -> int:
    """Compare, and print what came out; 1 where something is not as promised."""
    began = time.perf_counter()
    # Not to the standard output: JSON may go there.
    console = Console(stderr=True)
    results: List[Result] = []
    sets = [given.instruction_set] if given.instruction_set else _native.instruction_sets
    for name in sets:
        if name == _native.instruction_set:
            results += verify_here(console)
        else:
            with console.status(f"{name}, in a process of its own"):
                results += verify_in_another_process(name)
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
