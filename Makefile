# Everything a fresh machine needs beyond Python, pip, a C++17 compiler and make lands in $(VENV).
PYTHON ?= python3
VENV ?= .venv
SESSION ?= quick
SOURCES := $(wildcard CMakeLists.txt setup.py pyproject.toml csrc/*.* csrc/*/*.*)

.PHONY: train test matrix benchmark docs lint clean

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

# Needs Python 3.11 or later; nothing is fetched.
docs: $(VENV)/installed
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs

lint: $(VENV)/installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard csrc/*.cc csrc/*/*.cc csrc/*/*.h benchmarks/*.cc)

$(VENV)/installed: $(SOURCES)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[mxnet,examples,test,benchmarks,docs,lint]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info mxadamax/*.so
