# SPDX-License-Identifier: Apache-2.0
# Everything a fresh machine needs beyond Python, pip, a C++17 compiler and make lands in $(VENV).
PYTHON ?= python3
VENV ?= .venv
SESSION ?= quick
# The same definitions for CMake where pip calls it, and one more.
DEFINE = SKBUILD_CMAKE_DEFINE="$(1)$${SKBUILD_CMAKE_DEFINE:+;$$SKBUILD_CMAKE_DEFINE}"
# What CMake has to know to build a module, where it is not pip that calls it.
FOR_PYTHON = -DPython_EXECUTABLE=$(abspath $(VENV)/bin/python) \
  -Dpybind11_DIR="$$($(VENV)/bin/pybind11-config --cmakedir)"
SOURCES := $(wildcard CMakeLists.txt setup.py pyproject.toml csrc/*.* csrc/*/*.*)

.PHONY: train test check driver matrix benchmark docs lint style types tidy sanitize sanitize-python coverage clean

train: $(VENV)/installed
	$(VENV)/bin/python examples/train_mnist.py --optimizer adamax adamax_ext

# One process more than there are processors: some tests wait for processes of their own.
PYTEST = $(VENV)/bin/pytest --numprocesses "$$(($$(nproc) + 1))" --dist worksteal

test: $(VENV)/developed
	$(PYTEST)

# Every layer and every optimizer once: before each commit.
check: $(VENV)/developed
	$(PYTEST) -m quick

# With every Python and every MXNet, as noxfile.py says.
matrix: $(VENV)/developed
	$(VENV)/bin/pip install --quiet build nox
	$(VENV)/bin/nox --session "$(SESSION)"

benchmark: $(VENV)/installed
	$(VENV)/bin/mxadamax bench

# Needs Python 3.11 or later; nothing is fetched.
docs: $(VENV)/developed
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs

lint: style types tidy

style: $(VENV)/developed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror \
	  $(wildcard csrc/*.cc csrc/*.h csrc/*/*.cc csrc/*/*.cu csrc/*/*.h)

types: $(VENV)/developed
	$(VENV)/bin/mypy

# clang-tidy brings no omp.h along: the compiler's is found, after all of clang's own headers. In that an
# attribute has arguments, which clang does not know. The kernels for GPUs are read as the host compiles them.
tidy: $(VENV)/developed
	rm -rf build/tidy/on_host
	$(VENV)/bin/cmake -S . -B build/tidy -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DMXADAMAX_CUDA=OFF \
	  -DMXADAMAX_CUDA_ON_HOST=ON -DMXADAMAX_TESTING=ON $(FOR_PYTHON) > /dev/null
	printf '%s\n' $(wildcard csrc/*.cc csrc/*/*.cc) build/tidy/on_host/*.cc | \
	  xargs --max-procs="$$(nproc)" --max-args=1 $(VENV)/bin/clang-tidy -p build/tidy --quiet \
	  --extra-arg=-idirafter"$$($(CXX) -print-file-name=include)" '--extra-arg=-D__malloc__(...)='

# The C++ driver, with every instruction set; docs/testing.md says what it tests.
driver: $(VENV)/developed
	$(call RUN_DRIVER,build/driver,)

# The same, watched by sanitizers.
sanitize: $(VENV)/developed
	for sanitizers in address,undefined thread; do \
	  $(call RUN_DRIVER,build/sanitize-$$sanitizers,-DMXADAMAX_SANITIZE=$$sanitizers) || exit 1; \
	done

# Build the driver in a folder, and run it.
RUN_DRIVER = $(VENV)/bin/cmake -B $(1) -DMXADAMAX_DRIVER=ON $(FOR_PYTHON) $(2) && \
  $(VENV)/bin/cmake --build $(1) --parallel && \
  $(VENV)/bin/ctest --test-dir $(1) --output-on-failure

# The tests that reach most of the native code, with a module that sanitizers watch, in an environment with
# MXNet. MXNet and Python leak on purpose.
SANITIZED := $(foreach name,bad_input half_precision sparse skip_nonfinite global_norm kernels low_precision,\
  $(wildcard tests/*/test_$(name).py))
