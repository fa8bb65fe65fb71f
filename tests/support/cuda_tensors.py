# SPDX-License-Identifier: Apache-2.0
"""Tensors that the kernels for GPUs update, beside the same for the processor's kernels.

Nothing here needs MXNet.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
from bits import assert_same_or_near

from mxadamax import _native, _native_testing

SCALARS = {
    "rescale_grad": 0.37,
    "clip_gradient": 0.5,
    "wd": 0.013,
    "decay_factor": 0.999,
    "lr": 0.0123,
    "beta1": 0.9,
    "one_minus_beta1": 1 - 0.9,
    "beta2": 0.999,
    "one_minus_beta2": 1 - 0.999,
    "rho": 0.95,
    "one_minus_rho": 1 - 0.95,
    "momentum": 0.9,
    "wd_lh": 0.3,
    "grad_scale": 0.37,
    "d_factor": 3.0,
    "double_correction1": 0.2,
    "double_correction2": 0.3,
    "lamda1": 0.1,
    "lamda": 0.4,
    "half_lr": 0.05,
    "beta": 1.0,
    "epsilon": 1e-3,
    "clip_weights": 2.5,
    "one_minus_momentum": 0.1,
    "next_momentum": 0.92,
    "grad_divisor": 0.3,
    "m_divisor": 0.2,
    "v_divisor": 0.003,
    "correction1": 0.3,
    "correction2": 0.2,
    "weight_decay": 0.03,
    "eta": 0.4,
    "adapts": 1.0,
    "direction_bound": 0.1,
    "lower_bound": 1.0,
    "upper_bound": 40.0,
    "ema_weight": 0.25,
    "step": 3,
    "rng_stream": 0,
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


def on_the_host(native: Any) -> Kernels:
    """Kernels that are compiled for the host."""

    def aligned(raw: np.ndarray) -> tuple[Any, int]:
        area = np.empty(raw.size + 256, np.uint8)
        start = -area.ctypes.data % 256
        area[start : start + raw.size] = raw
        return area[start : start + raw.size], area.ctypes.data + start

    return Kernels(native, aligned, lambda held: held)


class Rows(NamedTuple):
    """The rows that a gradient holds, of so many elements each."""

    numbers: np.ndarray
    length: int
    lazy: bool


STATE_DTYPES = {
    "float16": [np.uint16] * 4,
    "bfloat16": [np.uint16] * 4,
    "int8": [np.int8] * 4,
}
"""What low-precision states are arrays of."""


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
        state_dtype: str = "",
    ):
        self.rule = rule
        self.dtype, self.size, self.rows, self.state_dtype = dtype, size, rows, state_dtype
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
            if state_dtype:
                self.arrays[f"state {k}"] = np.zeros(size, STATE_DTYPES[state_dtype][k])
        if state_dtype == "int8":
            self.arrays["scales"] = np.zeros(-(-size // 64) * len(states), np.float32)
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
        return _native_testing.encode(np.ascontiguousarray(numbers), self.dtype, "baseline")

    def read(self, array: np.ndarray, dtype: str = "") -> np.ndarray:
        """What is stored, of this dtype or another, as numbers that are computed with."""
        if array.dtype != np.uint16:
            return np.array(array)
        return _native_testing.decode(array, dtype or self.dtype, "baseline")

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
        held = slice(None)
        if self.rows is not None and self.rows.lazy and _native.rules[rule].sums:
            # Sums are over the rows that are updated.
            elements = np.arange(self.size).reshape(-1, self.rows.length)
            held = elements[self.rows.numbers].ravel()
        low_precision: dict[str, Any] = {}
        if self.state_dtype:
            states = [np.array(arrays[name]) for name in names]
            low_precision = {"state_dtype": self.state_dtype}
            if self.state_dtype == "int8":
                low_precision["scales"] = [arrays["scales"]]
        else:
            states = [self.read(arrays[name]) for name in names]
        updated_states = [np.ascontiguousarray(state[held]) for state in states]
        updated_weight = np.ascontiguousarray(weight[held])
        _native_testing.update_numpy(
            *(
                rule,
                [updated_weight],
                [np.ascontiguousarray(grad[held])],
                [updated_states],
                scalars,
            ),
            instruction_set="baseline",
            threads=1,
            **low_precision,
        )
        weight[held] = updated_weight
        for state, new in zip(states, updated_states):
            state[held] = new
        arrays["weight"] = self.stored(weight)
        for name, state in zip(names, states):
            is_stored = self.state_dtype or updated == "master"
            arrays[name] = state if is_stored else self.stored(state)
        if updated == "master":
            arrays["master"] = weight
        if "average" in arrays:
            share, kind = scalars["ema_weight"], weight.dtype.type
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
            if other[name].dtype == array.dtype and other[name].tobytes() == array.tobytes():
                continue
            is_state = self.state_dtype and name.startswith("state")
            depends_on_norm = is_state and self.rule.startswith(("lans", "lars"))
            if depends_on_norm:
                # The last digits of a norm decide how some are rounded. The next step begins with
                # the same states.
                self.arrays[name] = other[name].copy()
                if self.state_dtype == "int8":
                    off = abs(other[name].astype(int) - array.astype(int))
                    assert np.max(off, initial=0) <= 1, f"{where}, {self.dtype}, {name}"
                    continue
            if name == "rows" or (is_state and self.state_dtype == "int8"):
                assert np.array_equal(other[name], array), f"{where}, {self.dtype}, {name}"
                continue
            # Numbers, not their bits as they are stored: processors and GPUs make other NaNs.
            dtype = self.state_dtype if is_state else self.dtype
            found, wanted = (self.read(x, dtype) for x in (other[name], array))
            label = f"{where}, {self.dtype}, {name}"
            if depends_on_norm and self.dtype == "float32":
                np.testing.assert_allclose(found, wanted, 0.01, 1e-5, err_msg=label)
                assert np.count_nonzero(found != wanted) <= 1 + 0.01 * self.size, label
                continue
            assert_same_or_near(found, wanted, self.rule, self.dtype, label)


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
        self.integers = kernels.native.integer_scalars
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
                    (tensor.state_dtype, at.get("scales", 0)) if tensor.state_dtype else None,
                )
            )
        self.array_names = [list(tensor.arrays) for tensor in tensors]
        self.batch = kernels.native.LaunchPlan(rule, entries, 0)

    def update(
        self,
        scalars: Sequence[dict[str, float]],
        clip_global_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        """Update once, with scalars for each tensor."""
        rows = [self.slot(name, own[name]) for own in scalars for name in self.names]
        self.batch.update(rows, clip_global_norm, skip_nonfinite, 0)

    def slot(self, name: str, value: float) -> float:
        """What stands for a scalar in a row: of an integer, its bits."""
        return float(np.uint64(value).view(np.float64)) if name in self.integers else value

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """What is on the device now, for each tensor."""
        self.batch.report()
        flat = iter(self.arena.download())
        return [{name: next(flat) for name in names} for names in self.array_names]


def scalars_of(rule: str, names: Sequence[str], tensor: int = 0, step: int = 0) -> dict[str, float]:
    """Scalars that differ from tensor to tensor and from step to step."""
    found = {name: SCALARS[name] for name in names}
    rate = next(name for name in ("lr", "d_factor", "half_lr", "rho") if name in found)
    found[rate] *= 1 + tensor % 7 + 0.1 * step
    found["step"], found["rng_stream"] = 1 + step, 1000 * tensor
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
            tensor.compare(found, f"tensor {i} of {tensor.size}, step {step}")


def sums_of_chunks(tensors: Sequence[Tensor], in_parts: bool = True) -> list[float]:
    """The sums of squares of all gradients, in the order of the processor's kernels.

    Written down from csrc/common/chunks.h and csrc/common/dtype.h: tensors take multiples of 64 places; chunks are
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
