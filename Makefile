# Two commands set everything up: `make demo` and `make test`. They need Python 3.11+, make and a package registry.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
GPU_PYTHON ?= 3.12
# Installs, where it is there; `make demo UV=` takes pip.
UV ?= $(shell command -v uv 2> /dev/null)

export RAY_USAGE_STATS_ENABLED := 0
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo experiment test test-cluster test-cluster-hosts test-cluster-ray test-cluster-rest install-hosts
.PHONY: gpu-check gpu-bench gpu-wheels check format clean nightly

demo: $(VENV)/ready
	$(BIN)/python -m raypaml.train digits --epochs 12  # of the recipe's 18, to stay under three minutes

experiment: $(VENV)/ready
	$(BIN)/python tools/papers/experiment.py  # about an hour on two idle cores; an interrupted one goes on

# Three processes on two cores, for Ray's tests wait a lot; they come first (tests/conftest.py). Neighbours stay in one
# process, which builds what they share once (--dist loadgroup would build it in all three). Ray's workers would yield to
# all others, and one thread a process is what two cores have.
test: export RAY_worker_niceness := 0
test: export OMP_NUM_THREADS := 1
test: $(VENV)/dev
	$(BIN)/python -m pytest -n 3 -m "not cluster and not gpu"

# Three processes beside each other, for these tests wait even more; each prints its own dots and summary, and the table
# of faults comes last. They are make's and not xdist's, which would kill them ten seconds after Ctrl-C, before the
# hosts are taken down.
# Several hosts on one machine need root, and what install-hosts installs on Debian. Where that cannot be had, their
# tests are skipped and say why; RAYPAML_HOSTS=1 makes that a failure.
test-cluster: export RAYPAML_FAULT_ROWS := $(CURDIR)/.pytest_cache/fault_rows.jsonl
test-cluster: $(VENV)/cluster
	@mkdir -p $(dir $(RAYPAML_FAULT_ROWS)) && rm -f $(RAYPAML_FAULT_ROWS)
	@$(MAKE) --no-print-directory -j3 test-cluster-hosts test-cluster-ray test-cluster-rest; \
	    code=$$?; $(BIN)/python -m tests.fault_table $(RAYPAML_FAULT_ROWS); exit $$code

test-cluster-hosts: KIND := hosts
test-cluster-ray: KIND := ray
test-cluster-rest: KIND := not (hosts or ray)
test-cluster-hosts test-cluster-ray test-cluster-rest: export RAY_worker_niceness := 0
test-cluster-hosts test-cluster-ray test-cluster-rest: export OMP_NUM_THREADS := 1
test-cluster-hosts test-cluster-ray test-cluster-rest: $(VENV)/cluster
	$(BIN)/python -m pytest -m "cluster and $(KIND)" -rs -o console_output_style=classic

# Longer checks, by hand: clean environments, other Pythons, the notebook in a real kernel, a thousand damaged files.
nightly: $(VENV)/dev
	UV="$(UV)" $(BIN)/python -m tools.nightly

install-hosts:
	apt-get -qq update && apt-get -qq install -y iproute2 nftables openssh-server openssh-client rsync \
		util-linux

# On a machine with a GPU, with its own Python and torch; no .venv. OUT=DIR keeps the table, logs and a trace.
gpu-check gpu-bench: gpu-%:
	$(PYTHON) -m tools.gpu $* $(if $(OUT),--out $(OUT))

# What such a machine may lack, fetched where there is a package registry, for its Python on x86-64.
gpu-wheels:
	PIP_CONSTRAINT=constraints.txt $(PYTHON) -m pip download --quiet --no-deps --only-binary :all: --dest wheels \
	    --python-version $(GPU_PYTHON) --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
	    simplejpeg webdataset braceexpand

check: $(VENV)/dev
	$(BIN)/ruff check raypaml tests tools
	$(BIN)/ruff format --check raypaml tests tools
	$(BIN)/mypy
	$(BIN)/python -m tools.house

format: $(VENV)/dev
	$(BIN)/ruff format raypaml tests tools
	$(BIN)/ruff check --fix raypaml tests tools

# One marker for what was installed, written last; tools/install.py starts an interrupted installation again.
$(VENV)/dev: EXTRAS := dev
$(VENV)/cluster: EXTRAS := dev,cluster
$(VENV)/ready $(VENV)/dev $(VENV)/cluster: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("raypaml needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@UV="$(UV)" $(PYTHON) tools/install.py $(VENV) $(EXTRAS)
	@touch $(VENV)/ready $(if $(EXTRAS),$(VENV)/dev) $@

clean:
	rm -rf $(VENV) $(VENV).unfinished .mypy_cache .ruff_cache .pytest_cache .hypothesis
