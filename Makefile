# Everything runs from .venv, which is made here from python3 (3.11 or newer) and what setup.cfg asks for.
#
#   make demo        make a small project with moving shapes, train and infer on it, and write a report: 4 minutes
#   make test        check style and types, and run the test suite side by side; test the test tools if they changed
#   make test-all    check style and types, and run all tests, one after another
#   make test-tools  test the test tools: the fake Slurm and the small cluster
#   make test-fast   run the tests that start no real commands and take a few seconds at most
#   make lint | types | format

PYTHON := python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-all test-tools test-fast lint types format

demo: $(VENV)/.train
	$(BIN)/deg demo

test: lint types
	tests/cluster/prepared $(abspath $(BIN)) tests/side_by_side $(BIN)/pytest

test-all: lint types
	tests/cluster/prepared $(abspath $(BIN)) $(BIN)/pytest
	$(BIN)/python tests/cluster/proved_tools.py --record

test-tools: $(VENV)/.test
	tests/cluster/prepared $(abspath $(BIN)) $(BIN)/pytest -m tools
	$(BIN)/python tests/cluster/proved_tools.py --record

test-fast: $(VENV)/.test
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# mypy does not read setup.cfg and would not find deg.launch in launch/: it is shown the package as it will be installed
types: $(VENV)/.test
	rm -rf build/types && mkdir -p build/types/deg
	cd build/types/deg && ln -s ../../../deg/* ../../../launch ../../../configs ../../../containers .
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

# The stamps are written last, so that an interrupted installation is repeated.
$(VENV)/.train: setup.cfg pyproject.toml $(VENV)/.made
	$(PIP) install --editable '.[train]'
	@touch $@

$(VENV)/.test: setup.cfg pyproject.toml $(VENV)/.made
	$(PIP) install --editable '.[all,test]'
	@touch $(VENV)/.train $@

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "deg needs Python 3.11 or newer, and there is no $(PYTHON) here. On Debian: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "deg needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
