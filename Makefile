# `make demo` and `make test` need only Python 3.11+ (with pip) and make: each sets up
# .venv the first time, and again only when the dependencies change.

PYTHON    ?= python3
PYTHON312 ?= $(call first_that_runs,python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python))
PYTEST    ?= pytest -n 2 --dist worksteal

VENV   := .venv
PY312  := .venv-py312
LOWEST := .venv-lowest

# Else glibc unmaps temporaries above 32 MB, and maps them anew, at every operation.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

first_that_runs = $(firstword $(foreach p,$(1),$(shell $(p) -V >/dev/null 2>&1 && echo $(p))))

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-kill test-workers test-studies test-py312 test-lowest bench lint docs dist clean

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

test-kill: $(VENV)/.installed  ## kill, interrupt and break runs at random moments; busy machines
	OMP_NUM_THREADS=1 FLOWSAMP_KILLS=10 FLOWSAMP_INTERRUPTS=60 FLOWSAMP_ERRORS=20 FLOWSAMP_BUSY=1 \
		$(VENV)/bin/python -m pytest -v -s --durations=20 tests/contracts/test_threads.py \
		tests/checkpoint/test_compiled.py tests/checkpoint/test_kills.py \
		tests/chains/test_storage.py::test_compiled_graphs_go_on_bit_by_bit

test-workers: $(VENV)/.installed  ## all tests of many workers, with whole calls of sample()
	OMP_NUM_THREADS=1 FLOWSAMP_WORKERS=1 $(VENV)/bin/python -m pytest tests/distributed

test-studies: $(VENV)/.installed  ## run the scripts of all studies at their smallest, and all of the largest grids
	OMP_NUM_THREADS=1 FLOWSAMP_STUDIES=1 $(VENV)/bin/python -m $(PYTEST) tests/examples/test_examples.py \
		tests/kernels/test_latent.py tests/kernels/test_sharpened.py \
		tests/contracts/test_devices.py tests/contracts/test_protocols.py

test-py312: $(PY312)/.installed  ## run the tests with ArviZ 1.x on Python 3.12
	OMP_NUM_THREADS=1 $(PY312)/bin/python -m $(PYTEST)

test-lowest: $(LOWEST)/.installed  ## run the tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m $(PYTEST)

bench: $(VENV)/.bench  ## compare with NumPyro's NUTS
	$(VENV)/bin/python examples/benchmarks/suites/against_nuts.py

lint: $(VENV)/.installed  ## check style, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy pyro_flowsamp

docs: $(VENV)/.docs  ## build the site in docs/_build/html; warnings are errors
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(VENV)/bin/python docs/check_links.py docs/_build/html

dist: $(VENV)/.dist  ## build sdist and wheel, check them, and test the wheel in an empty environment
	rm -rf build dist
	$(VENV)/bin/python -m build
	$(VENV)/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install -c constraints.txt dist/*.whl
	cd build && empty/bin/python -m pyro_flowsamp info && OMP_NUM_THREADS=1 empty/bin/python -m pyro_flowsamp selftest

clean:  ## remove the environments, builds and caches
	rm -rf $(VENV) $(PY312) $(LOWEST) build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache
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

$(VENV)/.docs: $(VENV)/.installed
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.dist: $(VENV)/.installed
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[dist]'
	@touch $@

$(PY312)/.installed: pyproject.toml constraints-py312.txt | $(PY312)/bin/pip
	$(PY312)/bin/python -m pip install -c constraints-py312.txt -e '.[test]'
	@touch $@

$(PY312)/bin/pip:
	$(or $(PYTHON312),$(error Python 3.12 was not found: make test-py312 PYTHON312=...)) -m venv $(PY312)

# Each bound "name>=version" of pyproject.toml becomes the constraint "name==version".
$(LOWEST)/.installed: pyproject.toml | $(LOWEST)/bin/pip
	sed -nE '/^dependencies/,/^]/ s/^ *"([a-z-]+)>=([0-9.]+)",$$/\1==\2/p' pyproject.toml > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install -c $(LOWEST)/constraints.txt -e '.[test]'
	@touch $@

$(LOWEST)/bin/pip:
	$(PYTHON) -m venv $(LOWEST)
