# `make demo` and `make test` do all the set-up: a virtual environment with the tested versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test test-long lint results throughput hop reach punisher snapshots endurance tracking clean sweep

demo: $(INSTALLED)
	$(BIN)/blocklocal train examples/digits.yaml

test: $(INSTALLED) lint
	$(BIN)/python -m pytest

# The long scenes, which `test` leaves out.
test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The tables of committed results, in the README.
results: $(INSTALLED)
	$(BIN)/python -m benchmarks.records

throughput: $(INSTALLED)
	$(BIN)/python -m benchmarks.throughput

hop: $(INSTALLED)
	$(BIN)/python -m benchmarks.hop

reach: $(INSTALLED)
	$(BIN)/python -m benchmarks.reach

punisher: $(INSTALLED)
	$(BIN)/python -m benchmarks.punisher

snapshots: $(INSTALLED)
	$(BIN)/python -m benchmarks.snapshots

endurance: $(INSTALLED)
	$(BIN)/python -m benchmarks.endurance

sweep: $(INSTALLED)
	$(BIN)/python -m benchmarks.sweep asha
	$(BIN)/python -m benchmarks.sweep pbt

tracking: $(INSTALLED)
	$(BIN)/python -m benchmarks.tracking

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
