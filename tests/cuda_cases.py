# SPDX-License-Identifier: Apache-2.0
"""What the kernels for GPUs must do, wherever they run: on a GPU, or compiled for the host.

Nothing here needs MXNet. What the kernels are compared with is the processor's kernels.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
from bits import SPECIAL, assert_same_bits

if importlib.util.find_spec("mxnet") is None:
    # Importing the package takes MXNet; what is used of it here does not.
    package = types.ModuleType("mxadamax")
    package.__path__ = [str(Path(__file__).resolve().parents[1] / "mxadamax")]
    sys.modules.setdefault("mxadamax", package)

from mxadamax import _native

SCALARS = {
    "rescale_grad": 0.37,
    "clip_gradient": 0.5,
    "wd": 0.013,
    "keep": 0.999,
    "lr": 0.0123,
    "beta1": 0.9,
    "one_minus_beta1": 1 - 0.9,
    "beta2": 0.999,
    "one_minus_beta2": 1 - 0.999,
    "rho": 0.95,
    "one_minus_rho": 1 - 0.95,
    "momentum": 0.9,
    "epsilon": 1e-3,
    "clip_weights": 2.5,
    "one_minus_momentum": 0.1,
    "next_momentum": 0.92,
    "grad_divisor": 0.3,
    "m_divisor": 0.2,
    "v_divisor": 0.003,
    "average_share": 0.25,
    "update": 3.0,
    "stream": 0.0,
}
"""A value for every scalar that any rule has."""

ITEM_SIZES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
VARIANTS = [(dtype, False) for dtype in ITEM_SIZES] + [("float16", True), ("bfloat16", True)]
"""Dtypes of the weight, and whether it has a master."""


class Kernels(NamedTuple):
    """A module of kernels, and the way of bytes to its device and back."""

    native: Any
    upload: Callable[[np.ndarray], tuple[Any, int]]
    """Returns what holds the copy, and its address, which is a multiple of 256."""
    download: Callable[[Any], np.ndarray]


class Rows(NamedTuple):
    """The rows that a gradient holds, of so many elements each."""

    numbers: np.ndarray
    length: int
    lazy: bool


class Tensor:
    """One tensor as NumPy arrays: 16-bit numbers as their bits, all else as what it is."""

    def __init__(
        self,
        rule: str,
        size: int,
        dtype: str,
        master: bool,
        average: bool,
        seed: int,
        values: Sequence[np.ndarray] | None = None,
        rows: Rows | None = None,
    ):
        self.dtype, self.size, self.rows = dtype, size, rows
        computed = "float64" if dtype == "float64" else "float32"
        if values is None:
            values = np.random.RandomState(seed).standard_normal((8, size))
            # States like second moments.
            values[2:6] = np.abs(values[2:6])
        with np.errstate(over="ignore"):
            w, g, *states = (np.asarray(x, computed) for x in values)
        states = states[: _native.rules[rule].states]
        stored = self.stored
        self.arrays: dict[str, np.ndarray] = {"grad": stored(g), "weight": stored(w)}
        if master:
            self.arrays["master"] = w
        for k, state in enumerate(states):
            self.arrays[f"state {k}"] = state if master else stored(state)
        if average:
            self.arrays["average"] = np.asarray(w * 0.5, computed)
        if rows is not None:
            held = self.arrays["grad"].reshape(-1, rows.length)[rows.numbers]
            self.arrays["grad"] = np.ascontiguousarray(held).ravel()
            self.arrays["rows"] = rows.numbers

    def stored(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers as an array of this dtype holds them."""
        if self.dtype not in ("float16", "bfloat16"):
            return np.array(numbers)
        return _native.encode(np.ascontiguousarray(numbers), self.dtype, "baseline")

    def read(self, array: np.ndarray) -> np.ndarray:
        """What is stored, as numbers that are computed with."""
        if array.dtype != np.uint16:
            return np.array(array)
        return _native.decode(array, self.dtype, "baseline")

    def update(self, rule: str, scalars: dict[str, float]) -> None:
        """Update by the processor's kernel."""
        arrays = self.arrays
        updated = "master" if "master" in arrays else "weight"
        names = [name for name in arrays if name.startswith("state")]
        weight, grad = self.read(arrays[updated]), self.read(arrays["grad"])
        before = {name: np.array(array) for name, array in arrays.items()}
        if self.rows is not None:
            whole = np.zeros((self.size // self.rows.length, self.rows.length), grad.dtype)
            whole[self.rows.numbers] = grad.reshape(-1, self.rows.length)
            grad = whole.ravel()
        states = [self.read(arrays[name]) for name in names]
        _native.update_numpy(
            rule, [weight], [grad], [states], scalars, instruction_set="baseline", threads=1
        )
        arrays["weight"] = self.stored(weight)
        for name, state in zip(names, states):
            arrays[name] = state if updated == "master" else self.stored(state)
        if updated == "master":
            arrays["master"] = weight
        if "average" in arrays:
            share, kind = scalars["average_share"], weight.dtype.type
            with np.errstate(all="ignore"):
                arrays["average"] = kind(1 - share) * arrays["average"] + kind(share) * weight
        if self.rows is not None and self.rows.lazy:
            left = np.setdiff1d(np.arange(self.size // self.rows.length), self.rows.numbers)
            for name in arrays.keys() - {"grad", "rows"}:
                now, then = (a.reshape(-1, self.rows.length) for a in (arrays[name], before[name]))
                now[left] = then[left]

    def compare(self, other: dict[str, np.ndarray], where: str) -> None:
        """Fail unless arrays of another have the same bits."""
        for name, array in self.arrays.items():
            if name == "rows":
                assert np.array_equal(other[name], array)
                continue
            assert_same_bits(
                self.read(other[name]), self.read(array), f"{where}, {self.dtype}, {name}"
            )


class Arena:
    """All arrays of a test in one piece of memory, each at a place of its choice, with gaps."""

    def __init__(self, kernels: Kernels):
        self.kernels = kernels
        self.places: list[tuple[int, np.ndarray]] = []
        self.end = 256

    def place(self, array: np.ndarray, misalignment: int = 0) -> int:
        """Put an array so many elements behind a boundary of 64 bytes, and return its offset."""
        offset = -(-self.end // 64) * 64 + misalignment * array.itemsize
        self.places.append((offset, array))
        self.end = offset + array.nbytes + 32
        return offset

    def upload(self) -> int:
        """Bring all to the device, and return the address of the whole."""
        self.before = np.random.RandomState(0).randint(0, 256, self.end + 64).astype(np.uint8)
        self.is_gap = np.ones(self.before.size, bool)
        for offset, array in self.places:
            self.before[offset : offset + array.nbytes] = array.view(np.uint8)
            self.is_gap[offset : offset + array.nbytes] = False
        self.held, address = self.kernels.upload(self.before)
        return address

    def download(self) -> list[np.ndarray]:
        """The arrays in the order in which they were placed; checks that the gaps are as before."""
        after = self.kernels.download(self.held)
        assert np.array_equal(after[self.is_gap], self.before[self.is_gap]), "written beside arrays"
        return [
            after[offset : offset + array.nbytes].view(array.dtype) for offset, array in self.places
        ]


class Device:
    """Tensors on the device, made into a batch."""

    def __init__(
        self,
        kernels: Kernels,
        rule: str,
        tensors: Sequence[Tensor],
        misalignments: Callable[[int, int], int] = lambda tensor, array: 0,
    ):
        self.rule = rule
        self.arena = Arena(kernels)
        self.states, self.names = kernels.native.rules[rule]
        offsets = []
        for i, tensor in enumerate(tensors):
            offsets.append(
                {
                    name: self.arena.place(array, misalignments(i, k))
                    for k, (name, array) in enumerate(tensor.arrays.items())
                }
            )
        base = self.arena.upload()
        entries = []
        for tensor, places in zip(tensors, offsets):
            at = {name: base + offset for name, offset in places.items()}
            entries.append(
                (
                    tensor.dtype,
                    tensor.size,
                    at["grad"],
                    at["weight"],
                    [at[f"state {k}"] for k in range(self.states)],
                    at.get("master", 0),
                    at.get("average", 0),
                    tensor.rows and (at["rows"], tensor.rows.numbers.size, *tensor.rows[1:]),
                )
            )
        self.array_names = [list(tensor.arrays) for tensor in tensors]
        self.batch = kernels.native.Batch(rule, entries, 0)

    def update(
        self,
        scalars: Sequence[dict[str, float]],
        clip_global_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        """Update once, with scalars for each tensor."""
        rows = [own[name] for own in scalars for name in self.names]
        self.batch.update(rows, clip_global_norm, skip_nonfinite, 0)

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """What is on the device now, for each tensor."""
        self.batch.report()
        flat = iter(self.arena.download())
        return [{name: next(flat) for name in names} for names in self.array_names]


def scalars_of(rule: str, names: Sequence[str], tensor: int = 0, step: int = 0) -> dict[str, float]:
    """Scalars that differ from tensor to tensor and from step to step."""
    found = {name: SCALARS[name] for name in names}
    found["lr"] *= 1 + tensor % 7 + 0.1 * step
    found["wd"] = (-1.0, 0.0, 0.013)[tensor % 3]
    return found


def compare(
    kernels: Kernels,
    rule: str,
    tensors: Sequence[Tensor],
    misalignments: Callable[[int, int], int] = lambda tensor, array: 0,
    steps: int = 1,
) -> None:
    """Update on the device and by the processor's kernels, and fail unless all bits are the same."""
    device = Device(kernels, rule, tensors, misalignments)
    for step in range(steps):
        scalars = [scalars_of(rule, device.names, i, step) for i in range(len(tensors))]
        device.update(scalars)
        for tensor, own in zip(tensors, scalars):
            tensor.update(rule, own)
    for i, (tensor, found) in enumerate(zip(tensors, device.arrays())):
        tensor.compare(found, f"tensor {i} of {tensor.size}")


def every_length_at_every_misalignment(
    kernels: Kernels, rule: str, dtype: str, master: bool
) -> None:
    """Lengths of up to three vectors; all arrays shifted alike, and each otherwise."""
    at_once = 16 // ITEM_SIZES[dtype]
    cases = [
        (length, shift, alike)
        for length in range(3 * at_once + 2)
        for shift in range(at_once)
        for alike in (True, False)
    ]
    tensors = [
        Tensor(rule, length, dtype, master, average=k % 2 == 0, seed=k)
        for k, (length, _, _) in enumerate(cases)
    ]

    def misalignment(tensor: int, array: int) -> int:
        _, shift, alike = cases[tensor]
        return shift if alike else (shift * (array + 1) + array) % at_once

    compare(kernels, rule, tensors, misalignment)


# Parts are 4096 long, chunks of sums 16384 places.
MANY_SIZES = (
    [0, 4096, 0, 1, 4095, 64, 0, 63, 65, 0, 0]
    + [3 * 16384 + 5, 16320, 4097, 8192, 1, 1, 1]
    + list(range(200))
    + [50003, 0]
)


def many_tensors(kernels: Kernels, rule: str, dtype: str, master: bool) -> None:
    """Parts of many tensors and tensors of many parts, for three steps with scalars of their own."""
    tensors = [
        Tensor(rule, size, dtype, master, average=k % 3 == 0, seed=k)
        for k, size in enumerate(MANY_SIZES)
    ]
    compare(kernels, rule, tensors, lambda tensor, _: tensor % 3, steps=3)


def all_dtypes_at_once(kernels: Kernels, rule: str) -> None:
    """Tensors of every dtype, with and without a master, in one batch."""
    tensors = [
        Tensor(rule, 100 * k, *VARIANTS[k % len(VARIANTS)], average=k % 5 == 0, seed=k)
        for k in range(40)
    ]
    compare(kernels, rule, tensors, steps=2)


def special_values(kernels: Kernels, rule: str, dtype: str, master: bool) -> None:
    """Every combination of numbers that are special in weight, gradient and states."""
    few = np.array([*SPECIAL, 1e30, -1.0, 6e-8])
    columns = 2 + _native.rules[rule].states
    values = [np.ascontiguousarray(x.ravel()) for x in np.meshgrid(*[few] * columns)]
    compare(
        kernels,
        rule,
        [Tensor(rule, values[0].size, dtype, master, average=True, seed=0, values=values)],
    )


def sums_of_chunks(tensors: Sequence[Tensor], in_parts: bool = True) -> list[float]:
    """The sums of squares of all gradients, in the order of the processor's kernels.

    Written down from csrc/chunks.h and csrc/layout.h: tensors take multiples of 64 places; chunks are
    16384 places; within a part of a chunk 16 lanes, added in pairs; of 16-bit numbers 512 at a time,
    which make a sum of the part before that goes into the chunk's, if `in_parts`.
    """

    def in_lanes(numbers: np.ndarray) -> float:
        padded = np.zeros(-(-numbers.size // 16) * 16)
        padded[: numbers.size] = numbers
        # One by one, unlike sum().
        lanes = np.cumsum(np.square(padded).reshape(-1, 16), axis=0)[-1]
        for half in (8, 4, 2, 1):
            lanes = lanes[:half] + lanes[half : 2 * half]
        return float(lanes[0])

    chunks: dict[int, float] = {}
    place = 0
    for tensor in tensors:
        grad = tensor.read(tensor.arrays["grad"]).astype(np.float64)
        begin = 0
        while begin < grad.size:
            chunk = (place + begin) // 16384
            end = min(grad.size, (chunk + 1) * 16384 - place)
            length = 512 if ITEM_SIZES[tensor.dtype] == 2 else 16384
            found = [in_lanes(grad[k : min(k + length, end)]) for k in range(begin, end, length)]
            before = chunks.get(chunk, 0.0)
            chunks[chunk] = before + one_by_one(found) if in_parts else one_by_one(found, before)
            begin = end
        place += -(-grad.size // 64) * 64
    return list(chunks.values())


def one_by_one(numbers: Sequence[float], total: float = 0.0) -> float:
    """The sum, rounded after each number; Python's own is more exact from 3.12 on."""
    for number in numbers:
        total += number
    return total


def norm_of(sums: Sequence[float]) -> float:
    """The root of the sum of all."""
    return float(np.sqrt(one_by_one(sums)))


def tensors_to_sum(variants: Sequence[tuple[str, bool]]) -> list[Tensor]:
    """Tensors of whose gradients each order of summing gives another norm.

    But for float16: squares of so few digits are summed without any rounding.
    """
    tensors = [
        Tensor("adamax", size, *variants[k % len(variants)], average=False, seed=k)
        for k, size in enumerate(SUMMED_SIZES)
    ]
    grads = [tensor.read(tensor.arrays["grad"]) for tensor in tensors]
    for seed in range(100):
        rng = np.random.RandomState(seed)
        for tensor, grad in zip(tensors, grads):
            magnitudes = (10.0 ** rng.uniform(-4, 4, grad.size)).astype(grad.dtype)
            tensor.arrays["grad"] = tensor.stored(grad * magnitudes)
        sums = sums_of_chunks(tensors)
        others = [[*sums[15::-1], *sums[16:]], sums[::-1]]
        if any(ITEM_SIZES[dtype] == 2 for dtype, _ in variants):
            others.append(sums_of_chunks(tensors, in_parts=False))
        is_exact = all(dtype == "float16" for dtype, _ in variants)
        if is_exact or norm_of(sums) not in [norm_of(other) for other in others]:
            return tensors
    raise AssertionError("any order gives the same norm")


# More than 16 chunks, which are as many as are asked for at a time.
SUMMED_SIZES = (0, 3, 64, 0, 511, 512, 513, 16384 - 1200, 40000, 17, 18 * 16384 + 5, 40000, 1)


def global_norm(kernels: Kernels, variants: Sequence[tuple[str, bool]]) -> None:
    """The norm to the last bit; a bound below it shrinks all gradients, one above it none."""
    tensors = tensors_to_sum(variants)
    names = kernels.native.rules["adamax"][1]
    scalars = [scalars_of("adamax", names, i) for i in range(len(tensors))]
    norm = scalars[0]["rescale_grad"] * norm_of(sums_of_chunks(tensors))
    device = Device(kernels, "adamax", tensors, lambda tensor, _: tensor % 2)
    assert np.isnan(device.batch.report()[0])
    for bound in (2 * norm, norm, norm / 3):
        device.update(scalars, clip_global_norm=bound)
        assert device.batch.report() == (norm, 0)
        factor = 1.0 if norm <= bound else bound / norm
        for tensor, own in zip(tensors, scalars):
            tensor.update("adamax", {**own, "rescale_grad": own["rescale_grad"] * factor})
        for i, (tensor, found) in enumerate(zip(tensors, device.arrays())):
            tensor.compare(found, f"bound {bound}, tensor {i}")


def skipping(kernels: Kernels, bad: float, at: int, dtype: str) -> None:
    """A gradient that is not finite leaves all as it is, once; without the option it goes through."""
    for skip, bound in ((True, None), (True, 0.5), (False, 0.5)):
        tensors = [
            Tensor("adam", 1000, kind, False, True, seed=k)
            for k, kind in enumerate(("float32", dtype, "float64"))
        ]
        grad = tensors[1].read(tensors[1].arrays["grad"])
        grad[at] = bad
        tensors[1].arrays["grad"] = tensors[1].stored(grad)
        names = kernels.native.rules["adam"][1]
        scalars = [scalars_of("adam", names, i) for i in range(len(tensors))]
        device = Device(kernels, "adam", tensors)
        for _ in range(2):
            device.update(scalars, clip_global_norm=bound, skip_nonfinite=skip)
        norm, skipped = device.batch.report()
        assert not np.isfinite(norm)
        assert skipped == (2 if skip else 0)
        if not skip:
            factor = 1.0 if norm <= bound else bound / norm
            for tensor, own in zip(tensors * 2, scalars * 2):
                tensor.update("adam", {**own, "rescale_grad": own["rescale_grad"] * factor})
        for i, (tensor, found) in enumerate(zip(tensors, device.arrays())):
            tensor.compare(found, f"tensor {i}, skip {skip}, bound {bound}")
        # And a step without options does not look.
        device.update(scalars)
        for tensor, own in zip(tensors, scalars):
            tensor.update("adam", own)
        for i, (tensor, found) in enumerate(zip(tensors, device.arrays())):
            tensor.compare(found, f"tensor {i}, after")


# How many rows a weight has, and of how many elements.
TABLES = ((50, 7), (40, 1), (1, 1), (3, 5000), (9000, 1), (5, 4096), (300, 64), (7, 4097))


def tables(rule: str, dtype: str, master: bool, first_lazy: bool) -> list[Tensor]:
    """Weights whose gradients hold no row, all, some, neighbours, and dense ones between them.

    Every other is lazy.
    """
    tensors = []
    for k, (total, length) in enumerate(TABLES * 4):
        rng = np.random.RandomState(k)
        kind = k // len(TABLES)
        if kind < 2:
            numbers = np.arange(total * kind)
        elif kind == 2:
            numbers = np.flatnonzero(rng.rand(total) < 0.4)
        else:
            numbers = np.arange(*sorted(rng.randint(0, total + 1, 2)))
        rows = Rows(numbers, length, (k + kind) % 2 != first_lazy)
        average = k % 3 == 0
        tensors.append(Tensor(rule, total * length, dtype, master, average, seed=k, rows=rows))
        tensors.append(Tensor(rule, 10 * k, dtype, master, not average, seed=k))
    return tensors


def some_rows(
    kernels: Kernels, rule: str, dtype: str, master: bool, first_lazy: bool, steps: int = 1
) -> None:
    """Rows that gradients hold, and those that they do not."""
    tensors = tables(rule, dtype, master, first_lazy)
    compare(kernels, rule, tensors, lambda i, k: (i + k) % 3, steps)


def norm_of_rows(kernels: Kernels, dtype: str, master: bool) -> None:
    """Gradients count as they are, in one piece: the norm to the last bit, and the bound."""
    tensors = tables("adam", dtype, master, first_lazy=True)
    names = kernels.native.rules["adam"][1]
    scalars = [scalars_of("adam", names, i) for i in range(len(tensors))]
    norm = scalars[0]["rescale_grad"] * norm_of(sums_of_chunks(tensors))
    device = Device(kernels, "adam", tensors)
    bound = norm / 3
    device.update(scalars, clip_global_norm=bound, skip_nonfinite=True)
    assert device.batch.report() == (norm, 0)
    # And a step without a bound after it.
    device.update(scalars)
    for factor in (bound / norm, 1.0):
        for tensor, own in zip(tensors, scalars):
            tensor.update("adam", {**own, "rescale_grad": own["rescale_grad"] * factor})
    for i, (tensor, found) in enumerate(zip(tensors, device.arrays())):
        tensor.compare(found, f"tensor {i}")


WRONG_ROWS = (
    ([3, 60], "names row 60 of 50"),
    ([-1, 2], "names row -1 of 50"),
    ([5, 5], "names row 5 not in ascending order, once each"),
    ([7, 2], "names row 2 not in ascending order, once each"),
    ([49, 50], "names row 50 of 50"),
    ([1 << 40], f"names row {1 << 40} of 50"),
)


def wrong_rows(kernels: Kernels, numbers: Sequence[int], message: str, lazy: bool) -> None:
    """A step that names a row which is not there is refused, whole, and the next one as well."""
    rows = Rows(np.arange(len(numbers)), 7, lazy)
    tensors = [
        Tensor("adamax", 100, "float32", False, True, seed=1),
        Tensor("adamax", 50 * 7, "float32", False, True, seed=2, rows=rows),
        Tensor("adamax", 64, "float64", False, False, seed=3),
    ]
    tensors[1].arrays["rows"] = np.array(numbers)
    # Not what is found first.
    tensors[2].arrays["grad"][0] = np.nan
    names = kernels.native.rules["adamax"][1]
    scalars = [scalars_of("adamax", names, i) for i in range(len(tensors))]
    device = Device(kernels, "adamax", tensors)
    for options in ({}, {"clip_global_norm": 1.0, "skip_nonfinite": True}, {}):
        try:
            device.update(scalars, **options)
        except kernels.native.TensorError as error:
            assert str(error) == f"tensor 1: a row_sparse gradient {message}"
        else:
            raise AssertionError("the step was done")
        assert device.batch.report()[1] == 0
        for i, (tensor, found) in enumerate(zip(tensors, device.arrays())):
            tensor.compare(found, f"tensor {i}")


def a_wrong_row_among_many(kernels: Kernels) -> None:
    """Wherever it is."""
    total = 9000
    for place in (0, 1, 255, 256, 4095, 4096, 8191, 8999):
        tensor = Tensor(
            "sgd", total, "float32", False, False, 1, rows=Rows(np.arange(total), 1, True)
        )
        numbers = np.arange(total)
        numbers[place] = total
        tensor.arrays["rows"] = numbers
        device = Device(kernels, "sgd", [tensor])
        try:
            device.update([scalars_of("sgd", device.names)])
        except kernels.native.TensorError as error:
            assert f"names row {total} of {total}" in str(error)
        else:
            raise AssertionError(f"row {place} was not looked at")
