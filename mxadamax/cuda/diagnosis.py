# SPDX-License-Identifier: Apache-2.0
"""Describe the CUDA kernels, and find out why they do not run here."""

import importlib.util
import json
import re
import subprocess
import sys
from typing import Any, Mapping, NamedTuple, Sequence, Tuple

from .loader import MODULE, missing


class Gpu(NamedTuple):
    """One GPU, as CUDA's driver describes it.

    Parameters
    ----------
    name : str
        Its product name.
    memory : int
        Its memory in bytes.
    architecture : int
        Its compute capability without the dot: 90 for 9.0.
    """

    name: str
    memory: int
    architecture: int


class Description(NamedTuple):
    """The result of `describe`.

    Parameters
    ----------
    built : bool
        Whether the module of the kernels exists.
    architectures : str
        The architectures of its machine code and of its PTX.
    compiler : str
        The version of nvcc.
    driver : str
        The newest CUDA version of the driver; empty without a driver.
    gpus : tuple of Gpu
        The GPUs.
    problem : str
        Why the kernels do not run, and the fix; empty if they do.
    """

    built: bool = False
    architectures: str = ""
    compiler: str = ""
    driver: str = ""
    gpus: Tuple[Gpu, ...] = ()
    problem: str = ""


_SECONDS = 20.0
# Without the package, because its import takes time.
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
    """Describe the CUDA kernels, the driver and the GPUs.

    Runs in a separate process: a driver that crashes or hangs becomes a problem like any other, and
    this process can still be forked.
    """
    try:
        spec = importlib.util.find_spec(MODULE)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return Description(problem=str(missing()))
    question = [sys.executable, "-c", _QUESTION, MODULE.rpartition(".")[2], spec.origin]
    try:
        answer = subprocess.run(
            question, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
        )
        found = json.loads(answer.stdout)
    except subprocess.TimeoutExpired:
        return Description(
            built=True,
            problem=f"CUDA's driver did not answer in {_SECONDS:g} s: check that nvidia-smi does",
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
    """Format CUDA's version number."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _problem(found: Mapping[str, Any], gpus: Sequence[Gpu]) -> str:
    if not found["driver"]:
        return "no NVIDIA driver is found: install one; start a container with access to the GPUs"
    # Minor versions of the same major version are compatible.
    if found["driver"] // 1000 < found["runtime"] // 1000:
        return (
            f"the driver supports CUDA {_version(found['driver'])}, the kernels need CUDA "
            f"{_version(found['runtime'])}: install a newer driver, or build with an older CUDA"
        )
    if "error" in found or not gpus:
        said = found.get("error", "CUDA: there is no device")
        return f"{said}; does nvidia-smi list a GPU, and does CUDA_VISIBLE_DEVICES hide it?"
    numbers = [int(number) for number in re.findall(r"\d+", found["architectures"])]
    for k, gpu in enumerate(gpus):
        if numbers and gpu.architecture < min(numbers):
            return (
                f"GPU {k}, {gpu.name}, has architecture {gpu.architecture}, the kernels need "
                f"{min(numbers)} or later: build with the CMake option "
                f"MXADAMAX_CUDA_ARCHITECTURES={gpu.architecture}"
            )
    return ""
