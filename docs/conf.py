# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the documentation: `make docs`. Nothing is fetched from a network."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "mxadamax"
(version,) = re.findall(r'__version__ = "(.*)"', (ROOT / "mxadamax" / "__init__.py").read_text())
release = version

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"mxadamax {version}"
html_copy_source = False
html_show_copyright = False

# What docstrings put in single backquotes are names of arguments and the like.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_ivar = True
