# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs, measures every contender, and measures the models it names."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Callable

from mxadamax.compatibility import gluon_arrays

import mxnet as mx
import pytest
from support import network_shapes

pytest.importorskip("rich")

TRAINERS = {"adamax_ext", "adamax", "adam", "nothing"}


def load() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def shapes():
    with network_shapes():
        yield


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load()


def test_run(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "BUILDS", 1)
    monkeypatch.setattr(benchmark, "WARM_UP_ROUNDS", 1)
    report = tmp_path / "report.json"
    cases = ["small-1000x64", "layers-8x64-b32"]
    benchmark.main(["--only", *cases, "--repeat", "2", "--json", str(report)])

    result = json.loads(report.read_text())
    assert list(result["cases"]) == cases
    update, training = (result["cases"][case] for case in cases)
    torch = {"torch adamax", "torch adam"} if benchmark.torch else set()
    assert set(update) == TRAINERS | {"floor"} | torch
    assert set(training) == TRAINERS
    for contender in [*update.values(), *training.values()]:
        first, second = contender["samples_ms"]
        assert 0 < contender["min_ms"] == min(first, second)
        assert contender["median_ms"] == pytest.approx((first + second) / 2)
    assert result["machine"]["omp_threads"] >= 1
    assert result["machine"]["mxadamax"] == benchmark.mxadamax.__version__

    output = capsys.readouterr().out
    for text in [*cases, *update, "64,000 parameters"]:
        assert text in output


def test_models(benchmark):
    resnet, bert = benchmark.resnet50_shapes(), benchmark.bert_base_shapes()
    assert (len(resnet), benchmark.elements_of(resnet)) == (161, 25_557_032)
    assert (len(bert), benchmark.elements_of(bert)) == (199, 109_482_240)
    assert benchmark.CASES["small-1000x64"].elements() == 64_000
    elements = {name: case.elements() for name, case in benchmark.CASES.items()}
    assert elements["resnet50"] == 25_557_032
    assert elements["bert-base"] == 109_482_240
    assert elements["mlp-2048-b32"] == 785 * 2048 + 2049 * 2048 + 2049 * 10
    assert elements["layers-8x64-b32"] == 8 * 65 * 64
    assert elements["cnn-b32"] == 10 * 32 + 289 * 64 + 1601 * 128 + 129 * 10


def test_floor_of_16_bits(benchmark):
    grads = [gluon_arrays.zeros(size, dtype="float16") for size in (100, 7)]
    written = [[gluon_arrays.full(grad.size, 8.0) for _ in range(3)] for grad in grads]
    copies = [gluon_arrays.ones(grad.size, dtype="float16") for grad in grads]
    benchmark.floor_of(grads, written, copies)()
    for (weight, *states), copy in zip(written, copies):
        assert (weight.asnumpy() == 12).all()
        assert all((state.asnumpy() == 4).all() for state in states)
        # An integer in the bits of a float16.
        assert (copy.asnumpy().view("uint16") == 12).all()


def test_half_precision_and_sparse(benchmark, monkeypatch):
    half = benchmark.Peers("adamax_ext", "adamax", {"multi_precision": True}, None)
    samples = benchmark.measure(benchmark.family_case([(50,)], half, 1), 1, lambda: None)
    assert set(samples) == {"adamax_ext", "adamax", "floor", "nothing"}
    for optimizer, lazy in (("adam_ext", True), ("adam_ext", False), ("adam", True)):
        benchmark.sparse_update(optimizer, lazy, 10, steps=2).call()


@pytest.mark.parametrize("name", ["amsgrad", "sgd", "rmsprop-centered", "adabelief"])
def test_family(benchmark, name):
    """With small arrays: it is the contenders that count."""
    peers = benchmark.FAMILY[name]
    if peers.built_in not in mx.optimizer.Optimizer.opt_registry:
        pytest.skip(f"this MXNet has no {peers.built_in}")
    case = benchmark.family_case([(3, 4), (5,)], peers, rounds=1)
    samples = benchmark.measure(case, 1, lambda: None)
    of_torch = {"torch"} if benchmark.torch and peers.torch else set()
    assert set(samples) == {peers.ours, peers.built_in, "floor", "nothing"} | of_torch
    assert f"family-{name}" in benchmark.CASES


def test_contenders_take_turns(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "BUILDS", 2)
    events = []

    def builder(*names: str) -> Callable[[], dict[str, object]]:
        def contender(name: str) -> object:
            events.append(f"build {name}")
            return benchmark.Contender(
                lambda: events.append(name), lambda: events.append(f"prepare {name}")
            )

        return lambda: {name: contender(name) for name in names}

    case = benchmark.Case([builder("a"), builder("b", "c"), builder("d")], rounds=9, elements=int)
    advances = []
    samples = benchmark.measure(case, 3, lambda: advances.append(1))

    assert {name: len(times) for name, times in samples.items()} == dict.fromkeys("abcd", 3)
    assert len(advances) == 3

    def expected(order: str, rounds: int) -> list[str]:
        turns = [text for name in order for text in (f"prepare {name}", name)]
        builds = [f"build {name}" for name in order]
        return builds + turns * (benchmark.WARM_UP_ROUNDS + rounds)

    assert events == expected("abcd", 2) + expected("bcda", 1)


@pytest.mark.parametrize("states", range(5))
def test_floor_touches_all_elements_once(benchmark, monkeypatch, states):
    for threads in (1, 2, 3):
        monkeypatch.setattr(benchmark, "omp_threads", lambda n=threads: n)
        sizes = (1001, 1, 3, 64)
        grads = [gluon_arrays.full(size, 2.0) for size in sizes]
        written = [[gluon_arrays.full(size, 8.0) for _ in range(1 + states)] for size in sizes]
        benchmark.floor_of(grads, written)()
        for grad, (weight, *rest) in zip(grads, written):
            assert (grad.asnumpy() == 2).all()
            assert (weight.asnumpy() == 6 + 8 * states).all()
            assert all((state.asnumpy() == 8).all() for state in rest)


def test_threads_start_over(benchmark, monkeypatch):
    class StartedError(Exception):
        pass

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert path == sys.executable
        assert arguments[1:] == [benchmark.__file__, "--threads", "3", "--only", "resnet50"]
        assert environment == {**os.environ, "OMP_NUM_THREADS": "3"}
        raise StartedError

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(StartedError):
        benchmark.main(["--threads", "3", "--only", "resnet50"])


@pytest.mark.parametrize("arguments", [["--only", "resnet"], ["--repeat", "0"], ["--threads", "x"]])
def test_bad_arguments(benchmark, arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(arguments)
    assert arguments[0] in capsys.readouterr().err
