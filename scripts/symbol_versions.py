# SPDX-License-Identifier: Apache-2.0
"""Name what a compiled module needs of newer libraries than MXNet's own wheels do.

    python scripts/symbol_versions.py mxadamax/_native.*.so

Its symbols carry the version of the library that first had them; one version that an old system's
library does not know, and the module does not load there. Needs objdump, of GNU binutils.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Tuple

Version = Tuple[int, ...]

NEWEST = {
    "GLIBC": (2, 17),
    "GLIBCXX": (3, 4, 19),
    "CXXABI": (1, 3, 7),
    "GCC": (4, 8, 0),
    # No part of manylinux2014. These are what MXNet's wheels need.
    "GOMP": (4, 0),
    "OMP": (4, 0),
}
"""The newest versions that manylinux2014 allows, by the names that libraries give them."""


def symbols(listing: str) -> List[Tuple[str, str]]:
    """Find the symbols, each with its version, that a module takes from libraries.

    Parameters
    ----------
    listing : str
        What ``objdump -T`` prints about the module.
    """
    needed = re.findall(r"\*UND\*\s+[0-9a-f]+\s+(?:\((\S+)\)|([A-Z]+_\S+))\s+(\S+)$", listing, re.M)
    return [(symbol, hidden or version) for hidden, version, symbol in needed]


def known(version: str) -> Tuple[str, Version]:
    """Split a version of a kind in `NEWEST`; one of another kind, or without a number, has none."""
    kind, _, number = version.partition("_")
    is_known = kind in NEWEST and re.fullmatch(r"[\d.]+", number)
    return kind, tuple(map(int, number.split("."))) if is_known else ()


def highest(listing: str) -> Dict[str, Version]:
    """Find the highest version that a module needs of each kind in `NEWEST`."""
    found: Dict[str, Version] = {}
    for _, version in symbols(listing):
        kind, number = known(version)
        if number:
            found[kind] = max(found.get(kind, ()), number)
    return found


def too_new(listing: str) -> List[str]:
    """Name the symbols that are newer than `NEWEST` allows, or of no library that it knows.

    Parameters
    ----------
    listing : str
        What ``objdump -T`` prints about the module.
    """
    found = []
    for symbol, version in symbols(listing):
        kind, number = known(version)
        if not number or number > NEWEST[kind]:
            found.append(f"{symbol} needs {version}")
    return found


def given_away(listing: str) -> List[str]:
    """Name what a module has for others, beside Python's entry.

    Parameters
    ----------
    listing : str
        What ``objdump -T`` prints about the module.
    """
    defined = re.findall(r"^[0-9a-f]+ [guw ]{2}.{5}\s+(?!\*UND\*)\S+\s.*?(\S+)$", listing, re.M)
    return [symbol for symbol in defined if not symbol.startswith("PyInit_")]


def listing_of(module: Path) -> str:
    """List the symbols of a module."""
    command = ["objdump", "--dynamic-syms", str(module)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Run the script."""
    failed = 0
    for name in sys.argv[1:]:
        listing = listing_of(Path(name))
        for problem in too_new(listing):
            print(f"{name}: {problem}, which is newer than manylinux2014", file=sys.stderr)
            failed = 1
        for symbol in given_away(listing):
            print(f"{name}: {symbol} is exported, see csrc/python/module.map", file=sys.stderr)
            failed = 1
        versions = sorted(highest(listing).items())
        print(name, *(f"{kind}_{'.'.join(map(str, number))}" for kind, number in versions))
    return failed


if __name__ == "__main__":
    sys.exit(main())
