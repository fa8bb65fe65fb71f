"""Build entry: CMakeLists.txt says what is built, pyproject.toml what the package is."""

from setuptools import setup

setup(
    packages=["mxadamax", "mxadamax.commands", "mxadamax.commands.bench"],
    cmake_source_dir=".",
)
