# SPDX-License-Identifier: Apache-2.0
"""The commands of ``mxadamax``: what they print, and their exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

import mxadamax
from mxadamax import cuda
from mxadamax.__main__ import COMMANDS, main
from mxadamax._mxnet import versions
from mxadamax.commands import info, machine
from mxadamax.commands.import_diagnostics import explain_where_the_import_fails

ROOT = Path(mxadamax.__file__).resolve().parents[1]


def run(*arguments: str, folder: Path | None = None, **environment: str):
    """Run the command in a process of its own, with modules in `folder` before all others."""
    paths = [str(folder)] if folder else []
    return subprocess.run(
        [sys.executable, *(arguments or ("-m", "mxadamax", "info"))],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, str(ROOT), *filter(None, sys.path)]),
            "COLUMNS": "300",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


# info


def test_info(capsys):
    status = main(["info", "--json"])
    report = json.loads(capsys.readouterr().out)
    facts = report["facts"]
    assert status == (1 if report["problems"] else 0)
    assert facts["NumPy"] == np.__version__
    assert facts["MXNet"] == mx.__version__
    enabled = [name for name, found in mx.runtime.Features().items() if found.enabled]
    assert facts["MXNet compiled with"] == enabled
    assert facts["instruction set"] == mxadamax._native.instruction_set
    assert facts["instruction sets available"] == list(mxadamax._native.instruction_sets)
    assert facts["OpenMP threads"] >= 1
    assert mxadamax.__version__ in facts["mxadamax"]
    assert main(["info"]) == status
    output = capsys.readouterr().out
    assert np.__version__ in output
    assert ("no problems found" in output) == (status == 0)


def test_info_of_a_lower_instruction_set():
    done = run("-m", "mxadamax", "info", "--json", MXADAMAX_INSTRUCTION_SET="baseline")
    report = json.loads(done.stdout)
    assert report["facts"]["instruction set"] == "baseline"
    lower = len(mxadamax._native.instruction_sets) > 1
    assert any("MXADAMAX_INSTRUCTION_SET=baseline" in hint for hint in report["hints"]) == lower


NO_MXNET = "raise ModuleNotFoundError(\"No module named 'mxnet'\", name='mxnet')"
WHAT_IS_WRONG = {
    "no MXNet": ({"mxnet": NO_MXNET}, {}, r"mxadamax needs Apache MXNet: "),
    "no NumPy": (
        {"numpy": "raise ModuleNotFoundError('no numpy', name='numpy')"},
        {},
        r"mxadamax needs NumPy: install it with MXNet by pip install",
    ),
    "NumPy 2": (
        {
            "sitecustomize": "import numpy\nnumpy.__version__ = '2.1.3'",
            "mxnet": "raise AttributeError('np.PZERO was removed')",
        },
        {},
        r"it needs NumPy 1, found NumPy 2\.1\.3: pip install 'numpy",
    ),
    "a broken MXNet": (
        {"mxnet": "raise OSError('libcuda.so.1: cannot open shared object file')"},
        {},
        r"\(OSError: libcuda\.so\.1: cannot open shared object file\), .*: install NVIDIA's driver",
    ),
    "instruction set": (
        {},
        {"MXADAMAX_INSTRUCTION_SET": "sse9"},
        r"MXADAMAX_INSTRUCTION_SET: instruction set 'sse9' is not available here; available: base",
    ),
}


@pytest.mark.parametrize("case", WHAT_IS_WRONG)
@pytest.mark.parametrize("way", ["module", "script"])
def test_info_where_the_package_cannot_be_imported(case, way, tmp_path):
    modules, environment, message = WHAT_IS_WRONG[case]
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    script = tmp_path / "mxadamax"
    if way == "script":
        # As pip writes it.
        script = tmp_path / "bin" / "mxadamax"
        script.parent.mkdir()
        script.write_text(
            "import sys\nfrom mxadamax.__main__ import main\nif __name__ == '__main__':\n"
            "    sys.exit(main())\n"
        )
    command = ("-m", "mxadamax") if way == "module" else (str(script),)
    if way == "script":
        done = run(*command, "info", folder=tmp_path, **environment)
        assert done.returncode == 1
        assert re.search(f"problem: .*{message}", done.stdout), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "Python" in done.stdout
        return
    done = run(*command, "info", "--json", folder=tmp_path, **environment)
    report = json.loads(done.stdout)
    assert any(re.search(message, problem) for problem in report["problems"])
    # The compiled module needs nothing of the rest.
    assert (report["facts"]["instruction set"] is None) == (case == "instruction set")


def test_other_programs_get_the_error_itself(tmp_path):
    (tmp_path / "mxnet.py").write_text("raise OSError('libcuda.so.1 is missing')")
    (tmp_path / "program.py").write_text("import mxadamax")
    for way in (("-c", "import mxadamax"), ("-m", "program")):
        done = run(*way, folder=tmp_path)
        assert done.returncode == 1
        assert "\nOSError: libcuda.so.1 is missing\n" in done.stderr
        assert "(OSError: libcuda.so.1 is missing)" in done.stderr.strip().splitlines()[-1]
        assert done.stdout == ""


@pytest.mark.parametrize("command", ["verify", "bench", "convert"])
def test_other_commands_without_mxnet(command, tmp_path):
    (tmp_path / "mxnet.py").write_text(NO_MXNET)
    done = run("-m", "mxadamax", command, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"mxadamax {command}: mxadamax needs Apache MXNet: ")
    assert "Traceback" not in done.stderr


def mxnet_of_version(version, monkeypatch):
    monkeypatch.setattr(mx, "__version__", version)
    report = info.Report()
    info.look_at_mxnet(report)
    return report


# What mxnet.__version__ says in 1.7.0.post2, 1.8.0.post0 and the others.
@pytest.mark.parametrize("version", ["1.7.0", "1.8.0", "1.9.0", "1.9.1", "2.0.0beta1", "2.0.0b1"])
def test_info_has_nothing_to_say_of_an_mxnet_that_was_tried(monkeypatch, version):
    report = mxnet_of_version(version, monkeypatch)
    assert (report.problems, report.hints) == ([], [])


@pytest.mark.parametrize("version", ["1.8.1", "1.9.2", "2.0.0", "2.0.0b2"])
def test_info_hints_at_an_mxnet_that_was_not_tried(monkeypatch, version):
    """Its functions and arrays are as they have to be: it is the installed one."""
    report = mxnet_of_version(version, monkeypatch)
    assert report.problems == []
    (hint,) = report.hints
    assert hint.startswith(f"MXNet {version} has not been tried. It has all that is called; ")
    assert all(name in hint for name in versions.MXNETS)


def test_info_names_an_mxnet_that_is_not_supported(monkeypatch):
    report = mxnet_of_version("3.0.0", monkeypatch)
    assert any(
        p.startswith("MXNet 3.0.0 is not one of those supported: pip install")
        for p in report.problems
    )


@pytest.mark.parametrize("version", ["1.9.1", "1.6.0"])
def test_info_names_an_mxnet_that_lacks_a_function(monkeypatch, version):
    def fail():
        raise ImportError("this MXNet library has no function MXDo")

    monkeypatch.setattr(sys.modules["mxadamax._mxnet.engine"], "native", fail)
    (problem,) = mxnet_of_version(version, monkeypatch).problems
    assert "this MXNet library has no function MXDo" in problem
    tried = f"MXNet {version} is not one of those supported (this" in problem
    assert tried == (version == "1.6.0")


@pytest.mark.parametrize("module", ["rich.console", "rich.table"])
def test_info_where_rich_is_broken(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["info"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"NumPy: {np.__version__}" in lines
    assert any(re.match("problem: rich cannot be imported .*: pip install rich$", x) for x in lines)


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_commands_that_need_rich_say_so(command, tmp_path):
    (tmp_path / "rich.py").write_text("raise ImportError('half of rich is missing')")
    done = run("-m", "mxadamax", command, folder=tmp_path)
    assert done.returncode == 1
    assert f"mxadamax {command}: half of rich is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_info_names_a_missing_mxnet(monkeypatch):
    monkeypatch.setitem(sys.modules, "mxnet", None)
    report = info.Report()
    info.look_at_mxnet(report)
    assert report.facts["MXNet"] is None
    assert report.problems[-1].startswith("mxadamax needs Apache MXNet: ")


def test_a_processor_that_has_no_name(monkeypatch):
    def fail(path):
        raise PermissionError(path)

    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    assert machine.cpu_model() == "riscv64"


def test_an_interrupted_import_is_no_problem_to_report(monkeypatch, capsys):
    """Control-C while the command starts ends it as it ends any program."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mxadamax", "info"])
    monkeypatch.setattr(sys, "excepthook", None)
    explain_where_the_import_fails()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert sys.excepthook is sys.__excepthook__
    output, error = capsys.readouterr()
    assert (output, error.strip()) == ("", "KeyboardInterrupt")


