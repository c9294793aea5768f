# Everything runs from .venv, which scripts/setup_environment.py makes and keeps up to date.
# Another Python: make setup PYTHON=python3.12     Arguments for the demo: make demo ARGS="--help"

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
# A PYTHON that was asked for by name also decides the version of a .venv that exists already.
SETUP_FLAGS := $(if $(filter file default,$(origin PYTHON)),,--same-python)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lab lint docs data benchmarks clean
.NOTPARALLEL:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## make .venv and install the package with its test and notebook tools (again: does nothing, in under a second)
	@"$(PYTHON)" scripts/setup_environment.py $(SETUP_FLAGS)

demo: setup ## see the whole phenomenon in one to two minutes: failures, pairs, training, the same failures counted again
	@$(BIN)/dpo-workbench demo $(ARGS)

test: setup ## run the tests and every notebook, stored outputs compared (nbval)
	@unset HF_HUB_OFFLINE; DPO_WORKBENCH_BUDGET=tiny $(BIN)/python -m pytest tests notebooks -q --ignore=notebooks/outline \
		--nbval-lax --nbval-current-env --nbval-sanitize-with=tests/nbval_sanitize.cfg --nbval-cell-timeout=300 $(ARGS)

lab: setup ## open the course in JupyterLab
	@$(BIN)/python -m jupyter lab notebooks/00_start.ipynb $(ARGS)

lint: setup ## ruff (lint and format) and mypy
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

docs: setup ## build the documentation as a site (no network); prints the page to open
	@$(BIN)/python scripts/build_docs.py $(ARGS)

data: setup ## write data/ again from the generators (same seeds, same bytes)
	@for script in research/make_*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

benchmarks: setup ## install TRL and run every benchmark; results go to benchmarks/results
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[benchmarks]"
	@for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

clean: ## delete caches and build outputs; .venv, data and runs stay
	@rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	@find dpo_workbench tests scripts benchmarks notebooks -name __pycache__ -o -name .ipynb_checkpoints | while IFS= read -r folder; do rm -rf "$$folder"; done
