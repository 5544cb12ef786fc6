# The two commands: `make miniature` and `make test`. Both set up .venv first; see README.md.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python

# Both commands start many interpreters: without cached bytecode each compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup miniature matrix launchers lint unit test nightly upstream-tests upstream-drift

help:
	@echo "make miniature   the whole recipe on a tiny Gemma 4, no GPU, no download of models"
	@echo "make test        lint, types, and the tests, upstream 0.5.0 to 0.9.0 side by side"
	@echo "make nightly     long soaks and the miniature with several seeds"
	@echo "make upstream-tests TREE=DIR   upstream's own unit tests, with and without the patches"
	@echo "make upstream-drift            which patches the newest upstream still needs"

setup:
	@$(PYTHON) recipes/setup_venv.py $(VENV)

miniature: setup
	$(PY) -m recipes.gemma4_abliterated all --preset miniature --run-dir runs/miniature

# The upstream versions that the patches are tested against, beside each other in .matrix/.
matrix: setup
	$(PY) -m tests.compat.matrix

# SkyPilot's parser, for the nightly tests of the launch files; half a gigabyte of its own.
launchers:
	@test -x .launchers/bin/python || $(PYTHON) -m venv .launchers
	@.launchers/bin/python -c 'import sky' 2>/dev/null || .launchers/bin/pip install -q skypilot==0.14.1

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint matrix
	MATRIX_REQUIRED=1 $(PY) -m pytest -m "not nightly" -q -n 2 --dist loadfile --durations 15

nightly: matrix launchers
	MATRIX_REQUIRED=1 $(PY) -m pytest -q

# TREE: a checkout of vllm-project/speculators; VERSION: what to take it for, if it does not say.
upstream-tests: matrix
	@test -n "$(TREE)" || { echo "upstream-tests: give TREE=a checkout of speculators" >&2; exit 2; }
	$(PY) -m tests.compat.upstream_tests "$(TREE)" $(if $(VERSION),--tree-version $(VERSION))

# Once a week; needs a package index.
upstream-drift: setup
	$(PY) -m tests.compat.upstream_drift
