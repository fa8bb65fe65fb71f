# SPDX-License-Identifier: Apache-2.0
"""The benchmark on a GPU, and the script around it, as far as they go without one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from mxadamax import cuda

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check"


def load(name):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark():
    return load("gpu")


SAMPLES = {
    "one": {
        "mxadamax adamax": {"gpu": [2.0, 1.0, 9.0], "host": [0.5, 0.25, 0.75]},
        "copy of the same bytes": {"gpu": [1.5, 1.0, 40.0], "host": [0.01, 0.02, 0.03]},
    },
    "many": {"mxadamax adamax": {"gpu": [0.125], "host": [1.0]}},
}


def test_table(benchmark):
    rows = benchmark.rows_of(SAMPLES)
    assert rows == [
        ("one", "mxadamax adamax", 2.0, 0.5, 1.0),
        ("one", "copy of the same bytes", 1.5, 0.02, 0.75),
        ("many", "mxadamax adamax", 0.125, 1.0, 1.0),
    ]
    assert benchmark.plain_table(benchmark.cells(rows)).splitlines() == [
        "arrays  contender               GPU, ms  host, ms  of ours",
        "one     mxadamax adamax          2.0000    0.5000   1.00 x",
        "        copy of the same bytes   1.5000    0.0200   0.75 x",
        "many    mxadamax adamax          0.1250    1.0000   1.00 x",
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
    assert "0.75 x" in shown


def test_shapes_are_those_of_the_other_benchmark(benchmark):
    pytest.importorskip("rich")
    pytest.importorskip("mxnet")
    from mxadamax.commands.bench.cases import resnet50_shapes

    shapes = benchmark.CASES["ResNet-50"]
    assert sorted(shapes) == sorted(resnet50_shapes())
    assert [sum(map(np.prod, shapes)) for shapes in benchmark.CASES.values()] == [
        100_000_000,
        25_557_032,
        64_000,
    ]


def test_contenders(benchmark, monkeypatch):
    """On the processor, by the kernels compiled for it."""
    torch = pytest.importorskip("torch")
    on_host = pytest.importorskip("mxadamax._cuda_on_host")
    monkeypatch.setattr(benchmark, "DEVICE", "cpu")
    monkeypatch.setattr(benchmark, "CASES", {"small": [(3, 5), (7,)]})
    monkeypatch.setattr(benchmark, "measure", lambda step: (1.0 + (step() is None), 2.0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(cuda, "kernels", lambda: on_host)
    monkeypatch.setattr(
        *(cuda, "_by_dlpack"),
        lambda array, *_: cuda._Array(
            array.data_ptr(), str(array.dtype).replace("torch.", ""), tuple(array.shape), None
        ),
    )
    samples = benchmark.run(4)
    assert list(samples) == ["small"]
    assert list(samples["small"]) == [
        "mxadamax adamax",
        "mxadamax adam",
        "mxadamax adam, states in int8",
        "torch Adam, fused",
        "torch Adamax, foreach",
        "copy of the same bytes",
    ]
    assert all(len(times["gpu"]) == 4 for times in samples["small"].values())
    assert len(benchmark.rows_of(samples)) == 6


def test_refusal_without_a_gpu(benchmark, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "describe", lambda: cuda.Description(problem="there is no GPU here"))
    assert benchmark.main(["--json", str(tmp_path / "x.json")]) == 2
    assert "benchmarks/gpu.py: there is no GPU here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        benchmark.main(["--rounds", "0"])
    assert "--rounds: must be 1 or more, got 0" in capsys.readouterr().err


def test_what_is_written(benchmark, monkeypatch, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    described = cuda.Description(True, "90", "13.0", "13.0", (cuda.Gpu("a GPU", 1, 90),))
    monkeypatch.setattr(cuda, "describe", lambda: described)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark, "run", lambda rounds: SAMPLES)
    path = tmp_path / "folder" / "x.json"
    assert benchmark.main(["--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["samples"] == SAMPLES
    assert found["machine"]["gpu"] == "a GPU"
    assert found["table"][1]["ratio"] == 0.75


# The script.


def gpu_check(*arguments, path=None):
    environment = {**os.environ, **({"PATH": path} if path else {})}
    return subprocess.run(
        ["/bin/bash", str(SCRIPT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_script_is_bash():
    subprocess.run(["/bin/bash", "-n", str(SCRIPT)], check=True, timeout=60)
    assert os.access(SCRIPT, os.X_OK)


def test_help():
    done = gpu_check("--help")
    assert done.returncode == 0
    assert "--out" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fast"], "gpu_check: unknown argument '--fast'"),
        (["--out"], "gpu_check: --out needs a value"),
        (["--python", "/not/there"], "gpu_check: no Python at '/not/there'"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    done = gpu_check(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


TOOLS = ("bash", "env", "dirname", "date", "head", "tr", "mkdir", "cat", "sort")


@pytest.fixture
def tools(tmp_path):
    """A folder of programs: some of this machine's, and others that only answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        found = next(p for p in (Path("/usr/bin"), Path("/bin")) if (p / name).exists()) / name
        (folder / name).symlink_to(found)

    def add(name, answer):
        program = folder / name
        program.write_text(f"#!/bin/bash\necho '{answer}'\n")
        program.chmod(0o755)

    add.path = str(folder)
    return add


def test_a_machine_without_a_gpu(tools):
    done = gpu_check("--python", sys.executable, path=tools.path)
    assert done.returncode == 2
    assert "gpu_check: no GPU: nvidia-smi is not found" in done.stderr


def test_a_machine_without_a_compiler(tools):
    tools("nvidia-smi", "9.0")
    done = gpu_check("--python", sys.executable, path=tools.path)
    assert done.returncode == 2
    assert "gpu_check: nvcc is not found" in done.stderr


def test_the_plan(tools):
    """What would be done, with every tool there."""
    pytest.importorskip("torch")
    for name in ("nvcc", "cmake", "compute-sanitizer", "timeout"):
        tools(name, "")
    tools("nvidia-smi", "9.0")
    done = gpu_check("--python", sys.executable, "--plan", path=tools.path)
    assert done.returncode == 0, done.stderr
    plan = done.stdout
    assert "MXADAMAX_CUDA_ARCHITECTURES=90" in plan
    for part in ("tests/test_cuda.py", "memcheck", "racecheck", "benchmarks/gpu.py --json"):
        assert part in plan
