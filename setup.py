# SPDX-License-Identifier: Apache-2.0
"""Build entry: CMakeLists.txt says what is built, pyproject.toml what the package is."""

from setuptools import setup

setup(packages=["mxadamax"], cmake_source_dir=".")
