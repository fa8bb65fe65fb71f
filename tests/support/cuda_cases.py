# SPDX-License-Identifier: Apache-2.0
"""What the kernels for GPUs must do, wherever they run: on a GPU, or compiled for the host.

Nothing here needs MXNet. What the kernels are compared with is the processor's kernels.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np
import pytest
from bits import SPECIAL
from cuda_tensors import (
    ITEM_SIZES,
    STATE_DTYPES,
    VARIANTS,
    Device,
    Kernels,
    Rows,
    Tensor,
    compare,
    norm_of,
    scalars_of,
    sums_of_chunks,
)

from mxadamax import _native

rules = pytest.mark.parametrize("rule", list(_native.rules))
variants = pytest.mark.parametrize(("dtype", "master"), VARIANTS)
# Every rule in two variants, one rule in all: loads and stores do not know the rule.
MANY = [(rule, *v) for rule in _native.rules for v in (("float32", False), ("float16", True))]
MANY += [("adamax", *v) for v in VARIANTS if ("adamax", *v) not in MANY]
many = pytest.mark.parametrize(("rule", "dtype", "master"), MANY)

IN_LOW_PRECISION = [
    (name, state_dtype)
    for name, rule in _native.rules.items()
    for state_dtype in STATE_DTYPES
    if (rule.supports_int8_state if state_dtype == "int8" else rule.supports_low_precision_state)
]

# Parts are 4096 long, chunks of sums 16384 places.
MANY_SIZES = (
    [0, 4096, 0, 1, 4095, 64, 0, 63, 65, 0, 0]
    + [3 * 16384 + 5, 16320, 4097, 8192, 1, 1, 1]
    + list(range(200))
    + [50003, 0]
)


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


# How many rows a weight has, and of how many elements.
TABLES = ((50, 7), (40, 1), (1, 1), (3, 5000), (9000, 1), (5, 4096), (300, 64), (7, 4097))


def tables(
    rule: str, dtype: str, master: bool, first_lazy: bool, state_dtype: str = ""
) -> list[Tensor]:
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
        # Random bits depend on places, sums on the rows that are there: not both in one comparison.
        can_be_lazy = not (state_dtype and _native.rules[rule].sums)
        rows = Rows(numbers, length, can_be_lazy and (k + kind) % 2 != first_lazy)
        average = k % 3 == 0
        few = {"state_dtype": state_dtype}
        size = total * length
        tensors.append(Tensor(rule, size, dtype, master, average, seed=k, rows=rows, **few))
        tensors.append(Tensor(rule, 10 * k, dtype, master, not average, seed=k, **few))
    return tensors


WRONG_ROWS = (
    ([3, 60], "names row 60 of 50"),
    ([-1, 2], "names row -1 of 50"),
    ([5, 5], "names row 5 not in ascending order, once each"),
    ([7, 2], "names row 2 not in ascending order, once each"),
    ([49, 50], "names row 50 of 50"),
    ([1 << 40], f"names row {1 << 40} of 50"),
)


class OnEveryDevice:
    """Tests for a module with a fixture `kernels`."""

    @many
    def test_every_length_at_every_misalignment(
        self, kernels: Kernels, rule: str, dtype: str, master: bool
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

    @many
    def test_many_tensors(self, kernels: Kernels, rule: str, dtype: str, master: bool) -> None:
        """Parts of many tensors and tensors of many parts, for three steps with scalars of their own."""
        tensors = [
            Tensor(rule, size, dtype, master, average=k % 3 == 0, seed=k)
            for k, size in enumerate(MANY_SIZES)
        ]
        compare(kernels, rule, tensors, lambda tensor, _: tensor % 3, steps=3)

    @rules
    def test_all_dtypes_at_once(self, kernels: Kernels, rule: str) -> None:
        """Tensors of every dtype, with and without a master, in one batch."""
        tensors = [
            Tensor(rule, 100 * k, *VARIANTS[k % len(VARIANTS)], average=k % 5 == 0, seed=k)
            for k in range(40)
        ]
        compare(kernels, rule, tensors, steps=2)

    @many
    def test_special_values(self, kernels: Kernels, rule: str, dtype: str, master: bool) -> None:
        """Every combination of numbers that are special in weight, gradient and states."""
        few = np.array([*SPECIAL, 1e30, -1.0, 6e-8])
        columns = 2 + _native.rules[rule].states
        values = [np.ascontiguousarray(x.ravel()) for x in np.meshgrid(*[few] * columns)]
        compare(
            kernels,
            rule,
            [Tensor(rule, values[0].size, dtype, master, average=True, seed=0, values=values)],
        )

    @pytest.mark.parametrize(("rule", "state_dtype"), IN_LOW_PRECISION)
    def test_low_precision_states(self, kernels: Kernels, rule: str, state_dtype: str) -> None:
        """Rounded by the same random bits, whatever the weight is; at every misalignment."""
        kinds = [variant for variant in VARIANTS if variant[0] != "float64"]
        tensors = [
            Tensor(
                *(rule, size, *kinds[k % len(kinds)]),
                average=k % 3 == 0,
                seed=k,
                state_dtype=state_dtype if k % 7 else "",
            )
            for k, size in enumerate(MANY_SIZES)
        ]
        compare(kernels, rule, tensors, lambda tensor, array: (tensor + array) % 3, steps=3)

    @pytest.mark.parametrize(("rule", "state_dtype"), IN_LOW_PRECISION)
    def test_special_values_with_low_precision_states(
        self, kernels: Kernels, rule: str, state_dtype: str
    ) -> None:
        """Gradients of all magnitudes, alike in a block or not; some are not finite."""
        rng = np.random.RandomState(7)
        blocks = 120
        magnitudes = np.repeat(10.0 ** rng.uniform(-44, 38, blocks), 64)
        magnitudes[: 64 * blocks // 2] = 10.0 ** rng.uniform(-44, 38, 64 * blocks // 2)
        values = rng.standard_normal((8, magnitudes.size)) * magnitudes
        values[:2, ::970] = rng.choice(SPECIAL, (2, len(values[0, ::970])))
        with np.errstate(over="ignore"):
            values = [x.astype(np.float32) for x in values]
        tensor = Tensor(
            *(rule, magnitudes.size, "float32", False, True, 0),
            values=values,
            state_dtype=state_dtype,
        )
        device = Device(kernels, rule, [tensor])
        for step in range(4):
            # Nothing that would bring the gradients to one magnitude.
            scalars = {**scalars_of(rule, device.names, 0, step), "clip_gradient": np.inf, "wd": -1}
            device.update([scalars])
            tensor.update(rule, scalars)
            tensor.compare(device.arrays()[0], f"step {step}")

    @pytest.mark.parametrize("rule", _native.rules)
    @pytest.mark.parametrize("state_dtype", ["float16", "bfloat16"])
    def test_rows_with_low_precision_states(
        self, kernels: Kernels, rule: str, state_dtype: str
    ) -> None:
        """Random bits go by the place in the weight."""
        if (rule, state_dtype) not in IN_LOW_PRECISION:
            pytest.skip("the rule does not keep its states so")
        tensors = tables(rule, "float16", True, first_lazy=True, state_dtype=state_dtype)
        compare(kernels, rule, tensors, steps=2)

    def test_what_is_not_kept_in_low_precision(self, kernels: Kernels) -> None:
        """Refused, before anything is there to be written."""
        rows = Rows(np.arange(2), 7, False)
        for rule, dtype, held, state_dtype, message in (
            ("adam", "float64", None, "float16", "weight is float64, whose states are not kept"),
            ("adam", "float32", rows, "int8", "gradient holds some rows, expected all with"),
            ("sgd", "float32", None, "int8", "the states of rule sgd are not kept in 8 bits"),
            ("rmsprop_centered", "float32", None, "float16", "are not kept in low precision"),
        ):
            tensor = Tensor(rule, 21, dtype, False, False, seed=1, rows=held)
            tensor.state_dtype = state_dtype
            try:
                Device(kernels, rule, [Tensor(rule, 3, "float32", False, False, 0), tensor])
            except kernels.native.TensorError as error:
                assert "tensor 1: " in str(error)
                assert message in str(error)
            else:
                raise AssertionError(f"{rule}, {dtype}, {state_dtype} was taken")

    @pytest.mark.parametrize("kinds", [*([variant] for variant in VARIANTS), VARIANTS], ids=str)
    def test_global_norm(self, kernels: Kernels, kinds: Sequence[tuple[str, bool]]) -> None:
        """The norm to the last bit; a bound below it shrinks all gradients, one above it none."""
        tensors = tensors_to_sum(kinds)
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

    @pytest.mark.parametrize("dtype", ITEM_SIZES)
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("at", [0, 999])
    def test_skipping(self, kernels: Kernels, bad: float, at: int, dtype: str) -> None:
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

    @many
    def test_some_rows(self, kernels: Kernels, rule: str, dtype: str, master: bool) -> None:
        """Rows that gradients hold, and those that they do not."""
        tensors = tables(rule, dtype, master, first_lazy=True)
        compare(kernels, rule, tensors, lambda i, k: (i + k) % 3)

    @variants
    def test_some_rows_the_other_way(self, kernels: Kernels, dtype: str, master: bool) -> None:
        """Lazy where the test before is not."""
        tensors = tables("adamax", dtype, master, first_lazy=False)
        compare(kernels, "adamax", tensors, lambda i, k: (i + k) % 2, steps=2)

    @pytest.mark.parametrize("lazy", [False, True])
    def test_no_rows_at_all(self, kernels: Kernels, lazy: bool) -> None:
        """Of a tensor by itself: then nothing else makes room for what belongs to it."""
        for dtype, master in VARIANTS:
            rows = Rows(np.arange(0), 5, lazy)
            compare(kernels, "adam", [Tensor("adam", 20, dtype, master, True, 0, rows=rows)])

    @variants
    def test_norm_of_rows(self, kernels: Kernels, dtype: str, master: bool) -> None:
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

    @pytest.mark.parametrize(("numbers", "message"), WRONG_ROWS)
    @pytest.mark.parametrize("lazy", [False, True])
    def test_wrong_rows(
        self, kernels: Kernels, numbers: Sequence[int], message: str, lazy: bool
    ) -> None:
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

    def test_a_wrong_row_among_many(self, kernels: Kernels) -> None:
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
