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
.PHONY: help setup deps proto-deps demo run health test test-faults test-interop test-coverage bench proto fmt lint lint-proto check build clean \
	docker-build docker-run docker-compose-up docker-compose-logs docker-compose-down install uninstall

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-20s %s\n", $$1, $$2 }'

setup: $(STAMP)  ## the virtual environment with everything in it

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "needs Python 3.11, and there is no $(PYTHON): make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or later: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
	@echo "installing into $(VENV), once: about half a minute"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

deps: setup  ## the same: what the relay and working on it need

proto-deps: setup  ## the same: the generator of messages is among it

demo: $(STAMP)  ## a simulated network, the relay and an ingester, compared record by record at the end
	bin/relay demo $(ARGS)

run: $(STAMP)  ## the service in the foreground, or any command: make run ARGS="backfill --did did:plc:..."
	bin/relay $(ARGS)

health: $(STAMP)  ## ask the running instance whether it is well
	@bin/relay health $(ARGS)

# Two processes: most of the time goes to other programs' starts. A file's tests stay together, for the servers that they share.
test: $(STAMP)  ## unit, interop and integration tests; in this process alone with ARGS="-n 0"
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

# The long forms push the machine as hard as they can, and so one at a time.
test-faults: $(STAMP)  ## kills and faults, then the oracle; longer with ARGS="--long"
	$(PY) -m pytest tests/faults $(if $(findstring --long,$(ARGS)),,-n 2 --dist loadfile) $(ARGS)

test-interop: $(STAMP)  ## conformance vectors and real repositories only
	$(PY) -m pytest tests/interop $(ARGS)

# Child processes are counted too, but not those that a test kills: their counts die with them.
test-coverage: $(STAMP)  ## the tests, and which lines they ran: htmlcov/index.html
	$(PY) -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered --cov-report=html $(ARGS)

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

build: $(STAMP)  ## a source distribution and a wheel in dist/
	$(PY) -m build --no-isolation --outdir dist .

clean:  ## remove what was built or cached; the environment goes too
	rm -rf build dist htmlcov .coverage .coverage.* ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache $(VENV)
	find relay tests -name __pycache__ -type d -prune -exec rm -rf {} +

# -- containers ------------------------------------------------------------------------------------------------------------

IMAGE   ?= tradr-relay
DOCKER  ?= docker
COMPOSE := $(DOCKER) compose -f config/docker/docker-compose.yml

docker-build:  ## the container image: IMAGE=tradr-relay
	$(DOCKER) build -f config/docker/Dockerfile -t $(IMAGE) .

docker-run:  ## the image in the foreground, its state in a volume: make docker-run ARGS="demo"
	$(DOCKER) run --rm --init -it -p 127.0.0.1:9090:9090 -v tradr-relay:/var/lib/tradr-relay $(IMAGE) $(ARGS)

docker-compose-up:  ## PostgreSQL, relay, ingester, Prometheus and Grafana on this machine
	$(COMPOSE) up --build --detach $(ARGS)

docker-compose-logs:  ## what they say
	$(COMPOSE) logs --follow --tail 100 $(ARGS)

docker-compose-down:  ## stop them; their volumes stay, unless ARGS=--volumes
	$(COMPOSE) down $(ARGS)

# -- installing on this machine --------------------------------------------------------------------------------------------
# An environment of its own under PREFIX/lib, the command in PREFIX/bin. DESTDIR is for packagers and tests: nothing outside of it is
# touched then. PIP_ARGS goes to pip. Units of a prefix where systemd does not look for them go to /etc.

PREFIX     ?= /usr/local
DESTDIR    ?=
SYSCONFDIR ?= /etc
PIP_ARGS   ?=
SYSTEMD    ?= $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib,/etc)

