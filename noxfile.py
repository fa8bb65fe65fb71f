# SPDX-License-Identifier: Apache-2.0
"""The tests on every Python and every MXNet that is supported, with an installed wheel.

MXNets without an extra are tested on the oldest Python alone.

``nox --list`` shows the combinations. A Python that is not found is skipped, and nox says so.

    nox -s quick              imports, bits, training: a minute or two for each
    nox -s quick -p 3.8       the same for one Python
    nox -s quick -- dist      the same with the sdist and the wheels in a folder
    nox -s "tests(python='3.9', mxnet='1.9.1')"   the whole suite for one
    nox -s ci                 what decides whether a change lands, beside `make test`
"""

import os
import runpy
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Dict

import nox

ROOT = Path(__file__).resolve().parent
_pythons = runpy.run_path(str(ROOT / "scripts/pythons.py"))
os.environ["PATH"] = _pythons["search_path"]()
PYTHONS = _pythons["supported_pythons"]()
EXTRAS = {"2.0.0b1": "mxnet", "1.9.1": "mxnet1"}
"""The extra in pyproject.toml that brings an MXNet along."""

MXNETS = runpy.run_path(str(ROOT / "mxadamax/_mxnet/versions.py"))["MXNETS"]
COMBINATIONS = [
    *((python, mxnet) for python in PYTHONS for mxnet in EXTRAS),
    # The others are older than most of these Pythons.
    *((PYTHONS[0], mxnet) for mxnet in MXNETS if mxnet not in EXTRAS),
]

QUICK = [
    "system/test_install.py",
    "system/test_broken_installations.py",
    "system/test_import_order.py",
    "tools/test_release.py",
    "kernels/test_stubs.py",
    "optimizers/test_bad_input.py",
    "kernels/test_scalars.py",
    "kernels/test_half_precision.py",
    "optimizers/test_parity.py::test_not_a_number_and_infinite_gradients",
    "optimizers/test_parity.py::test_options",
    "system/test_training.py::test_trainer",
    "system/test_training.py::test_two_devices",
    "system/test_training.py::test_saved_states_continue_to_the_bit",
    "system/test_training.py::test_exit_with_an_update_under_way",
    "checkpoints/test_checkpoints.py::test_goes_on_where_the_built_in_stopped",
    "checkpoints/test_checkpoints.py::test_truncated_files",
    "system/test_trainer.py::test_changes_between_steps",
    "system/test_unmodified_programs.py::test_the_same_program_in_both_ways",
]
"""Import, bits, training, checkpoints; the rest hardly depends on the Python."""

nox.options.sessions = ["quick"]
nox.options.default_venv_backend = "venv"
nox.options.envdir = "build/nox"
# Where CI is set, nox would take a Python that is not there for a failure.
nox.options.error_on_missing_interpreters = False

_found: Dict[str, Path] = {}
"""The sdist, and by their Python the wheels and those with what only tests need."""


def given(session: nox.Session, pattern: str) -> Path:
    """Find the file of a pattern in the folder that the command line names."""
    found = list(ROOT.joinpath(session.posargs[0]).glob(pattern))
    if len(found) != 1:
        session.error(f"found {len(found)} of {pattern} in {session.posargs[0]}")
    return found[0]


def sdist(session: nox.Session) -> Path:
    """Build the sdist, once: wheels are made from it, and the tests that it has are run."""
    if "sdist" not in _found:
        built = ROOT / nox.options.envdir / "sdist"
        shutil.rmtree(built, ignore_errors=True)
        if session.posargs:
            built.mkdir(parents=True)
            shutil.copy(given(session, "*.tar.gz"), built)
        else:
            session.run(
                *(sys.executable, "-m", "build", "--sdist", "--outdir", str(built), str(ROOT)),
                external=True,
            )
        (_found["sdist"],) = built.glob("*.tar.gz")
        shutil.unpack_archive(_found["sdist"], built)
    return _found["sdist"]


def build_wheel(session: nox.Session, folder: str, *options: str) -> Path:
    """Build a wheel of the sdist, with options for CMake, in a folder of the session."""
    built = Path(session.create_tmp(), folder)
    shutil.rmtree(built, ignore_errors=True)
    defined = os.environ.get("SKBUILD_CMAKE_DEFINE")
    session.run(
        *("pip", "wheel", "--no-deps", "--wheel-dir", str(built), str(sdist(session))),
        env={"SKBUILD_CMAKE_DEFINE": ";".join(filter(None, [defined, *options]))},
    )
    (found,) = built.glob("*.whl")
    return found


