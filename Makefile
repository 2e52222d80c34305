# Everything a fresh machine needs is Python 3.11 or later and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo picture test check coverage lint format environments clients live fuzz soak bench lock clean

# DEMO="--open" opens the browser, DEMO="--once" ends after the show. Ctrl-C (130) is how it is left, and no error.
demo: $(VENV)/ready
	@trap : INT; $(BIN)/eidproxy demo $(DEMO) || { code=$$?; [ $$code = 130 ] || exit $$code; }

# The recording in README, made from a real run.
picture: $(VENV)/ready
	$(BIN)/python -m tests.picture

# Three tests at a time: most of their time is waiting. TEST="-n 0" runs one after the other, as -s and --pdb need it.
test: $(VENV)/ready-test
	$(BIN)/pytest -n 3 --dist worksteal $(TEST)

check: $(VENV)/ready-test lint
	$(BIN)/python -m tests.coverage_pure

coverage: $(VENV)/ready-test
	$(BIN)/python -m tests.coverage_shell

lint: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready-test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# The environments of the clients and of the real model servers, which are too large for everybody's test environment.
environments: $(VENV)/ready-test
	$(BIN)/python -m tests.environments

clients: environments
	$(BIN)/pytest -n 3 tests/clients tests/deploy/test_clients.py

live: environments
	$(BIN)/pytest tests/routers

fuzz: $(VENV)/ready-test
	$(BIN)/python -m tests.fuzz --frames $(or $(FRAMES),1000000)

soak: $(VENV)/ready-test
	$(BIN)/python -m tests.soak

bench: $(VENV)/ready-test
	$(BIN)/python -m tests.bench

# The locks hold exact versions with hashes and name no index. Updating them takes uv (pip install uv).
lock:
	uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
	    --extra redis --group build -o requirements.lock
	uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
	    --extra redis --extra test --group build -o requirements-test.lock
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

$(VENV)/ready: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing some twenty packages into $(VENV), once: a few seconds, on a slow line a minute"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@: > $@

$(VENV)/ready-test: requirements-test.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-test.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@: > $@; : > $(VENV)/ready

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