LIB   := $(DESTDIR)$(PREFIX)/lib/tradr-relay
SHARE := $(DESTDIR)$(PREFIX)/share
ETC   := $(DESTDIR)$(SYSCONFDIR)/tradr-relay
UNITS := $(wildcard systemd/*.service)
# Built from a copy: what root would leave in the checkout is in its owner's way afterwards.
SOURCES := pyproject.toml setup.cfg README.md LICENSE config/config.yaml proto systemd relay
IS_HERE   := test -z "$(DESTDIR)" && test "$$(id -u)" = 0
IS_BOOTED := $(IS_HERE) && test -d /run/systemd/system

install:  ## the command, the services and their user on this machine (as root): PREFIX=/usr/local
	@test -n "$(DESTDIR)" || test "$$(id -u)" = 0 || { echo "installing needs root: sudo make install (or DESTDIR=... to look at it)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or later: make install PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(DESTDIR)$(PREFIX): about half a minute"
	@rm -rf $(LIB).new
	@$(PYTHON) -m venv $(LIB).new
	@mkdir $(LIB).new/src && tar --exclude=__pycache__ -cf - $(SOURCES) | tar -xf - --no-same-owner -C $(LIB).new/src
	@$(LIB).new/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt $(PIP_ARGS) $(LIB).new/src
	@rm -rf $(LIB).new/src
	@sed -i '1s|^#!.*/python.*|#!$(PREFIX)/lib/tradr-relay/bin/python|' $$(grep -rIl '^#!.*/lib/tradr-relay.new/' $(LIB).new/bin)
	@rm -rf $(LIB) && mv $(LIB).new $(LIB)
	@$(LIB)/bin/python -m compileall -q $(if $(DESTDIR),-s $(DESTDIR)) -j 0 $(LIB)/lib
	@install -D -m 0755 systemd/tradr-relay.sh $(DESTDIR)$(PREFIX)/bin/tradr-relay
	@install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d $(SHARE)/doc/tradr-relay/docs
	@$(LIB)/bin/python $(LIB)/bin/tradr-relay completion bash > $(SHARE)/bash-completion/completions/tradr-relay
	@$(LIB)/bin/python $(LIB)/bin/tradr-relay completion zsh > $(SHARE)/zsh/site-functions/_tradr-relay
	@$(LIB)/bin/python $(LIB)/bin/tradr-relay completion fish > $(SHARE)/fish/vendor_completions.d/tradr-relay.fish
	@install -m 0644 README.md CHANGELOG.md ARCHITECTURE.md LICENSE $(SHARE)/doc/tradr-relay
	@tar -C docs --exclude=node_modules --exclude=generated --exclude=dist -cf - . | tar -C $(SHARE)/doc/tradr-relay/docs --no-same-owner -xf -
	@for unit in $(UNITS); do install -D -m 0644 $$unit $(DESTDIR)$(SYSTEMD)/systemd/system/$${unit##*/}; \
	  sed -i 's|/usr/local/|$(PREFIX)/|; s|/etc/tradr-relay|$(SYSCONFDIR)/tradr-relay|' $(DESTDIR)$(SYSTEMD)/systemd/system/$${unit##*/}; done
	@install -D -m 0644 systemd/sysusers.conf $(DESTDIR)$(SYSTEMD)/sysusers.d/tradr-relay.conf
	@if $(IS_HERE); then systemd-sysusers $(SYSTEMD)/sysusers.d/tradr-relay.conf || { echo "no user was made: useradd --system tradr-relay"; exit 1; }; fi
	@install -d -m 0755 $(ETC)
	@sed -i 's|^  data_dir: "" *|  data_dir: /var/lib/tradr-relay |' $(LIB)/share/tradr-relay/config.yaml
	@for file in $(LIB)/share/tradr-relay/config.yaml systemd/environment systemd/ingester.environment; do \
	  test -e $(ETC)/$${file##*/} || install -m 0640 $$file $(ETC)/$${file##*/} || exit 1; \
	  if $(IS_HERE); then chgrp tradr-relay $(ETC)/$${file##*/} || exit 1; fi; done
	@if $(IS_BOOTED); then systemctl daemon-reload; fi
	@echo "installed: $(PREFIX)/bin/tradr-relay. Next: edit $(SYSCONFDIR)/tradr-relay/config.yaml, then"
	@echo "  tradr-relay config check && systemctl enable --now tradr-relay"

uninstall:  ## remove what install made; the state, its user and a configuration that was changed stay
	@if $(IS_BOOTED); then systemctl stop 'tradr-relay*.service'; systemctl --quiet disable tradr-relay.service tradr-relay-ingester.service; \
	  rm -f /etc/systemd/system/multi-user.target.wants/tradr-relay@*.service; systemctl reset-failed 'tradr-relay*.service'; fi
	@for pair in share/tradr-relay/config.yaml=config.yaml share/tradr-relay/systemd/environment=environment share/tradr-relay/systemd/ingester.environment=ingester.environment; do \
	  if cmp -s "$(LIB)/$${pair%%=*}" "$(ETC)/$${pair##*=}"; then rm -f "$(ETC)/$${pair##*=}"; elif test -e "$(ETC)/$${pair##*=}"; then echo "left: $(ETC)/$${pair##*=}"; fi; done
	@if test -d $(ETC); then rmdir --ignore-fail-on-non-empty $(ETC); fi
	@rm -f $(addprefix $(DESTDIR)$(SYSTEMD)/systemd/system/,$(notdir $(UNITS))) $(DESTDIR)$(SYSTEMD)/sysusers.d/tradr-relay.conf
	@rm -f $(DESTDIR)$(PREFIX)/bin/tradr-relay $(SHARE)/bash-completion/completions/tradr-relay $(SHARE)/zsh/site-functions/_tradr-relay $(SHARE)/fish/vendor_completions.d/tradr-relay.fish
	@rm -rf $(LIB) $(LIB).new $(SHARE)/doc/tradr-relay
	@if $(IS_BOOTED); then systemctl daemon-reload; fi
	@echo "removed; left: the state in /var/lib/tradr-relay, and the user tradr-relay"
