# Everything a fresh machine needs beyond Python, pip, a C++17 compiler and make lands in $(VENV).
PYTHON ?= python3
VENV ?= .venv
SESSION ?= quick
SOURCES := $(wildcard CMakeLists.txt setup.py pyproject.toml csrc/*.* csrc/*/*.*)

.PHONY: train test matrix benchmark lint sanitize sanitize-python clean

train: $(VENV)/installed
	$(VENV)/bin/python examples/train_mnist.py --optimizer adamax adamax_ext

test: $(VENV)/installed
	$(VENV)/bin/pytest --numprocesses auto --dist worksteal

# With every Python and every MXNet, as noxfile.py says.
matrix: $(VENV)/installed
	$(VENV)/bin/pip install --quiet nox
	$(VENV)/bin/nox --session "$(SESSION)"

benchmark: $(VENV)/installed
	$(VENV)/bin/python benchmarks/benchmark.py

lint: $(VENV)/installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard csrc/*.cc csrc/*/*.cc csrc/*/*.h benchmarks/*.cc)

# The C++ driver, watched by sanitizers; needs CMake. docs/testing.md says what it tests.
sanitize:
	for sanitizers in address,undefined thread; do \
	  cmake -B build/sanitize-$$sanitizers -DMXADAMAX_DRIVER=ON -DMXADAMAX_SANITIZE=$$sanitizers && \
	  cmake --build build/sanitize-$$sanitizers && \
	  build/sanitize-$$sanitizers/tests/native/native_driver || exit 1; \
	done

# The tests that reach most of the native code, with a module that sanitizers watch, in an environment with
# MXNet. MXNet and Python leak on purpose.
SANITIZED := bad_input half_precision sparse skip_nonfinite global_norm kernels low_bit
sanitize-python: $(VENV)/installed
	rm -rf build/sanitized
	cmake -B build/sanitize-module -DMXADAMAX_SANITIZE=address,undefined -DPython_EXECUTABLE=$(abspath $(VENV)/bin/python) \
	  -Dpybind11_DIR=$$($(VENV)/bin/python -m pybind11 --cmakedir)
	cmake --build build/sanitize-module
	mkdir -p build/sanitized && cp -r mxadamax build/sanitized/ && rm -f build/sanitized/mxadamax/*.so
	cp build/sanitize-module/_native*.so build/sanitized/mxadamax/
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0,suppressions=$(CURDIR)/tests/native/asan.supp \
	  PYTHONPATH=build/sanitized $(VENV)/bin/pytest -p no:cacheprovider -s $(SANITIZED:%=tests/test_%.py) \
	  --deselect tests/test_kernels.py::test_more_than_2_to_the_31_elements

$(VENV)/installed: $(SOURCES)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[mxnet,examples,test,benchmarks,lint]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info mxadamax/*.so
