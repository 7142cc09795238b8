# Two commands set everything up: `make demo` and `make test`. They need Python 3.11+, make and a package registry.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo experiment test test-cluster check format clean

demo: $(VENV)/ready
	$(BIN)/python -m raypaml.train digits --epochs 12  # of the recipe's 18, to stay under three minutes

experiment: $(VENV)/ready
	$(BIN)/python tools/experiment.py  # about an hour on two idle cores; an interrupted one goes on

# Three processes: one for Ray's tests, which wait a lot (tests/conftest.py), two for all others. Ray's workers would yield
# to these, and one thread a process is what two cores have.
test: export RAY_worker_niceness := 0
test: export OMP_NUM_THREADS := 1
test: $(VENV)/ready
	$(BIN)/python -m pytest -n 3 --dist loadgroup -m "not cluster and not gpu"

test-cluster: $(VENV)/ready
	$(BIN)/python -m pytest -m cluster

check: $(VENV)/ready
	$(BIN)/ruff check raypaml tests tools
	$(BIN)/ruff format --check raypaml tests tools
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff format raypaml tests tools
	$(BIN)/ruff check --fix raypaml tests tools

# The marker is written last: an interrupted installation starts again.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("raypaml needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
