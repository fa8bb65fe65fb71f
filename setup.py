# SPDX-License-Identifier: Apache-2.0
"""Build entry: CMakeLists.txt says what is built, pyproject.toml what the package is."""

from setuptools import find_packages, setup

setup(packages=find_packages(include=["mxadamax*"]), cmake_source_dir=".")
