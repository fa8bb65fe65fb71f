# SPDX-License-Identifier: Apache-2.0
"""What is told about kernels for GPUs, driver and GPUs, on any machine."""

from __future__ import annotations

import json
import pickle
import sys
import types

import pytest

from mxadamax import cuda
from mxadamax.cuda import diagnosis


@pytest.fixture
def answers(monkeypatch):
    """Makes the process that asks the driver answer as one would on another machine."""

    def answer(stdout="", stderr="", **changes):
        found = {
            "architectures": "75, 80, 90, PTX 90",
            "compiler": "13.0.88",
            "runtime": 13000,
            "driver": 13010,
            "devices": [["NVIDIA H100", 85 * 10**9, 9, 0]],
            **changes,
        }
        found = {name: value for name, value in found.items() if value is not None}
        done = types.SimpleNamespace(
            stdout=stdout or json.dumps(found), stderr=stderr, returncode=-11
        )
        monkeypatch.setattr(diagnosis.subprocess, "run", lambda *_, **__: done)
        monkeypatch.setattr(diagnosis, "MODULE", "json")
        return cuda.describe()

    return answer


def test_all_is_well(answers):
    found = answers()
    assert found == cuda.Description(
        built=True,
        architectures="75, 80, 90, PTX 90",
        compiler="13.0.88",
        driver="13.1",
        gpus=(cuda.Gpu("NVIDIA H100", 85 * 10**9, 90),),
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"driver": 0, "devices": []},
            "no NVIDIA driver is found: install one; start a container with access to the GPUs",
        ),
        (
            {"driver": 12040, "devices": []},
            "the driver supports CUDA 12.4, the kernels need CUDA 13.0: install a newer driver",
        ),
        ({"devices": [], "error": "CUDA: no device"}, "CUDA: no device; does nvidia-smi list"),
        ({"devices": []}, "CUDA: there is no device; does nvidia-smi list a GPU"),
        (
            {"devices": [["Tesla V100", 16 * 10**9, 7, 0]]},
            "GPU 0, Tesla V100, has architecture 70, the kernels need 75 or later: "
            "build with the CMake option MXADAMAX_CUDA_ARCHITECTURES=70",
        ),
        ({"stdout": "no JSON", "stderr": "undefined symbol"}, "build mxadamax again: undefined"),
        ({"stdout": "no JSON"}, "build mxadamax again: its process ended with -11"),
    ],
)
def test_problems(changes, problem, answers):
    found = answers(**changes)
    assert found.built
    assert problem in found.problem


def test_no_driver_has_no_version(answers):
    assert answers(driver=0, devices=[]).driver == ""


def test_the_least_architecture_is_no_problem(answers):
    found = answers(devices=[["NVIDIA T4", 16 * 10**9, 7, 5]])
    assert found.gpus[0].architecture == 75
    assert found.problem == ""


def test_an_older_driver_of_the_same_first_number_is_no_problem(answers):
    assert answers(driver=13000, runtime=13020).problem == ""


def test_not_built(monkeypatch):
    monkeypatch.setattr(diagnosis, "MODULE", "mxadamax._cuda_that_is_not_there")
    found = cuda.describe()
    assert not found.built
    assert "install nvcc" in found.problem


def test_a_driver_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(diagnosis, "MODULE", "json")
    monkeypatch.setattr(diagnosis, "_QUESTION", "import time; time.sleep(60)")
    monkeypatch.setattr(diagnosis, "_SECONDS", 0.2)
    found = cuda.describe()
    assert found.built
    assert "did not answer in 0.2 s" in found.problem


def test_a_python_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(diagnosis, "MODULE", "json")
    monkeypatch.setattr(sys, "executable", "/not/there/python")
    problem = cuda.describe().problem
    assert "cannot be loaded" in problem
    assert "/not/there/python" in problem


def test_the_module_that_stands_for_it_on_the_host(monkeypatch):
    """The process itself, with a driver that always answers."""
    pytest.importorskip(
        "mxadamax._cuda_on_host", reason="built without the CMake option MXADAMAX_CUDA_ON_HOST"
    )
    monkeypatch.setattr(diagnosis, "MODULE", "mxadamax._cuda_on_host")
    found = cuda.describe()
    assert found.architectures == "host"
    assert found.gpus == (cuda.Gpu("the host", 2**30, 90),)


def test_on_this_machine():
    found = cuda.describe()
    assert found.problem or found.gpus


def test_pickles_name_the_package():
    """As they did when it was one file."""
    found = cuda.Description(gpus=(cuda.Gpu("a GPU", 1, 90),))
    pickled = pickle.dumps(found, 0)
    assert b"mxadamax.cuda\nDescription" in pickled and b"mxadamax.cuda\nGpu" in pickled
    assert pickle.loads(pickled) == found
