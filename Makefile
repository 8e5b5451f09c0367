# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Every target makes the environment it needs. PYTHON=python3.12 make test picks another Python.

PYTHON ?= python3
VENV ?= .venv
# Of the demo.
SEED ?= 42
# The CPU build on the index or in the folder that pip is set to use. Parity is the only user.
TORCH ?= torch==2.13.0
# Processes that share the tests that start none themselves; 0: pytest's own alone.
WORKERS ?= 2
# pyright's wrapper would ask for its newest version at every run.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# pyenv puts a `python3.12` on the path that fails unless that version is selected: then the
# installed one is named by its folder.
PYTHON_FOUND := $(or $(shell $(PYTHON) -c 'import sys; print(sys.executable)' 2>/dev/null),\
  $(lastword $(sort $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/*/bin/$(PYTHON)))))
PYTHON_VERSION := $(shell "$(PYTHON_FOUND)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
INSTALLED := $(VENV)/.installed-$(PYTHON_VERSION)
BIN := $(VENV)/bin
# -qq: errors only. --no-compile: what is imported is compiled then, which saves a third of the time.
PIP := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check

# Everything that needs no torch, no real checkpoint, no TPU compiler and no minutes.
FAST := not (parity or slow or soak or weights or tpu_compile)
UNIT = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
  -m "$(FAST) and not (multiprocess or resume)"

.PHONY: venv demo test unit page parity tpu-compile faults layouts slow soak lint bench clean

venv: $(INSTALLED)

# An environment of another Python is made anew; one of this Python only gets what has changed.
$(INSTALLED): pyproject.toml
	@case "$(PYTHON_VERSION)" in \
	  3.11|3.12|3.13) ;; \
	  *) echo "error: $(PYTHON) is $(if $(PYTHON_VERSION),Python $(PYTHON_VERSION),no Python that runs); medloc_jax needs 3.11, 3.12 or 3.13: install one and name it, such as: make PYTHON=python3.12 $(or $(MAKECMDGOALS),venv)" >&2; exit 1 ;; \
	esac
	@case "$$($(BIN)/python -c 'import sys, pip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" in \
	  $(PYTHON_VERSION)) ;; \
	  *) "$(PYTHON_FOUND)" -m venv --clear "$(VENV)" ;; \
	esac
	@echo "Installing into $(VENV) for Python $(PYTHON_VERSION): about a minute"
	@$(PIP) -e '.[test,report]'
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: $(INSTALLED)
	PATH="$(abspath $(BIN)):$$PATH" SEED="$(SEED)" bash launch/demo.sh

# What starts processes of its own comes after the rest: they would wait for one another. A file's
# tests stay together, for what they compile. The slowest are told, so that the whole stays quick.
test: $(INSTALLED)
	$(UNIT) --durations=15
	$(BIN)/python -m pytest -m "$(FAST) and (multiprocess or resume)" --durations=10

unit: $(INSTALLED)
	$(UNIT)

# The report's page as a reader has it: needs Chromium (apt-get install chromium, or CHROMIUM=/path).
page: $(INSTALLED)
	$(BIN)/python -m pytest -rs tests/evaluation/page_test.py

# torch is named with its version, and installed before anything can ask for "torch": a plain
# "torch" may bring several GB of CUDA libraries, which parity on a CPU does not use.
parity: $(INSTALLED)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) "$(TORCH)"
	$(BIN)/python -c "import torch"
	$(BIN)/python -m pytest -m parity -rs

# The real TPU compiler, for slices that need not be there. RECORD=1 writes what it finds into
# benchmarks/tpu_compile.json instead of only comparing. Skipped for want of libtpu is failed.
tpu-compile: $(INSTALLED)
	$(BIN)/python -c "import libtpu" 2>/dev/null || $(PIP) -e '.[tpu]'
	$(BIN)/python -c "import libtpu"
	$(if $(RECORD),MEDLOC_RECORD=$(RECORD)) $(BIN)/python -m pytest -m tpu_compile -rs tests/tpu

# Processes that are killed, stopped or hang, broken files, NaN, full disks: what `test` leaves out.
faults: $(INSTALLED)
	$(BIN)/python -m pytest -m "faults and slow"

# One job in every layout of devices and processes, with two image sizes and the tower trained.
layouts: $(INSTALLED)
	$(BIN)/python -m pytest -m slow tests/integration/layouts_test.py

# What else takes minutes: a sweep of real runs, the walk-through of one's own data, all of HAM10000.
slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not (faults or soak)" \
	  --ignore=tests/integration/layouts_test.py

# A run that is hit at twenty random moments, and one of two processes: a quarter of an hour or more.
soak: $(INSTALLED)
	$(BIN)/python -m pytest -m soak -s

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Writes benchmarks/RESULTS.md. The peers' scripts: PEERBENCH=/path, or beside the checkout. Their
# environments are made as $(VENV)-peers and $(VENV)-tunix (gigabytes), or named: PEERS=/path/to/python
# TUNIX=/path/to/python. BENCH="--quick" takes a look; BENCH="--only short" measures a section again.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench.py --environments "$(abspath $(VENV))" $(BENCH)

# Runs and checkpoints stay: they may be all that is left of days.
clean:
	rm -rf $(VENV) $(VENV)-peers $(VENV)-tunix *.egg-info build .pytest_cache .ruff_cache .hypothesis
	find medloc_jax tests configs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
