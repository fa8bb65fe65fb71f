# SPDX-License-Identifier: Apache-2.0
"""The benchmark on a GPU, and the script around it, as far as they go without one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from loading import load

from mxadamax import cuda

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check"


@pytest.fixture(scope="module")
def benchmark():
    return load(ROOT / "benchmarks" / "gpu.py")


def times(gpu, host, in_a_row):
    return {"gpu": gpu, "host": host, "in_a_row": in_a_row}


SAMPLES = {
    "one": {
        "mxadamax adamax": times([2.0, 1.0, 9.0], [0.5, 0.25, 0.75], [2.5, 2.5, 3.0]),
        "mxadamax adam, states int8": times([1.0], [0.5], [1.5]),
        "copy of the same bytes": times([1.5, 1.0, 40.0], [0.01, 0.02, 0.03], [1.75]),
    },
    "many": {"mxadamax adamax": times([0.125], [1.0], [1.0])},
}


def test_table(benchmark):
    """Medians; bandwidths, of which low-precision states need less for the same time."""
    rows = benchmark.rows_of(SAMPLES)
    assert rows[:3] == [
        ("one", "mxadamax adamax", 2.0, 0.5, 2.5, pytest.approx(0.75)),
        ("one", "mxadamax adam, states int8", 1.0, 0.5, 1.5, pytest.approx(1.5 * 16.25 / 28)),
        ("one", "copy of the same bytes", 1.5, 0.02, 1.75, pytest.approx(1)),
    ]
    assert benchmark.plain_table(benchmark.cells(rows)).splitlines() == [
        "arrays  contender                   GPU, ms  host, ms  in a row, ms  of copy",
        "one     mxadamax adamax              2.0000    0.5000        2.5000     0.75",
        "        mxadamax adam, states int8   1.0000    0.5000        1.5000     0.87",
        "        copy of the same bytes       1.5000    0.0200        1.7500     1.00",
        "many    mxadamax adamax              0.1250    1.0000        1.0000      nan",
    ]


@pytest.mark.parametrize("has_rich", [True, False])
def test_table_is_shown(has_rich, benchmark, capsys, monkeypatch):
    if has_rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("COLUMNS", "120")
    benchmark.show(benchmark.rows_of(SAMPLES))
    shown = capsys.readouterr().out
    assert ("━" in shown) == has_rich
    assert "0.75" in shown


def test_shapes_are_those_of_the_other_benchmark(benchmark):
    pytest.importorskip("rich")
    pytest.importorskip("mxnet")
    from mxadamax.commands.bench.cases import bert_base_shapes, resnet50_shapes

    assert sorted(benchmark.CASES["ResNet-50"]) == sorted(resnet50_shapes())
    assert sorted(benchmark.CASES["BERT-base"]) == sorted(bert_base_shapes())


def test_refusal_without_a_gpu(benchmark, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "describe", lambda: cuda.Description(problem="there is no GPU here"))
    assert benchmark.main(["--json", str(tmp_path / "x.json")]) == 2
    assert "benchmarks/gpu.py: there is no GPU here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        benchmark.main(["--rounds", "0"])
    assert "--rounds: must be 1 or more, got 0" in capsys.readouterr().err


def test_what_is_written(benchmark, monkeypatch, tmp_path, capsys):
    """After each case, so that what was measured is there if the next one does not end."""
    torch = pytest.importorskip("torch")
    described = cuda.Description(True, "90", "13.0", "13.0", (cuda.Gpu("a GPU", 1, 90),))
    monkeypatch.setattr(cuda, "describe", lambda: described)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def run(*_):
        yield {"one": SAMPLES["one"]}
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run", run)
    path, table = tmp_path / "folder" / "x.json", tmp_path / "folder" / "x.txt"
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(["--json", str(path), "--table", str(table)])
    found = json.loads(path.read_text())
    assert found["samples"] == {"one": SAMPLES["one"]}
    assert found["machine"]["gpu"] == "a GPU"
    assert found["table"][0]["of_copy"] == pytest.approx(0.75)
    assert "mxadamax adamax" in table.read_text()


# The script.


def gpu_check(*arguments, path=None, timeout=60):
    environment = {**os.environ, **({"PATH": path} if path else {})}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_help():
    assert os.access(SCRIPT, os.X_OK)
    done = gpu_check("--help")
    assert done.returncode == 0
    assert "--out" in done.stdout


@pytest.fixture
def tools(tmp_path):
    """A folder for programs that only answer; there are no others."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name, answer):
        program = folder / name
        program.write_text(f"#!/bin/bash\necho '{answer}'\n")
        program.chmod(0o755)

    add.path = str(folder)
    return add


def test_what_a_machine_lacks(tools):
    """Told one after the other."""

    def refused(*arguments):
        done = gpu_check(*arguments, path=tools.path)
        assert done.returncode == 2
        return done.stderr

    assert "gpu_check: no Python at '/not/there'" in refused("--python", "/not/there")
    assert "gpu_check: no GPU: nvidia-smi is not found" in refused()
    tools("nvidia-smi", "No devices were found")
    assert "gpu_check: no GPU: nvidia-smi answers 'No devices" in refused()
    tools("nvidia-smi", "9.0")
    assert "gpu_check: nvcc is not found" in refused()
    tools("nvcc", "")
    assert "gpu_check: cmake is not found" in refused()


def test_the_plan(tools):
    """The most valuable first, with every tool there."""
    pytest.importorskip("torch")
    for name in ("nvcc", "cmake", "compute-sanitizer", "ncu"):
        tools(name, "")
    tools("nvidia-smi", "9.0")
    done = gpu_check("--plan", path=tools.path)
    assert done.returncode == 0, done.stderr
    assert "MXADAMAX_CUDA_ARCHITECTURES=90" in done.stdout
    names = [line.split(" ")[0] for line in done.stdout.splitlines()]
    assert names == [
        "configure",
        "build",
        "parity",
        "benchmark",
        "ncu",
        "memcheck",
        "racecheck",
        "initcheck",
    ]


def test_rehearsal(tmp_path):
    """The steps that a device runs, with the kernels compiled for the host."""
    pytest.importorskip("mxadamax._cuda_on_host")
    out = tmp_path / "out"
    done = gpu_check(
        *("--rehearse", "--steps", "sanitized,benchmark", "--out", str(out)), timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((out / "result.json").read_text())["steps"]
    assert steps["sanitized"]["status"] == "passed"
    has_torch = importlib.util.find_spec("torch") is not None
    assert steps["benchmark"]["status"] == ("passed" if has_torch else "skipped")
    passed = re.search(r"\b(\d+) passed", (out / "log.txt").read_text())
    assert int(passed.group(1)) >= 20


def test_a_step_that_does_not_end_is_told_and_what_follows_is_run(tmp_path):
    """A limit that no step can keep, then one for which nothing is left."""
    pytest.importorskip("mxadamax._cuda_on_host")
    out = tmp_path / "out"
    done = gpu_check(
        *("--rehearse", "--steps", "parity,sanitized", "--seconds", "12", "--out", str(out)),
        timeout=120,
    )
    assert done.returncode == 1
    assert "gpu_check: failed: parity, sanitized" in done.stderr
    steps = json.loads((out / "result.json").read_text())["steps"]
    assert steps["parity"]["reason"].startswith("not done in ")
    assert steps["sanitized"]["reason"] == "no time was left"
    assert "parity" in (out / "table.txt").read_text()
