# SPDX-License-Identifier: Apache-2.0
"""A broken installation ends in one sentence that says what was found and what to do.

Each test breaks a copy of what is installed, made of links, and looks at it as a user does: by an
import, by ``mxadamax info``, and by ``mxadamax run``, under which the program goes on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable

import mxnet as mx
import numpy as np
import pytest
from common import NUMPY_BOOL

import mxadamax
from mxadamax import _native, shared_library
from mxadamax._mxnet import installation
from mxadamax._mxnet.versions import MXNETS
from mxadamax.commands import info

PACKAGE = Path(mxadamax.__file__).resolve().parent
VERSION = next(name for name in MXNETS if name.split(".post")[0].replace("b", "beta") == mx.__version__)  # fmt: skip
NATIVE = Path(_native.__file__).name

ONLY_THIS_FOLDER = """
import sys
sys.path[:] = [path for path in sys.path if not path.endswith("-packages")]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
"""

PROGRAM = f"""{NUMPY_BOOL}
try:
    import mxnet
except Exception as error:
    pass
print("goes on")
"""

RUN = "import sys, mxadamax_hook; sys.argv[1:] = ['run', 'program.py']; mxadamax_hook.main()"


def link_all(source: Path, target: Path, without: str = r"$^") -> None:
    """Make a folder of links to what is in another."""
    target.mkdir()
    for path in source.iterdir():
        if not re.match(without, path.name):
            os.symlink(path, target / path.name)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder like that of the installed packages, whose MXNet and mxadamax can be changed."""
    folder = tmp_path / "site"
    own = r"mxnet$|mxadamax|__pycache__|sitecustomize|.*\.pth$"
    link_all(Path(np.__file__).resolve().parents[1], folder, without=own)
    link_all(Path(mx.__file__).resolve().parent, folder / "mxnet")
    shutil.copytree(PACKAGE, folder / "mxadamax", ignore=shutil.ignore_patterns("*.so", "__pycache__"))  # fmt: skip
    os.symlink(_native.__file__, folder / "mxadamax" / NATIVE)
    os.symlink(PACKAGE.parent / "mxadamax_hook", folder / "mxadamax_hook")
    (folder / "sitecustomize.py").write_text(ONLY_THIS_FOLDER)
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "program.py").write_text(PROGRAM)
    return folder


def run(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    hidden = str(Path(__file__).resolve().parents[1] / "support" / "hidden")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=site.parent / "cwd",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(site), hidden]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "1000",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def error_of(site: Path, code: str, **environment: str) -> str:
    """The last line of a program that fails, which is all that many users read."""
    done = run(site, "-c", code, **environment)
    assert done.returncode == 1, done.stdout
    return done.stderr.strip().splitlines()[-1]


def problems_of(site: Path, **environment: str) -> list[str]:
    done = run(site, "-m", "mxadamax", "info", **environment)
    assert "Traceback" not in done.stderr, done.stderr
    found = re.findall(r"^problem: (.*)", done.stdout, re.MULTILINE)
    # This one depends on what else is installed with the tests.
    found = [problem for problem in found if not problem.startswith("rich cannot be imported")]
    assert done.returncode == (1 if found else 0) or "rich cannot" in done.stdout
    return found


def replace(file: Path, content: bytes | str) -> None:
    """Write a file anew: not through a link into what is installed."""
    file.unlink()
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def machine_code(needs: str = "", processor: int = 0, bytes_less: int = 0) -> bytes:
    """A small shared library: it needs another, or is of another processor, or truncated."""
    code = bytearray(Path(_native.__file__).read_bytes())
    name = b"libstdc++.so.6"
    assert name + b"\0" in code and len(needs) <= len(name)
    if needs:
        code = code.replace(name + b"\0", needs.encode().ljust(len(name) + 1, b"\0"))
    if processor:
        code[18:20] = processor.to_bytes(2, sys.byteorder)
    return bytes(code[: len(code) - bytes_less])


def library_is(content: bytes) -> Callable[[Path], None]:
    return lambda site: replace(site / "mxnet" / "libmxnet.so", content)


def without(name: str) -> Callable[[Path], None]:
    return lambda site: (site / name).unlink()


def files_of_two_versions(site: Path) -> None:
    """Python files and library of two versions, which breaks some later import."""
    versions_differ(site)
    replace(site / "mxnet" / "initializer.py", "raise ValueError('Cannot find operator all')")


def versions_differ(site: Path) -> None:
    libinfo = site / "mxnet" / "libinfo.py"
    replace(libinfo, libinfo.read_text() + "\n__version__ = '0.12.1'\n")


