# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGE := $(VENV)/.package
STAMP := $(VENV)/.installed
# What is imported is compiled then; pip would compile all of torch.
INSTALL = $(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable
ARGS ?=

.PHONY: demo test check format bench install clean help

help:  ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(PACKAGE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $(PACKAGE)

$(STAMP): $(PACKAGE)
	$(INSTALL) '.[dev]'
	touch $(STAMP)

install: $(STAMP)  ## Make .venv with everything that development needs

demo: $(PACKAGE)  ## Run the whole loop on the embedded world (ARGS="--seed 1 --algorithm ppo")
	$(BIN)/prefloop demo $(ARGS)

test: $(STAMP)  ## Run all checks and tests
	$(MAKE) check
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8 --durations 15 $(ARGS)

check: $(STAMP)  ## Lint, format, types, layering
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layering.py

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks docs

bench: $(STAMP)  ## Measure speed beside TRL and the machine's limit (ARGS="--sizes tiny --repeats 1")
	$(BIN)/python -m benchmarks.speed $(ARGS)

clean:  ## Remove what was built, but no data
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
