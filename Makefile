# Two commands: `make demo` and `make test`. Needs Python 3.11 or newer, make and git; everything else goes into .venv.
# Another interpreter: `make demo PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q -q --disable-pip-version-check --no-input -c constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check clean

help:
	@echo "make demo    train, mine, train again, rerank, evaluate, index and search on real pictures; writes runs/demo"
	@echo "make test    make check, then the tests (without the slow ones)"
	@echo "make check   style, types and the direction of imports"
	@echo "make clean   remove .venv and the caches of tools; runs/ is kept"

demo: $(VENV)/.demo
	@$(BIN)/hardwon demo

test: check
	@echo "== tests"
	@$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 8 --dist loadfile

check: $(VENV)/.dev
	@echo "== style"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@echo "== types"
	@$(BIN)/pyright
	@echo "== direction of imports"
	@$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests recipes dev benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: packages are installed again only if what they are declared by has changed.
$(VENV)/.demo: pyproject.toml constraints.txt $(BIN)/python
	@echo "== installing what the demo needs into $(VENV) (about a minute, longer where the network is slow)"
	@$(PIP) -e '.[demo,serve]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(BIN)/python
	@echo "== installing what the demo and the tests need into $(VENV) (about a minute, longer where the network is slow)"
	@$(PIP) -e '.[demo,serve,dev]'
	@touch $(VENV)/.demo $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>/dev/null) || found="not there"; \
	  echo "hardwon needs Python 3.11+, but $(PYTHON) is $$found. Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 1; }
	@echo "== making $(VENV) with $$($(PYTHON) --version) (some seconds)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
