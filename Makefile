# `make help` lists the targets. Each installs what it needs into .venv the first time, and nothing after that.

PYTHON ?= python3
VENV ?= .venv
# The build of PyTorch that tests compare with, in pip's notation: a version, or the path of a wheel.
TORCH ?= torch==2.13.0
# Test processes at a time. Each takes over tests from another that has many left.
JOBS ?= 2
# More flags for the command behind a target: make demo ARGS="--config.train.seed=1 --workdir=runs/demo-1"; make test ARGS="-k packing".
ARGS ?=

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet
# Stamps: made once a stage of the set-up is complete, so an interrupted one starts over.
MADE := $(VENV)/.made
INSTALLED := $(VENV)/.installed
TORCH_INSTALLED := $(VENV)/.torch-installed
TEST_INSTALLED := $(VENV)/.test-installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-sup test test-fast test-all check format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(INSTALLED) ## train a small model on embedded data, offline, in minutes: unsupervised
	HF_HUB_OFFLINE=1 $(BIN)/python -m simcse_jax.train --config=configs/demo.py $(ARGS)

demo-sup: $(INSTALLED) ## the same, supervised
	HF_HUB_OFFLINE=1 $(BIN)/python -m simcse_jax.train --config=configs/demo.py:sup $(ARGS)

test: $(TEST_INSTALLED) ## run all tests but the slow ones: at most 12 minutes on 2 cores
	$(PYTEST) -m "not slow" $(ARGS)

test-fast: $(TEST_INSTALLED) ## run the tests that take a second or two: under 3 minutes
	$(PYTEST) -m "not slow and not medium" --cpu-limit=3 $(ARGS)

test-all: $(TEST_INSTALLED) ## run every test: several processes, compilers for TPUs, long runs, documentation word for word
	$(PYTEST) $(ARGS)

check: $(TEST_INSTALLED) ## check format, lint and types; a warning is an error
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings --pythonpath $(BIN)/python

format: $(TEST_INSTALLED) ## format, and repair what lint can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean: ## remove caches and build leftovers; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@$(PYTHON) -c 'pass' || { echo "make: cannot run '$(PYTHON)'. Install Python 3.11 or newer, or name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: '$(PYTHON)' is $$($(PYTHON) -V 2>&1); 3.11 or newer is needed. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "make: '$(PYTHON)' cannot make virtual environments. Install its venv package (Debian, Ubuntu: python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(INSTALLED): $(MADE) requirements.txt
	@echo "Installing requirements.txt into $(VENV): one or two minutes, this once."
	@$(PIP) -r requirements.txt
	@touch $@

# A step of its own, and before the rest: see the note at `test` in pyproject.toml.
$(TORCH_INSTALLED): $(INSTALLED)
	@echo "Installing $(TORCH) into $(VENV), for tests to compare with."
	@$(PIP) '$(TORCH)'
	@touch $@

$(TEST_INSTALLED): $(TORCH_INSTALLED) requirements.txt pyproject.toml
	@echo "Installing what tests and checks need into $(VENV)."
	@$(PIP) --editable '.[test,dev]'
	@touch $@