def test_info_says_what_the_part_for_gpus_says(monkeypatch):
    gpu = cuda.Gpu("H0", 80 << 30, 90)
    monkeypatch.setattr(cuda, "describe", lambda: cuda.Description(True, "80", "13.0", gpus=(gpu,)))
    report = info.Report()
    info.look_at_cuda(report)
    text = info.as_text(report.facts["CUDA"])
    assert text.startswith("built True, architectures 80, compiler 13.0, driver -, gpus ")
    assert "name H0" in text
    assert "H0" in str(report)
    monkeypatch.setitem(sys.modules, "mxadamax.cuda", None)
    info.look_at_cuda(report)
    assert "cannot be imported" in report.facts["CUDA"]


# convert: what it does is tested in test_checkpoints.py.


def test_convert_says_why_it_could_not(tmp_path, capsys):
    old = str(tmp_path / "old")
    assert main(["convert", old, str(tmp_path / "new"), "--to", "adamax_ext"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mxadamax convert: ")
    assert old in error
    assert list(tmp_path.iterdir()) == []


# All.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"usage: mxadamax {command}" in capsys.readouterr().out


def test_help_and_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(name in output and summary in output for name, summary in COMMANDS.items())
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"mxadamax {mxadamax.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["optimize"]])
def test_unknown_commands(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "COMMAND" in capsys.readouterr().err