def second_flavour(site: Path) -> None:
    """As any installer leaves it: with a list of files, and without what only setuptools writes."""
    made = site / "mxnet_cu112-1.9.1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: mxnet-cu112\nVersion: 1.9.1\n")
    (made / "RECORD").write_text("mxnet/__init__.py,,\n")


def two_flavours_without_library(site: Path) -> None:
    second_flavour(site)
    (site / "mxnet" / "libmxnet.so").unlink()


def leftover_folder(site: Path) -> None:
    """What remains after one of two flavours was uninstalled."""
    shutil.rmtree(site / "mxnet")
    (site / "mxnet" / "contrib").mkdir(parents=True)


def script_of_this_name(site: Path) -> None:
    (site.parent / "cwd" / "mxnet.py").write_text("print('trains')\n")


def warnings_are_errors(site: Path) -> None:
    warn = "import warnings\nwarnings.warn('will change', FutureWarning)\n"
    replace(site / "mxnet" / "initializer.py", warn)
    hook = site / "sitecustomize.py"
    hook.write_text(
        f"import warnings\nwarnings.simplefilter('error', FutureWarning)\n{ONLY_THIS_FOLDER}"
    )


def failing_script_of_this_name(site: Path) -> None:
    (site.parent / "cwd" / "mxnet.py").write_text("raise ValueError('no such file: data.csv')\n")


