# All targets use the virtual environment .venv. Targets that need BPF run as root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard bpf/*) $(shell find portwatch scripts -name '*.py' -o -name '*.h' -o -name '*.json' -o -name '*.html') pyproject.toml
# sudo, or nothing if the user is root or sudo is missing. Tests that need root are skipped if sudo is missing.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

KERNEL ?= 6.1

.PHONY: run test test-random test-vm test-vm-all setup-vm setup-bcc check bench build clean

run: $(VENV)/installed
	$(AS_ROOT) $(BIN)/portwatch tail

test: $(VENV)/developing
	$(AS_ROOT) $(BIN)/pytest -m "not long"

test-random: $(VENV)/developing
	$(AS_ROOT) $(BIN)/pytest -m long tests/kernel

test-vm: $(VENV)/vm
	$(BIN)/python scripts/vm.py $(KERNEL)

test-vm-all: $(VENV)/vm
	@$(BIN)/python scripts/vm.py all; status=$$?; $(BIN)/python scripts/kernels_table.py && exit $$status

setup-vm:
	$(AS_ROOT) scripts/provision.sh vm

check: $(VENV)/developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/developing
	@for script in bench/bench_*.py; do $(AS_ROOT) $(BIN)/python $$script || exit 1; done

build: $(VENV)/developing
	$(BIN)/python -m build

# Installs python3-bpfcc, which the bcc engine needs and which is not on PyPI.
setup-bcc:
	$(AS_ROOT) scripts/provision.sh bcc

clean:
	rm -rf $(VENV) build dist portwatch/engines/core/core.bpf.o

$(VENV)/bin/python:
	@$(PYTHON) scripts/check_python.py
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	@touch $@

$(VENV)/developing: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/vm: $(VENV)/developing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[vm]'
	@touch $@
