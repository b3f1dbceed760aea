# One command per job. Every target sets up what it needs; nothing else has to be installed first than Python 3.11+.
PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
SECONDS ?= 60
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# SITE=1 uses the packages that the machine already has (torch above all), installs and downloads nothing.
ifdef SITE
PY := PYTHONPATH=$(CURDIR)/src $(PYTHON)
READY :=
else
PY := $(BIN)/python
READY := $(STAMP)
endif

.PHONY: fuzz test test-slow test-gpu compile-report mutation-sample lint format bench clean

fuzz: $(READY)
	$(PY) -m moeproof.verify.cli fuzz --seconds $(SECONDS) $(ARGS)

test: $(READY)
	$(PY) -m pytest -n auto --dist worksteal -m "not gpu and not slow" $(ARGS)

# Tests that take minutes: whole nights and gates in small, a real browser, real database servers.
test-slow: $(READY)
	$(PY) -m pytest -n auto --dist worksteal -m "slow and not gpu" $(ARGS)

# Registers, shared memory and spills of the hot kernels on each architecture; fails if one spills. No GPU.
compile-report: $(READY)
	$(PY) ci/compile_report.py $(ARGS)

# A sample of planted bugs in the CUDA sources; fails if fuzzing finds too few of them. No GPU.
mutation-sample: $(READY)
	$(PY) -m moeproof.verify.cli mutate kernels --sample 40 --cases 100 --seed 1 --floor 90 --out .moeproof/mutation-sample $(ARGS)

# On a machine with a CUDA device: everything, the tests that need one included.
test-gpu: $(READY)
	$(PY) -m pytest -n 4 --dist worksteal -m "not alone" $(ARGS)
	$(PY) -m pytest -m alone $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(PY) ci/bench_harness.py $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "moeproof needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[cuda,lint,mutate,postgres,test,bench,browser]"
	touch $@
