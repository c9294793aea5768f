# Everything runs from .venv, which scripts/setup_environment.py makes and keeps up to date.
# Another Python: make setup PYTHON=python3.12     Arguments for a program: make demo ARGS="--help"
# Run the tests on more cores: make test CORES=8

PYTHON ?= python3
ARGS ?=
CORES ?= 2
BIN := .venv/bin
# If you name a PYTHON, an existing .venv of another Python version is replaced.
SETUP_FLAGS := $(if $(filter file default,$(origin PYTHON)),,--same-python)
# One file of tests, or one notebook, stays on one worker: a notebook's cells share a kernel.
PYTEST := DPO_WORKBENCH_BUDGET=tiny $(BIN)/python -m pytest -q -n $(CORES) --dist loadfile --nbval-lax \
	--nbval-current-env --nbval-sanitize-with=tests/nbval_sanitize.cfg --nbval-cell-timeout=300

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lab lint docs data benchmarks clean
.NOTPARALLEL:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## create .venv and install the package with its test and notebook tools; takes under a second if nothing changed
	@"$(PYTHON)" scripts/setup_environment.py $(SETUP_FLAGS)

demo: setup ## train a small model and compare it with its start and with a control, in about a minute
	@$(BIN)/dpo-workbench demo $(ARGS)

test: setup ## run the tests and all but three notebooks, and compare these with their stored outputs (10 minutes)
	@unset HF_HUB_OFFLINE; $(PYTEST) -m "not slow" tests notebooks --ignore=notebooks/outline $(ARGS)

test-all: setup ## run what `make test` leaves out: exhaustive, statistical and long tests, three notebooks, and all solutions
	@unset HF_HUB_OFFLINE; $(PYTEST) -m slow tests notebooks --ignore=notebooks/outline $(ARGS)

lab: setup ## open the course in JupyterLab
	@$(BIN)/python -m jupyter lab notebooks/00_start.ipynb $(ARGS)

lint: setup ## check the code with ruff (lint and format) and mypy
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

docs: setup ## build the documentation site without a network, and print the page to open
	@$(BIN)/python scripts/build_docs.py $(ARGS)

data: setup ## generate the files in data/ again (same seeds, same bytes)
	@for script in research/make_receipts.py research/make_tasks.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

benchmarks: setup ## install TRL and run every benchmark; the results go to benchmarks/results
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[benchmarks]"
	@for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

clean: ## delete caches and build outputs; .venv, data and runs stay
	@rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	@find dpo_workbench tests scripts benchmarks research notebooks -name __pycache__ -o -name .ipynb_checkpoints | while IFS= read -r folder; do rm -rf "$$folder"; done
