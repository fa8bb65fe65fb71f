# SPDX-License-Identifier: Apache-2.0
"""What a release is made from: the files of the sdist, one version, licences, tags."""

import platform
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Set

import pytest
from installed import installed_wheel

import mxadamax
from mxadamax import _native

ROOT = Path(__file__).resolve().parents[2]

SYMBOLS = runpy.run_path(str(ROOT / "scripts" / "symbol_versions.py"))

SOURCES = (".py", ".pyi", ".cc", ".h", ".cu", ".cmake", ".sh", "CMakeLists.txt", "Makefile", "run")
"""How the names of files end that begin with their licence."""


def files() -> Set[str]:
    """All files of the repository, also those that are to be committed."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs the repository and git")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> tarfile.TarFile:
    """An sdist of the files as they are, with what should not get into one beside them."""
    # Older ones do not read the names in pyproject.toml.
    pytest.importorskip("setuptools", minversion="64")
    folder = tmp_path_factory.mktemp("sdist")
    for name in files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for stray in ("mxadamax/_native.so", "tests/__pycache__/a.pyc", "examples/output/a.png"):
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / stray).touch()
    # The plain backend: that of pyproject.toml, which builds wheels, would have to be installed.
    code = "import setuptools.build_meta; setuptools.build_meta.build_sdist('dist')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with tarfile.open(next((folder / "dist").glob("*.tar.gz"))) as archive:
        yield archive


def test_the_sdist_has_all_files_and_no_others(sdist):
    found = {name.partition("/")[2] for name in sdist.getnames() if sdist.getmember(name).isfile()}
    made = {name for name in found if re.match(r"PKG-INFO$|setup\.cfg$|mxadamax\.egg-info/", name)}
    assert {"PKG-INFO", "mxadamax.egg-info/requires.txt"} <= made
    assert found - made == files() - {".gitignore"}


def test_the_version_is_the_one_in_the_package(sdist):
    name = f"mxadamax-{mxadamax.__version__}"
    assert sdist.getnames()[0] == name
    information = sdist.extractfile(f"{name}/PKG-INFO").read().decode()
    assert f"\nVersion: {mxadamax.__version__}\n" in information


def test_the_version_is_written_once():
    version = re.compile(
        rf"""(version\W+|__version__ = ["']){re.escape(mxadamax.__version__)}\b""", re.I
    )
    places = {
        name
        for name in files()
        if name.endswith((".py", ".toml", ".txt", ".in", ".cmake"))
        and version.search((ROOT / name).read_text())
    }
    assert places == {"mxadamax/__init__.py"}


def test_every_source_file_names_its_licence():
    sources = sorted(name for name in files() if name.endswith(SOURCES))
    assert len(sources) > 80
    without = [
        name
        for name in sources
        if not re.match(
            r"(#!.*\n)?(//|#) SPDX-License-Identifier: Apache-2\.0\n", (ROOT / name).read_text()
        )
    ]
    assert not without


def test_the_binary_does_not_tell_where_it_was_built():
    binary = Path(_native.__file__).read_bytes()
    if b".gcda" in binary:
        pytest.skip("a build that counts what it runs says where to write that down")
    # So that what is looked for would be found, if it were there.
    assert b"MXADAMAX_INSTRUCTION_SET" in binary
    assert str(ROOT).encode() not in binary


@pytest.fixture(scope="module")
def listing() -> str:
    """What the binary takes from libraries and has for others."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump, of GNU binutils")
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        pytest.skip("MXNet's wheels are for x86-64 and glibc")
    path = Path(_native.__file__)
    if b".gcda" in path.read_bytes():
        pytest.skip("a build that counts what it runs uses more libraries, and is not optimized")
    return SYMBOLS["listing_of"](path)


def test_the_binary_loads_on_systems_as_old_as_those_of_mxnet(listing):
    assert {"GLIBC", "GLIBCXX", "CXXABI"} <= set(SYMBOLS["highest"](listing))
    assert not SYMBOLS["too_new"](listing)


def test_the_binary_gives_nothing_away(listing):
    # libstdc++ would call it in place of its own.
    assert "PyInit__native" in listing
    assert not SYMBOLS["given_away"](listing)


def test_symbols_that_are_too_new_are_named():
    listing = """
DYNAMIC SYMBOL TABLE:
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.14) memcpy
0000000000000000      D  *UND*\t0000000000000000  Base        PyExc_ValueError
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.34) pthread_once
0000000000000000      DO *UND*\t0000000000000000  GLIBC_2.32  __libc_single_threaded
0000000000000000  w   DF *UND*\t0000000000000000 (CXXABI_1.3.9) _ZdlPvm
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_PRIVATE) __libc_alloca_cutoff
0000000000000000      DF *UND*\t0000000000000000 (ZLIB_1.2.9) gzfread
000000000005f470 g    DF .text\t00000000000001e5  Base        PyInit__native
000000000005f570 g    DF .text\t0000000000000011  Base        powf
000000000005f580  w   DF .text\t0000000000000011  Base        _ZNSt13runtime_errorC1EPKc
"""
    assert SYMBOLS["too_new"](listing) == [
        "pthread_once needs GLIBC_2.34",
        "__libc_single_threaded needs GLIBC_2.32",
        "_ZdlPvm needs CXXABI_1.3.9",
        "__libc_alloca_cutoff needs GLIBC_PRIVATE",
        "gzfread needs ZLIB_1.2.9",
    ]
    assert SYMBOLS["highest"](listing) == {"GLIBC": (2, 34), "CXXABI": (1, 3, 9)}
    assert SYMBOLS["given_away"](listing) == ["powf", "_ZNSt13runtime_errorC1EPKc"]


def test_an_installed_wheel_is_for_this_python_and_brings_no_libraries():
    wheel = installed_wheel()
    tags = re.findall(r"^Tag: (.*)$", wheel.read_text("WHEEL"), re.MULTILINE)
    python = "cp{}{}".format(*sys.version_info[:2])
    assert tags
    assert all(re.fullmatch(rf"{python}-{python}-(many)?linux\w+", tag) for tag in tags)
    libraries = [str(path) for path in wheel.files if ".so" in path.name]
    assert libraries and all(path.startswith("mxadamax/_native.") for path in libraries)
    assert {"mxadamax/_native.pyi", "mxadamax/py.typed"} <= set(map(str, wheel.files))
