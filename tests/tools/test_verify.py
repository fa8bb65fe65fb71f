# SPDX-License-Identifier: Apache-2.0
"""``mxadamax verify``: it passes here, compares what it should, and notices what is wrong."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from family import CLASSES
from rich.console import Console

import mxadamax
from mxadamax import _native
from mxadamax.__main__ import main
from mxadamax.commands import verify
from mxadamax.dtypes import BFLOAT16

HERE = _native.instruction_set
HALF = np.dtype("float16")


@pytest.fixture
def few(monkeypatch):
    """Some of the optimizers, and small weights."""
    monkeypatch.setattr(
        verify, "OPTIMIZERS", [p for p in verify.OPTIMIZERS if p.name == "adam_ext"]
    )
    monkeypatch.setattr(verify, "LARGE", (5,))
    monkeypatch.setattr(verify, "SHAPES", [(17,), (3, 5), (1000,)])
    verify.data.cache_clear()
    yield
    verify.data.cache_clear()


def verified(capsys, *arguments):
    status = main(["verify", "--json", *arguments])
    results = json.loads(capsys.readouterr().out)["results"]
    return status, {(r["optimizer"], r["against"], r["instruction_set"]): r for r in results}


def test_every_optimizer_passes(capsys, monkeypatch):
    monkeypatch.setattr(verify, "LARGE", (5,))
    verify.data.cache_clear()
    status, results = verified(capsys, "--instruction-set", HERE)
    verify.data.cache_clear()
    assert status == 0
    assert all(result["passed"] for result in results.values())
    for info in verify.OPTIMIZERS:
        for kind in verify.TYPES:
            result = results.pop((str(info), kind.label, HERE))
            assert result["found"] == result["allowed"] == 0
    assert {against for _, against, _ in results} == {verify.ROW_SPARSE}
    assert all(result["found"] == 0 for result in results.values())


def test_compares_every_rule_with_the_built_in_of_its_name():
    """The tests go by this table, too."""
    # Why they have none is said where the table ends.
    apart = {"bertadam_ext", "sgld_ext", "groupadagrad_ext", "lbsgd_ext", "ccsgd_ext"}
    assert {info.name for info in verify.OPTIMIZERS} == {
        c.registered_name for c in CLASSES.values()
    } - apart
    for info in verify.OPTIMIZERS:
        assert info.built_in in (None, info.name[: -len("_ext")])


def test_units_in_the_last_place_of_the_largest():
    def units(actual, expected, before):
        return float(verify.units_apart(*(np.float32([x]) for x in (actual, expected, before)))[0])

    one = np.spacing(np.float32(1))
    assert units(1 + 2 * one, 1, 1) == 2
    # Of what was added, where that is larger than what it led to.
    assert units(0.25, 0.25 + one, 4) == 0.25
    assert units(0.25, 0.25 + one, 0.25) == 4
    assert units(0, 0, 0) == 0
    assert units(np.nan, 1, 1) == np.inf


def test_another_instruction_set():
    """In a process of its own, with all comparisons."""
    other = next((name for name in _native.instruction_sets if name != HERE), None)
    if other is None:
        pytest.skip("this processor has one only")
    results = verify.verify_in_another_process(other)
    assert {result.instruction_set for result in results} == {other}
    assert len(results) > 13 * 6
    assert all(result.passed for result in results)


def test_another_device(few, capsys, monkeypatch):
    """Ours run there, the built-ins on the CPU."""
    seen = set()
    step = verify.Run.step

    def noting(run, grads):
        step(run, grads)
        is_ours = isinstance(run.optimizer, mxadamax.Adam)
        seen.update((is_ours, str(array.context)) for array in run.arrays())

    monkeypatch.setattr(verify.Run, "step", noting)
    status, results = verified(capsys, "--instruction-set", HERE, "--device", "cpu(1)")
    assert status == 0
    assert len(results) == len(verify.TYPES) + 1
    assert all(result["found"] == 0 for result in results.values())
    assert seen == {(True, "cpu(1)"), (False, "cpu(0)")}


def test_a_gpu_that_is_not_there(capsys):
    assert main(["verify", "--device", "gpu(77)"]) == 1
    assert re.search(
        r"verify: MXNet creates no arrays on gpu\(77\) \(.+\): this needs a GPU of that number",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("text", "kind", "number"), [("gpu", "gpu", 0), ("gpu(3)", "gpu", 3), ("cpu(1)", "cpu", 1)]
)
def test_names_of_devices(text, kind, number):
    found = verify.device_of(text)
    assert (found.device_type, found.device_id) == (kind, number)


@pytest.mark.parametrize("text", ["", "tpu", "gpu(-1)", "gpu(x)", "gpu0", "gpu(0) "])
def test_names_of_no_device(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "--device", text])
    assert f"expected a device such as gpu(0), got {text!r}" in capsys.readouterr().err


def test_a_scalar_that_is_wrong_by_a_bit(few, capsys, monkeypatch):
    fused_step = mxadamax.Adam.fused_step
    scalars = mxadamax.Adam.scalars

    def wrong(self, *arguments):
        found = scalars(self, *arguments)
        found["beta1"] = float(np.nextafter(np.float32(found["beta1"]), np.float32(1)))
        return found

    def with_wrong_scalars(self, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mxadamax.Adam, "scalars", wrong)
            fused_step(self, *arguments)

    monkeypatch.setattr(mxadamax.Adam, "fused_step", with_wrong_scalars)
    status, results = verified(capsys, "--instruction-set", HERE)
    assert status == 1
    result = results["adam_ext", "float32", HERE]
    assert not result["passed"]
    assert result["found"] > 0
    assert main(["verify", "--instruction-set", HERE]) == 1
    output = capsys.readouterr().out
    assert "FAIL" in output
    assert "not as promised" in output


def test_aggregation_that_matters(few, capsys, monkeypatch):
    fused_step = mxadamax.Adam.fused_step

    def one_after_another(self, indices, weights, grads, states):
        fused_step(self, indices, weights, grads, states)
        if self.aggregate_num == 3:
            weights[0][:] = weights[0] + 1e-3

    monkeypatch.setattr(mxadamax.Adam, "fused_step", one_after_another)
    status, results = verified(capsys, "--instruction-set", HERE)
    assert status == 1
    assert not results["adam_ext", "float32", HERE]["passed"]


def test_what_another_process_finds_counts(few, capsys, monkeypatch):
    found = verify.Result("adam_ext", "float32", "other", 0.0, 3.0)
    monkeypatch.setattr(_native, "instruction_sets", ("other", HERE))
    monkeypatch.setattr(verify, "verify_in_another_process", lambda *_: [found])
    assert main(["verify"]) == 1
    output = capsys.readouterr().out
    assert "FAIL 3 ULP" in output
    assert "1 are not as promised" in output


def test_a_narrow_terminal_cuts_no_name_short():
    results = [
        verify.Result(str(info), kind.label, HERE, 0.0, 0.0)
        for info in verify.OPTIMIZERS
        for kind in verify.TYPES
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(verify.table_of(results))
    output = console.file.getvalue()
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output


def test_another_process_that_ends(monkeypatch, capsys):
    with pytest.raises(OSError, match="verifying sse9 ended with exit status 1"):
        verify.verify_in_another_process("sse9")


@pytest.mark.parametrize(
    ("a", "b", "dtype", "expected"),
    [
        (1.0, 1.0, "float32", 0),
        (1.0, np.nextafter(np.float32(1), np.float32(2)), "float32", 1),
        (0.0, -0.0, "float32", 1),
        (np.float32(1e-45), np.float32(-1e-45), "float32", 3),
        (np.nan, np.nan, "float32", 0),
        (np.nan, 1.0, "float32", np.inf),
        (np.inf, np.finfo("float64").max, "float64", 1),
        (1.0, 1.0 + 2**-10, "float16", 1),
        (1.0, 1.0 + 2**-7, "bfloat16", 1),
        (-1.0, -1.0 - 2**-6, "bfloat16", 2),
    ],
)
def test_how_far_numbers_are_apart(a, b, dtype, expected):
    wide = "float64" if dtype == "float64" else "float32"
    kind = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    found = verify.ulp_distance(np.array([1, a], wide), np.array([1, b], wide), kind)
    assert found == expected


@pytest.mark.parametrize(
    ("actual", "expected", "dtype", "found"),
    [
        ([1, 2], [1, 2], "float32", 0),
        ([1, 2 + 2**-22], [1, 2], "float32", 1),
        ([1 + 2**-22, 2], [1, 2], "float32", 1),
        ([1, 2 + 2**-22], [1, 2], "float64", 1),
        ([1, 2 + 2**-9], [1, 2], "float16", 1),
        ([2**-24, 0], [0, 0], "float16", 1),
        ([1, 2 - 2**-6], [1, 2], "bfloat16", 1),
        ([np.nan, 1], [1, 1], "float32", np.inf),
        ([1, 1], [np.inf, 1], "float32", np.inf),
    ],
)
def test_units_of_the_largest(actual, expected, dtype, found):
    wide = "float64" if dtype == "float64" else "float32"
    kind = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    assert verify.ulp_of_largest(np.array(actual, wide), np.array(expected, wide), kind) == found


def test_arrays_that_cannot_be_compared(few, capsys, monkeypatch):
    """Of other shapes, or more of them than expected, count as infinitely far apart."""
    assert verify.ulp_distance(np.ones(2), np.ones(3), np.dtype("float64")) == np.inf
    monkeypatch.setattr(verify, "expected_of", lambda run, *_: [w.asnumpy() for w in run.weights])
    status, results = verified(capsys, "--instruction-set", HERE)
    assert status == 1
    assert results["adam_ext", "float32", HERE]["found"] == np.inf


def test_what_a_table_says():
    def result(optimizer, against, found):
        return verify.Result(optimizer, against, HERE, 4.0, found)

    results = [result("a", "bits", 0.0), result("a", "fused", 2.0), result("b", "bits", 5.0)]
    table = verify.table_of(results)
    columns = [list(column.cells) for column in table.columns]
    assert columns == [
        ["a", "b"],
        ["[green]same bits[/]", "[bold red]FAIL 5 ULP[/]"],
        ["[green]2 ULP[/]", ""],
    ]


def test_rounding_to_16_bits():
    """Half way to the even one, and up above it."""
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8], "float32")
    expected = np.array([1, 1 + 2**-6, 1 + 2**-7, -1], "float32")
    assert np.array_equal(verify.rounded(values, BFLOAT16), expected)
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, 1e6], "float32")
    expected = np.array([1, 1 + 2**-9, np.inf], "float32")
    assert np.array_equal(verify.rounded(values, HALF), expected)
