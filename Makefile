# SPDX-License-Identifier: Apache-2.0
# Everything a fresh machine needs beyond Python, pip, a C++17 compiler and make lands in $(VENV).
PYTHON ?= python3
VENV ?= .venv
SESSION ?= quick
# The same definitions for CMake, and one more.
DEFINE = SKBUILD_CMAKE_DEFINE="$(1)$${SKBUILD_CMAKE_DEFINE:+;$$SKBUILD_CMAKE_DEFINE}"
SOURCES := $(wildcard CMakeLists.txt setup.py pyproject.toml csrc/*.* csrc/*/*.*)

.PHONY: train test matrix benchmark docs lint tidy clean

train: $(VENV)/installed
	$(VENV)/bin/python examples/train_mnist.py --optimizer adamax adamax_ext

test: $(VENV)/installed
	$(VENV)/bin/pytest --numprocesses auto --dist worksteal

# With every Python and every MXNet, as noxfile.py says.
matrix: $(VENV)/installed
	$(VENV)/bin/pip install --quiet build nox
	$(VENV)/bin/nox --session "$(SESSION)"

benchmark: $(VENV)/installed
	$(VENV)/bin/mxadamax bench

# Needs Python 3.11 or later; nothing is fetched.
docs: $(VENV)/installed
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs

lint: $(VENV)/installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror \
	  $(wildcard csrc/*.cc csrc/*.h csrc/*/*.cc csrc/*/*.cu csrc/*/*.h)
	$(VENV)/bin/mypy
	$(MAKE) --no-print-directory tidy

# clang-tidy brings no omp.h along: the compiler's is found, after all of clang's own headers. In that an
# attribute has arguments, which clang does not know.
tidy: $(VENV)/installed
	$(VENV)/bin/cmake -S . -B build/tidy -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DMXADAMAX_CUDA=OFF \
	  -DPython_EXECUTABLE=$(abspath $(VENV)/bin/python) \
	  -Dpybind11_DIR="$$($(VENV)/bin/pybind11-config --cmakedir)" > /dev/null
	printf '%s\n' $(wildcard csrc/*.cc csrc/cpu/*.cc csrc/engine/*.cc) | \
	  xargs --max-procs="$$(nproc)" --max-args=1 $(VENV)/bin/clang-tidy -p build/tidy --quiet \
	  --extra-arg=-idirafter"$$($(CXX) -print-file-name=include)" '--extra-arg=-D__malloc__(...)='

$(VENV)/installed: $(SOURCES)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(call DEFINE,MXADAMAX_CUDA_ON_HOST=ON) \
	  $(VENV)/bin/pip install --quiet --editable '.[mxnet,examples,test,plot,docs,lint]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info mxadamax/*.so
