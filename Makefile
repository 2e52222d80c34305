# Everything a fresh machine needs is Python 3.11 or later and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help demo picture test check coverage lint format environments clients live fuzz soak bench mutate measures lock \
        dist release clean

help:
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 14

# DEMO="--open" opens the browser, DEMO="--once" ends after the demonstration. Ctrl-C (130) is how it is left, and no error.
demo: $(VENV)/ready  ## an embedded router, the proxy in front, and a demonstration of what they do
	@trap : INT; $(BIN)/eidproxy demo $(DEMO) || { code=$$?; [ $$code = 130 ] || exit $$code; }

picture: $(VENV)/ready  ## the recording in README, made from a real run
	$(BIN)/python -m tests.picture

# Seven modules at a time: most of their time is waiting, and a busier machine is no better judge. A module stays in one
# process, so that what its tests share is started once. TEST="-n 0" runs one after the other, as -s and --pdb need it.
# What pytest compiles is kept for all processes, and made once before they begin.
unexport PYTHONDONTWRITEBYTECODE
test: $(VENV)/ready-test  ## every test; FULL=1 for the full forms
	@$(BIN)/pytest --collect-only -q $(TEST) >/dev/null || true
	$(BIN)/pytest -n 7 --dist loadscope --no-loadscope-reorder $(TEST)

check: $(VENV)/ready-test lint  ## lint, types, the pure core covered whole, the locks audited
	$(BIN)/python -m tests.coverage_pure
	$(BIN)/python -m tests.release.audit

coverage: $(VENV)/ready-test  ## how much of the shell the tests reach
	$(BIN)/python -m tests.coverage_shell

lint: $(VENV)/ready-test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready-test  ## fix what ruff can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# The environments of the clients and of the real model servers, which are too large for everybody's test environment.
environments: $(VENV)/ready-test  ## what clients, routers and a release need, beside the tests
	$(BIN)/python -m tests.environments

clients: environments  ## the recipes for clients, with the real packages
	$(BIN)/pytest -n 3 tests/clients tests/deploy/test_clients.py

live: environments  ## real model servers and a real router
	$(BIN)/pytest tests/routers

fuzz: $(VENV)/ready-test  ## FRAMES frames, a million by default
	$(BIN)/python -m tests.fuzz --frames $(or $(FRAMES),1000000)

soak: $(VENV)/ready-test  ## SOAK_SECONDS of mixed load with faults, ten minutes by default
	$(BIN)/python -m tests.soak

bench: $(VENV)/ready-test  ## what an event and a request cost here
	$(BIN)/python -m tests.bench

mutate: $(VENV)/ready-test  ## change the pure core in one place at a time; MODULES="sse wedge" for some; half an hour
	$(BIN)/python -m tests.environments release
	$(BIN)/python -m tests.release.mutate $(MODULES)

measures: $(VENV)/ready-test  ## files, lines, longest function, worst complexity and the like
	$(BIN)/python -m tests.measures

dist: $(VENV)/ready-test  ## sdist and wheel in dist/, judged, installed and shown
	$(BIN)/python -m tests.environments release
	$(BIN)/python -m tests.release build

# make release VERSION=0.2.0: nothing is tagged that was not whole at this commit, and nothing is sent anywhere.
release: $(VENV)/ready-test  ## VERSION=x.y.z: check, the full forms, the changelog cut, dist, and a tag
	@[ -n "$(VERSION)" ] || { echo 'which one? make release VERSION=0.2.0' >&2; exit 1; }
	@[ -z "$$(git status --porcelain)" ] || { echo 'commit or stash first: git status' >&2; exit 1; }
	$(MAKE) environments check
	FULL=1 $(MAKE) test
	$(BIN)/python -m tests.release cut $(VERSION)
	$(MAKE) dist
	git commit --quiet --all --message "release: $(VERSION)"
	git tag --annotate "v$(VERSION)" --message "eidproxy $(VERSION)"

# The locks hold exact versions with hashes and name no index. Updating them takes uv (pip install uv).
lock:  ## write every lock anew
	uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
	    --extra redis --group build -o requirements.lock
	uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
	    --extra redis --extra test --group build -o requirements-test.lock
	uv pip compile tests/release/requirements.in --constraints requirements-test.lock --universal --generate-hashes \
	    --no-emit-index-url --no-annotate --no-header --python-version 3.11 -o tests/release/requirements.lock
	for name in tests/clients/requirements tests/clients/requirements-openai2 tests/routers/requirements; do \
	    uv pip compile $$name.in --universal --generate-hashes --no-emit-index-url --no-annotate --no-header -o $$name.lock; \
	done
	cd tests/clients && npm install --package-lock-only --omit-lockfile-registry-resolved

# One line for what is missing: no Python, too old a one, or Debian's, which comes without `venv`.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "eidproxy needs Python 3.11 or\
	 later, and $(PYTHON) is none: install it (Debian: apt install python3 python3-venv) or name another: make PYTHON=python3.12"\
	 >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(PYTHON) -c 'import sys; print("eidproxy needs the venv of\
	 this Python: apt install python%d.%d-venv (or another Python: make PYTHON=python3.12)" % sys.version_info[:2])'\
	 >&2; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)

$(VENV)/ready: requirements.lock pyproject.toml eidproxy/_splice.c | $(VENV)/bin/python
	@echo "Installing some twenty packages into $(VENV), once: a few seconds, on a slow line a minute"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@: > $@

$(VENV)/ready-test: requirements-test.lock pyproject.toml eidproxy/_splice.c | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-test.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@: > $@; : > $(VENV)/ready

clean:  ## remove what make made
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