sanitize-python: $(VENV)/developed
	rm -rf build/sanitized
	$(VENV)/bin/cmake -B build/sanitize-module -DMXADAMAX_SANITIZE=address,undefined -DMXADAMAX_CUDA=OFF \
	  -DMXADAMAX_TESTING=ON $(FOR_PYTHON)
	$(VENV)/bin/cmake --build build/sanitize-module --parallel
	mkdir -p build/sanitized && cp -r mxadamax build/sanitized/ && rm -f build/sanitized/mxadamax/*.so
	cp build/sanitize-module/_native*.so build/sanitized/mxadamax/
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 \
	  PYTHONPATH=build/sanitized $(VENV)/bin/pytest -p no:cacheprovider -s $(SANITIZED) \
	  --deselect tests/kernels/test_kernels.py::test_more_than_2_to_the_31_elements

# Which lines and branches the suite runs, with both MXNets; fails under 95 %. docs/testing.md says what
# counts. Needs Python 3.11. A process for each folder of tests: pytest-xdist ends its own before they have
# written down what they ran. From a folder where Python finds no other mxadamax.
MXNET1 := build/mxnet1
TEST_FOLDERS := $(sort $(dir $(wildcard tests/*/test_*.py)))
coverage: $(VENV)/developed $(MXNET1)/installed
	rm -rf build/coverage
	$(VENV)/bin/cmake -B build/coverage-module -DMXADAMAX_CUDA=OFF -DMXADAMAX_TESTING=ON -DCMAKE_BUILD_TYPE=Debug \
	  -DCMAKE_CXX_FLAGS='--coverage -fprofile-update=atomic -Dalways_inline=noinline' \
	  $(FOR_PYTHON)
	$(VENV)/bin/cmake --build build/coverage-module --parallel
	find build/coverage-module -name '*.gcda' -delete
	mkdir -p build/coverage && cp -r mxadamax mxadamax_hook build/coverage/
	cp build/coverage-module/_native*.so build/coverage/mxadamax/
	cd build/coverage && export PYTHONPATH=$$PWD COVERAGE_FILE=$$PWD/data && \
	  for environment in $(abspath $(VENV) $(MXNET1)); do \
	    printf "$$environment %s\n" $(abspath $(TEST_FOLDERS)); \
	  done | xargs --max-procs="$$(nproc)" --max-args=2 sh -c 'PATH="$$0/bin:$$PATH" coverage run --parallel-mode \
	    --rcfile=$(CURDIR)/pyproject.toml "$$0/bin/pytest" -c $(CURDIR)/pyproject.toml -q -p no:cacheprovider "$$1"'
	export COVERAGE_FILE=build/coverage/data && $(VENV)/bin/coverage combine --quiet && \
	  $(VENV)/bin/coverage xml --quiet -o build/coverage/python.xml && $(VENV)/bin/coverage report
	$(VENV)/bin/gcovr --cobertura-add-tracefile build/coverage/python.xml --filter mxadamax/; python=$$?; \
	  $(VENV)/bin/gcovr build/coverage-module && exit $$python

# What training needs, so that it starts soon: Python compiles of the packages what is imported.
$(VENV)/installed: $(SOURCES)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(call DEFINE,MXADAMAX_TESTING=OFF) \
	  $(VENV)/bin/pip install --quiet --no-compile --editable '.[mxnet,examples]'
	touch $@

# And what its developers need.
$(VENV)/developed: $(VENV)/installed
	$(VENV)/bin/pip install --quiet 'mxadamax[mxnet,examples,test,plot,docs,lint,coverage,mutation]'
	$(VENV)/bin/cmake -B build/testing -DMXADAMAX_TESTING=ONLY -DMXADAMAX_CUDA_ON_HOST=ON $(FOR_PYTHON) \
	  $$(printf '%s' "$$SKBUILD_CMAKE_DEFINE" | sed 's/[^;][^;]*/-D&/g; s/;/ /g')
	$(VENV)/bin/cmake --build build/testing --parallel
	$(VENV)/bin/cmake --install build/testing --prefix .
	touch $@

$(MXNET1)/installed: $(SOURCES)
	test -x $(MXNET1)/bin/python || $(PYTHON) -m venv $(MXNET1)
	$(call DEFINE,MXADAMAX_CUDA=OFF;MXADAMAX_BASELINE_ONLY=ON) \
	  $(MXNET1)/bin/pip install --quiet '.[mxnet1,test,coverage]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info mxadamax/*.so
