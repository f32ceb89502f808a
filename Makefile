# `make demo` and `make test` need only Python 3.11+ (with pip) and make: each sets up
# .venv the first time, and again only when the dependencies change.

PYTHON    ?= python3
PYTHON312 ?= $(call first_that_runs,python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python))
PYTEST    ?= pytest -n 2 --dist worksteal

VENV   := .venv
ARVIZ1 := .venv-arviz1

# Else glibc unmaps temporaries above 32 MB, and maps them anew, at every operation.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

first_that_runs = $(firstword $(foreach p,$(1),$(shell $(p) -V >/dev/null 2>&1 && echo $(p))))

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-arviz1 bench lint clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed  ## eight schools: a summary, a picture, and the speed beside NUTS
	$(VENV)/bin/python examples/eight_schools.py
	$(VENV)/bin/python examples/benchmarks/quickstart_vs_nuts.py

test: $(VENV)/.installed  ## run the tests, and the examples in docstrings
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m $(PYTEST)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m $(PYTEST) --doctest-modules pyro_flowsamp

test-fast: $(VENV)/.installed  ## run the tests without the slow ones
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m $(PYTEST) -m "not slow"

test-arviz1: $(ARVIZ1)/.installed  ## run the export tests with ArviZ 1.x on Python 3.12
	OMP_NUM_THREADS=1 $(ARVIZ1)/bin/python -m $(PYTEST) tests/export

bench: $(VENV)/.bench  ## compare with NumPyro's NUTS
	$(VENV)/bin/python examples/benchmarks/suites/against_nuts.py

lint: $(VENV)/.installed  ## check style, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy pyro_flowsamp

clean:  ## remove the environments, builds and caches
	rm -rf $(VENV) $(ARVIZ1) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments. Each stamp says that an installation is complete; it goes stale with the
# files it was installed from.

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[dev,test,examples]'
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[bench]'
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(ARVIZ1)/.installed: pyproject.toml constraints-arviz1.txt | $(ARVIZ1)/bin/pip
	$(ARVIZ1)/bin/python -m pip install -c constraints-arviz1.txt -e '.[test]'
	@touch $@

$(ARVIZ1)/bin/pip:
	$(or $(PYTHON312),$(error Python 3.12 was not found: make test-arviz1 PYTHON312=...)) -m venv $(ARVIZ1)