ANEW = rf"install MXNet anew: pip install --force-reinstall --no-deps mxnet=={re.escape(VERSION)}"
FAILS = r"mxadamax: MXNet cannot be imported from \S+/site/mxnet \({}\), nor by python -c 'import mxnet': {}"
LIBRARY = r"mxadamax: MXNet's library \S+/site/mxnet/libmxnet\.so {}: " + ANEW
NO_FILE = r"OSError: {}: cannot open shared object file: No such file or directory"
UNINSTALL = (
    rf"mxnet {re.escape(VERSION)} and mxnet-cu112 1\.9\.1 are installed over each other: "
    r"pip uninstall mxnet mxnet-cu112, then install one of them"
)
SITUATIONS = {
    "no CUDA": (
        library_is(machine_code(needs="libcudnn.so.8")),
        FAILS.format(NO_FILE.format(r"libcudnn\.so\.8"), "install NVIDIA's driver, CUDA, .*"),
    ),
    "no libquadmath": (
        library_is(machine_code(needs="libquadmath.so")),
        FAILS.format(
            NO_FILE.format(r"libquadmath\.so"),
            "install GCC's library of quadruple precision: libquadmath0 on .*",
        ),
    ),
    "no other library": (
        library_is(machine_code(needs="libgone.so.3")),
        FAILS.format(
            NO_FILE.format(r"libgone\.so\.3"),
            rf"install the package of this system that has libgone\.so\.3, or {ANEW}",
        ),
    ),
    "no library": (
        without("mxnet/libmxnet.so"),
        FAILS.format("RuntimeError: Cannot find the MXNet library.", ANEW),
    ),
    "a library that is none": (
        library_is(b"version https://git-lfs.github.com/spec/v1"),
        LIBRARY.format("is damaged: it is no shared library"),
    ),
    "a library of another processor": (
        library_is(machine_code(processor=40)),
        LIBRARY.format(r"is for another processor: number 40 of ELF, and this Python is \w+"),
    ),
    "no base": (
        without("mxnet/base.py"),
        FAILS.format("ModuleNotFoundError: No module named 'mxnet.base'", ANEW),
    ),
    "a folder": (leftover_folder, rf"mxadamax: \S+/site/mxnet is not MXNet: {ANEW}"),
    "a script": (
        script_of_this_name,
        r"mxadamax: \S+/cwd/mxnet\.py is not MXNet: rename \S+/mxnet\.py, which hides MXNet",
    ),
    "a script that fails": (
        failing_script_of_this_name,
        FAILS.replace("site/mxnet", r"cwd/mxnet\.py").format(
            r"ValueError: no such file: data\.csv", r"rename \S+/mxnet\.py, which hides MXNet"
        ),
    ),
    "another package": (
        without("requests"),
        FAILS.format(
            "ModuleNotFoundError: No module named 'requests'",
            "it needs requests: pip install requests",
        ),
    ),
    "a warning": (
        warnings_are_errors,
        FAILS.format(
            "FutureWarning: will change",
            "it warns, and warnings are errors here: ignore those in modules of MXNet",
        ),
    ),
    "two versions": (
        files_of_two_versions,
        FAILS.format(
            "ValueError: Cannot find operator all",
            r"MXNet's Python files are of version 0\.12\.1, and \S+/libmxnet\.so is of "
            rf"{mx.__version__.split('beta')[0]}: {ANEW}",
        ),
    ),
    "two flavours": (
        two_flavours_without_library,
        FAILS.format("RuntimeError: Cannot find the MXNet library.", UNINSTALL),
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_broken_mxnet(situation, site):
    break_it, message = SITUATIONS[situation]
    break_it(site)
    assert re.fullmatch(f"ImportError: {message}", error_of(site, "import mxadamax"))
    (problem,) = problems_of(site)
    assert re.fullmatch(message, problem)


# Those that break it before its longest imports.
EARLY = ["no CUDA", "no library", "no base", "a folder", "a script that fails", "two flavours"]


@pytest.mark.parametrize("situation", EARLY)
def test_a_program_goes_on_with_a_broken_mxnet(situation, site):
    """As without mxadamax: MXNet's own error is the program's to handle."""
    break_it, _ = SITUATIONS[situation]
    break_it(site)
    done = run(site, "-c", RUN)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
    (line,) = done.stderr.splitlines()
    fails = "import mxnet fails; mxadamax info says why, and what to do"
    folder = "mxnet is a folder without MXNet; mxadamax info says what to do"
    assert re.fullmatch(f"mxadamax: not accelerated: ({fails}|{folder})", line)
    assert (folder in line) == (situation == "a folder")


def test_the_error_of_mxnet_is_the_cause(site):
    (site / "mxnet" / "libmxnet.so").unlink()
    code = """
try:
    import mxadamax
except ImportError as error:
    print(repr(error.__cause__))
"""
    assert run(site, "-c", code).stdout.startswith("RuntimeError('Cannot find the MXNet library.")


@pytest.mark.parametrize("command", [("info",), ("verify",)])
def test_a_truncated_library_does_not_end_the_process(command, site):
    """The system would, by a signal."""
    # Of what the header promises: the loader would map a library this short without a word.
    replace(site / "mxnet" / "libmxnet.so", machine_code(bytes_less=100))
    done = run(site, "-m", "mxadamax", *command)
    assert done.returncode == 1, done.stderr
    size = os.path.getsize(_native.__file__)
    message = LIBRARY.format(rf"is truncated: it has {size - 100} bytes of {size}")
    assert re.search(f"^problem: {message}$", done.stdout, re.MULTILINE)


def test_a_library_of_another_folder(site):
    """MXNet prefers it to its own, which `info` would blame."""
    other = site.parent / "other"
    other.mkdir()
    (other / "libmxnet.so").write_bytes(machine_code(processor=40))
    error = error_of(site, "import mxadamax", LD_LIBRARY_PATH=f"/not/there:{other}")
    assert error.startswith(
        f"ImportError: mxadamax: MXNet's library {other}/libmxnet.so is for another"
    )
    assert error.endswith(f"take {other}/libmxnet.so out of LD_LIBRARY_PATH and MXNET_LIBRARY_PATH")
    named = error_of(site, "import mxadamax", MXNET_LIBRARY_PATH=str(other / "libmxnet.so"))
    assert named == error


def test_two_flavours_that_work(site):
    """Only `info` says so: the last one that was installed can be whole."""
    second_flavour(site)
    done = run(site, "-c", "import mxadamax; print(mxadamax.Adam().lr)")
    assert done.returncode == 0, done.stderr
    assert "mxnet-cu112" not in done.stderr
    (problem,) = problems_of(site)
    assert re.fullmatch(UNINSTALL, problem)


def test_two_versions_that_work(site):
    versions_differ(site)
    (problem,) = [problem for problem in problems_of(site) if "files are of" in problem]
    assert problem.startswith("MXNet's Python files are of version 0.12.1, and ")
    assert re.search(f": {ANEW}$", problem)


def test_files_that_are_gone(site):
    """pip would say that MXNet is installed already."""
    shutil.rmtree(site / "mxnet")
    message = rf"mxadamax needs Apache MXNet: {ANEW}; only mxadamax\.cuda works without"
    assert re.fullmatch(f"ImportError: {message}", error_of(site, "import mxadamax; mxadamax.Adam"))
    (problem,) = problems_of(site)
    assert re.fullmatch(message, problem)
    done = run(site, "-m", "mxadamax", "verify")
    assert re.fullmatch(f"mxadamax verify: {message}", done.stderr.strip())


def test_a_distribution_of_another_folder_is_not_over_this_one(site, monkeypatch, tmp_path):
    second_flavour(site)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mxnet_cu112-1.9.1.dist-info").symlink_to(site / "mxnet_cu112-1.9.1.dist-info")
    assert installation.distributions() == [f"mxnet {VERSION}"]


def test_a_numpy_of_another_python(site):
    """PYTHONPATH leads to the packages of another Python."""
    (site / "numpy").unlink()
    link_all(Path(np.__file__).resolve().parent, site / "numpy", without="core$|_core$")
    core = Path(np.core.__file__).resolve().parent
    link_all(core, site / "numpy" / core.name, without=r"_multiarray_umath\.")
    message = (
        r"mxadamax: NumPy cannot be imported \(ImportError: .*\): install it for this Python: "
        rf"{re.escape(sys.executable)} -m pip install --force-reinstall 'numpy(<1\.24|>=1\.26,<2)'"
    )
    assert re.fullmatch(f"ImportError: {message}", error_of(site, "import mxadamax"))
    assert any(re.fullmatch(message, problem) for problem in problems_of(site))


def test_an_old_python(site):
    code = "import sys; sys.version_info = (3, 7, 16); sys.version = '3.7.16 (default)'; import mxadamax"
    assert error_of(site, code) == (
        "ImportError: mxadamax needs Python 3.8 or later, this is 3.7.16: install mxadamax and "
        "MXNet with another Python"
    )


# The compiled modules of mxadamax.


MODULES = {
    "another processor": (
        machine_code(processor=40),
        r"is for another processor: number 40 of ELF, .*",
    ),
    "truncated": (machine_code(bytes_less=100), r"is truncated: it has \d+ bytes of \d+"),
    "empty": (b"", "is damaged: it is no shared library"),
    "no library": (
        machine_code(needs="libgone.so.3"),
        r"cannot be loaded \(libgone\.so\.3: cannot .*\)",
    ),
}


def break_module(case: str, name: str, site: Path) -> str:
    """Break a compiled module; the message that it ends in."""
    content, found = MODULES[case]
    file = site / "mxadamax" / NATIVE.replace("_native", name)
    if file.exists():
        file.unlink()
    file.write_bytes(content)
    do = r"install mxadamax anew: \S+ -m pip install --force-reinstall --no-deps WHEEL, with the wheel for this Python and processor or the folder of the sources"
    if case == "no library":
        do = rf"install the package of this system that has libgone\.so\.3, or {do}"
    return rf"mxadamax: the compiled module {re.escape(str(file))} {found}: {do}"


@pytest.mark.parametrize("case", MODULES)
@pytest.mark.parametrize("name", ["_native", "_cuda"])
def test_a_compiled_module_that_does_not_load(name, case, site):
    message = break_module(case, name, site)
    error = error_of(site, "import mxadamax.cuda; mxadamax.cuda.kernels()")
    assert re.fullmatch(f"ImportError: {message}", error)


def test_a_broken_module_in_the_tools(site):
    message = break_module("another processor", "_native", site)
    (problem,) = problems_of(site)
    assert re.fullmatch(message, problem)
    done = run(site, "-c", RUN)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
    assert re.search(
        f"^mxadamax: not accelerated: ImportError: {message}$", done.stderr, re.MULTILINE
    )
    assert done.stderr.count("mxadamax: not accelerated") == 1


def test_cuda_kernels_of_another_python(site):
    """They are built, so nobody has to install nvcc."""
    other = "_cuda.cpython-27-x86_64-linux-gnu.so"
    (site / "mxadamax" / other).write_bytes(b"")
    said = f"{site}/mxadamax holds {other}, compiled for another Python; this one loads _cuda."
    code = "import mxadamax.cuda; print(mxadamax.cuda.describe().problem); mxadamax.cuda.kernels()"
    done = run(site, "-c", code)
    problem = done.stdout.strip()
    assert said in problem and "install mxadamax anew" in problem
    assert done.stderr.strip().splitlines()[-1] == f"ImportError: {problem}"


@pytest.mark.parametrize("number", [3, 62, 183])
def test_processors_have_names(number, tmp_path):
    file = tmp_path / "library.so"
    file.write_bytes(machine_code(processor=number))
    assert "number" not in shared_library.fault(file)
    assert shared_library.fault(Path(_native.__file__)) == ""
    # A file that cannot be read is the loader's to refuse.
    assert shared_library.fault(tmp_path) == ""


def test_a_newer_python_is_only_a_hint(monkeypatch):
    monkeypatch.setattr(info, "PYTHONS", ((3, 0), (3, 1)))
    report = info.Report()
    info.look_at_python(report)
    assert report.problems == []
    assert "has not been tried; mxadamax verify compares every optimizer" in report.hints[0]


@pytest.mark.parametrize(
    ("version", "lacks"), [("1.23.5", False), ("1.24.0", True), ("1.26.4", True), ("2.0.0", False)]
)
def test_info_says_which_import_comes_first(version, lacks, monkeypatch):
    monkeypatch.setattr(np, "__version__", version)
    report = info.Report()
    info.look_at_numpy(report)
    assert any("import mxadamax before mxnet" in hint for hint in report.hints) == lacks