def wheel(session: nox.Session) -> Path:
    """Build the wheel for the Python of a session, once, or find it."""
    python = str(session.python)
    if python not in _found:
        if session.posargs:
            _found[python] = given(session, f"*-cp{python.replace('.', '')}-*.whl")
        else:
            # The kernels for GPUs depend neither on the Python nor on the MXNet, and take longest
            # to compile.
            _found[python] = build_wheel(session, "wheel", "MXADAMAX_CUDA=OFF")
    return _found[python]


def add_testing_module(session: nox.Session) -> None:
    """Put what only tests need, which no wheel has, beside the installed module."""
    code = "import sysconfig; print(sysconfig.get_path('platlib'))"
    folder = session.run("python", "-c", code, silent=True).strip()
    built = f"testing for {session.python}"
    if built not in _found:
        _found[built] = build_wheel(session, "testing", "MXADAMAX_TESTING=ONLY")
    with zipfile.ZipFile(_found[built]) as archive:
        (name,) = (name for name in archive.namelist() if "/_native_testing." in name)
        archive.extract(name, folder)


def run_tests(
    session: nox.Session, mxnet: str, extras: str, *tests: str, marked: str = "not long"
) -> None:
    """Install the wheel with an MXNet and run the tests of the sdist."""
    extra = EXTRAS.get(mxnet, "mxnet-needs")
    session.install(f"mxnet=={mxnet}", f"{wheel(session)}[{extra},{extras}]")
    add_testing_module(session)
    (unpacked,) = filter(Path.is_dir, sdist(session).parent.iterdir())
    session.chdir(session.create_tmp())
    session.run(
        *("pytest", "-c", str(unpacked / "pyproject.toml"), "-p", "no:cacheprovider"),
        *("--numprocesses", "auto", "--dist", "worksteal", "-m", marked),
        *(str(unpacked / "tests" / test) for test in tests),
        # One that leads to the sources would hide the wheel.
        env={"PYTHONPATH": ""},
    )


@nox.session
@nox.parametrize("python,mxnet", COMBINATIONS)
def quick(session: nox.Session, mxnet: str) -> None:
    """What shows that a combination works."""
    run_tests(session, mxnet, "test", *QUICK)


@nox.session
@nox.parametrize("python,mxnet", COMBINATIONS)
def tests(session: nox.Session, mxnet: str) -> None:
    """The whole suite."""
    run_tests(session, mxnet, "test,examples,plot", "")


@nox.session(python="3.11")
@nox.parametrize("mxnet", list(EXTRAS))
def long(session: nox.Session, mxnet: str) -> None:
    """The tests that are left out everywhere else: 300 steps of every optimizer, by all kernels."""
    run_tests(session, mxnet, "test", "optimizers/test_long_parity.py", marked="long")


PROGRAMS = {
    "autogluon_tabular": ["autogluon.tabular==0.3.1"],
    "gluonts_forecasts": ["gluonts==0.14.4"],
    "gluoncv_images": ["gluoncv==0.10.5.post0"],
    "gluonnlp_language_model": ["cython", "gluonnlp==0.10.0"],
    "module_fit": [],
}
"""Programs in tests/programs, and what each needs."""


@nox.session(python=PYTHONS[0])
@nox.parametrize("program", list(PROGRAMS))
def programs(session: nox.Session, program: str) -> None:
    """Programs of others, plainly and accelerated: the same bits."""
    session.install(f"{wheel(session)}[mxnet1]", *PROGRAMS[program])
    (unpacked,) = filter(Path.is_dir, sdist(session).parent.iterdir())
    session.run(
        *("python", str(unpacked / "scripts" / "compare_programs.py")),
        str(unpacked / "tests" / "programs" / f"{program}.py"),
        env={"PYTHONPATH": ""},
    )


@nox.session(python=False)
def ci(session: nox.Session) -> None:
    """The quick tests where most differs from `make test`: the oldest Python, the older MXNet.

    All combinations take ten times as long: `quick`.
    """
    found = [python for python in PYTHONS if shutil.which(f"python{python}")]
    if not found:
        session.error(f"found none of Python {', '.join(PYTHONS)}")
    # The kernels do not depend on the Python: `make test` has those of all instruction sets.
    defined = os.environ.get("SKBUILD_CMAKE_DEFINE")
    os.environ["SKBUILD_CMAKE_DEFINE"] = ";".join(
        filter(None, [defined, "MXADAMAX_BASELINE_ONLY=ON"])
    )
    session.notify(f"quick(python='{found[0]}', mxnet='1.9.1')")
