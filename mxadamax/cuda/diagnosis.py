# SPDX-License-Identifier: Apache-2.0
"""Find out what keeps the kernels for GPUs from running here."""

import importlib.util
import json
import re
import subprocess
import sys
from typing import Any, Mapping, NamedTuple, Sequence, Tuple

from .loader import MODULE, NOT_BUILT


class Gpu(NamedTuple):
    """One GPU, as CUDA's driver describes it.

    Parameters
    ----------
    name : str
        What its maker calls it.
    memory : int
        Its bytes.
    architecture : int
        Ten times the first number of its compute capability, and the second: 90 for 9.0.
    """

    name: str
    memory: int
    architecture: int


class Description(NamedTuple):
    """What there is of the kernels for GPUs.

    Parameters
    ----------
    built : bool
        Whether their module is there.
    architectures : str
        For which it has machine code, and from which on the driver makes it (PTX).
    compiler : str
        The version of nvcc.
    driver : str
        The newest CUDA that the driver knows; empty where there is no driver.
    gpus : tuple of Gpu
        What the driver offers.
    problem : str
        What keeps the kernels from running, and what to do about it; empty for nothing.
    """

    built: bool = False
    architectures: str = ""
    compiler: str = ""
    driver: str = ""
    gpus: Tuple[Gpu, ...] = ()
    problem: str = ""


_SECONDS = 20.0
# Without the package, whose import takes its time.
_QUESTION = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location(sys.argv[1], sys.argv[2])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
found = {
    "architectures": module.architectures,
    "compiler": module.compiler,
    "runtime": module.runtime_version or 0,
    "driver": module.driver_version(),
    "devices": [],
}
try:
    found["devices"] = module.devices()
except RuntimeError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


def describe() -> Description:
    """Describe the kernels for GPUs, the driver and the GPUs.

    Asks in a process of its own: a driver that crashes or does not answer is told like any other
    problem, and this process can still be forked.
    """
    try:
        spec = importlib.util.find_spec(MODULE)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return Description(problem=NOT_BUILT)
    question = [sys.executable, "-c", _QUESTION, MODULE.rpartition(".")[2], spec.origin]
    try:
        answer = subprocess.run(
            question, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
        )
        found = json.loads(answer.stdout)
    except subprocess.TimeoutExpired:
        return Description(
            built=True,
            problem=f"CUDA's driver did not answer in {_SECONDS:g} s: look whether nvidia-smi does",
        )
    except (OSError, ValueError) as error:
        said = str(error) if isinstance(error, OSError) else answer.stderr.strip()[-300:]
        return Description(
            built=True,
            problem="the module of the kernels cannot be loaded, so build mxadamax again: "
            + (said or f"its process ended with {answer.returncode}"),
        )
    gpus = tuple(
        Gpu(name, memory, 10 * major + minor) for name, memory, major, minor in found["devices"]
    )
    return Description(
        built=True,
        architectures=found["architectures"],
        compiler=found["compiler"],
        driver=_version(found["driver"]),
        gpus=gpus,
        problem=_problem(found, gpus),
    )


def _version(number: int) -> str:
    """A version as CUDA counts them, as people write it."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _problem(found: Mapping[str, Any], gpus: Sequence[Gpu]) -> str:
    if not found["driver"]:
        return (
            "no driver of NVIDIA's is found: install one; a container has to be started with "
            "access to the GPUs"
        )
    # Versions with the same first number go together.
    if found["driver"] // 1000 < found["runtime"] // 1000:
        return (
            f"the driver knows CUDA {_version(found['driver'])}, and the kernels are of CUDA "
            f"{_version(found['runtime'])}: install a newer driver, or build with an older CUDA"
        )
    if "error" in found or not gpus:
        said = found.get("error", "CUDA: there is no device")
        return f"{said}; does nvidia-smi list a GPU, and does CUDA_VISIBLE_DEVICES hide it?"
    numbers = [int(number) for number in re.findall(r"\d+", found["architectures"])]
    for k, gpu in enumerate(gpus):
        if numbers and gpu.architecture < min(numbers):
            return (
                f"GPU {k}, {gpu.name}, is of architecture {gpu.architecture}, and the kernels are "
                f"for {min(numbers)} and later: build with the CMake option "
                f"MXADAMAX_CUDA_ARCHITECTURES={gpu.architecture}"
            )
    return ""
