# Everything runs in a local virtual environment (.venv) that is set up by itself. Needs Python 3.11, pip, make, git, gcc.
# `make` lists the targets. ARGS goes to the command behind run, test*, and bench: `make test ARGS="-k lanes -x"`.

PYTHON ?= python3.11
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
ARGS   ?=

GENERATED := $(foreach name,ingester admin,relay/pb/$(name)_pb2.py relay/pb/$(name)_pb2.pyi relay/pb/$(name)_pb2_grpc.py)
PROTOC    := -m grpc_tools.protoc -I relay/pb=proto relay/pb/ingester.proto relay/pb/admin.proto

.DEFAULT_GOAL := help
.PHONY: help setup demo run test test-faults test-interop bench proto fmt lint lint-proto check build clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-14s %s\n", $$1, $$2 }'

setup: $(STAMP)  ## the virtual environment with everything in it

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "needs Python 3.11, and there is no $(PYTHON): make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or later: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
	@echo "installing into $(VENV), once: about half a minute"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## a simulated network, the relay and an ingester, compared record by record at the end
	bin/relay demo $(ARGS)

run: $(STAMP)  ## the relay with ARGS, in the foreground: make run ARGS="backfill --did did:plc:..."
	bin/relay $(or $(ARGS),--help)

# Two processes: most of the time goes to other programs' starts. A file's tests stay together, for the servers that they share.
test: $(STAMP)  ## unit, interop and integration tests; in this process alone with ARGS="-n 0"
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

test-faults: $(STAMP)  ## kills and faults, then the oracle; longer with ARGS="--long"
	$(PY) -m pytest tests/faults $(ARGS)

test-interop: $(STAMP)  ## conformance vectors and real repositories only
	$(PY) -m pytest tests/interop $(ARGS)

bench: $(STAMP)  ## figures beside a reference loop of the same run; asserts no time
	$(PY) -m tests.bench $(ARGS)

proto: $(STAMP)  ## generate the messages from proto/
	$(PY) $(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=.

fmt: $(STAMP)  ## format the code
	$(PY) -m ruff check --fix-only --quiet
	$(PY) -m ruff format

lint: $(STAMP) lint-proto  ## style, types, floors, generated code
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

lint-proto: $(STAMP)
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	$(PY) $(PROTOC) --python_out="$$fresh" --pyi_out="$$fresh" --grpc_python_out="$$fresh" && \
	for f in $(GENERATED); do cmp "$$f" "$$fresh/$$f" || { echo "$$f is not what proto/ says: run make proto"; exit 1; }; done

check: lint test  ## what a change has to pass

build: $(STAMP)  ## a wheel in dist/
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:  ## remove what was built or cached; the environment goes too
	rm -rf build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache $(VENV)
	find relay tests -name __pycache__ -type d -prune -exec rm -rf {} +
