# SPDX-License-Identifier: Apache-2.0
"""Find the Pythons that are supported, as pyenv or the system has them.

    python3 scripts/pythons.py 3.9    prints the program of this one

noxfile.py, scripts/build_release.py and the scripts for other systems use it.
"""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parents[1]


def supported_pythons() -> List[str]:
    """List the versions of Python that pyproject.toml names, such as 3.8."""
    return re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())


def search_path() -> str:
    """Put the folders of pyenv's Pythons before PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    # pyenv puts shims on PATH, which refuse to run a Python that is not switched on.
    folders = [str(path) for path in sorted(pyenv.glob("versions/*/bin"))]
    return os.pathsep.join([*folders, os.environ["PATH"]])


def python_of(version: str) -> Optional[str]:
    """Find the program of a version of Python."""
    return shutil.which(f"python{version}", path=search_path())


if __name__ == "__main__":
    found = python_of(sys.argv[1])
    sys.exit(f"found no Python {sys.argv[1]}" if found is None else print(found))
