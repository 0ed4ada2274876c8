# One command for each habit; `make` alone prints them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
# Files of tests that run at once: they also wait, for processes and disks. The slow ones come first, so that no worker ends with one alone.
WORKERS ?= 3
# These interrupt their own process, which a worker may not outlive: they run by themselves, after the others.
INTERRUPTED := tests/unit/client/test_cli_index.py
BIN := $(CURDIR)/.venv/bin
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
PROTOS := $(wildcard protos/likeness/*/v1/*.proto)

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environment and stubs -------------------------------------------------------------------------------------------
# --no-compile: of some 17,000 modules few are ever imported, and those are compiled then.
.venv/installed: requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the locked dependencies into .venv (several GB; minutes the first time) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes -r requirements/dev.lock
	@touch $@

.venv/project: .venv/installed pyproject.toml
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

OPENAPI := gateway/http/openapi.py gateway/http/openapi_routes.py

gen/.stubs: .venv/installed $(PROTOS) build/protos.binpb $(OPENAPI)
	@rm -rf build/gen && mkdir -p build/gen
	@PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos -I$(SITE) --python_out=build/gen \
		--grpc_python_out=build/gen --mypy_out=quiet:build/gen --mypy_grpc_out=quiet:build/gen $(PROTOS)
	@$(BIN)/python -m gateway.http.openapi build/protos.binpb build/gen/likeness/gateway/v1/openapi.json
	@rm -rf gen && mv build/gen gen && touch $@

.PHONY: setup
setup: .venv/project gen/.stubs ## the environment and the stubs, nothing else

.PHONY: stubs
stubs: gen/.stubs ## Python stubs and the OpenAPI document from protos/ into gen/

.PHONY: lock
lock: .venv/installed ## compile requirements/*.lock from pyproject.toml again
	@compile() { echo "$$1"; $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --quiet -o "$$@"; }; \
	compile requirements/dev.lock --all-extras; \
	for set in embedder embedder-openvino indexer gateway client build; do \
		compile requirements/$$set.lock --extra $$set -c requirements/dev.lock; \
	done

# --- the main job ----------------------------------------------------------------------------------------------------
.PHONY: demo
demo: setup ## index sample photographs and search them by picture, text and both (IMAGES=dir QUERY=file TEXT="…")
	@$(BIN)/python -m deploy.demo

.PHONY: up
up: setup ## start the three services in the background; returns when all are SERVING
	@$(BIN)/python -m deploy.local up

.PHONY: down
down: setup ## stop what `make up` started
	@$(BIN)/python -m deploy.local down

# --- habits ----------------------------------------------------------------------------------------------------------
.PHONY: test
test: setup ## every test but the container one, three files at once (ARGS="-k name" for some; WORKERS=0: one after another)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(or $(ARGS),$(INTERRUPTED:%=--ignore=%))
	@$(if $(ARGS),,$(BIN)/python -m pytest $(INTERRUPTED))

.PHONY: lint
lint: setup build/protos.binpb ## ruff, mypy --strict, buf lint, buf breaking against the main branch
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/buf lint build/protos.binpb --path likeness
	@PATH="$(BIN):$$PATH" deploy/buf-breaking build/protos.binpb

build/protos.binpb: .venv/installed $(PROTOS)
	@mkdir -p build
	@$(BIN)/python -m grpc_tools.protoc -Iprotos -I$(SITE) --include_imports --include_source_info \
		--descriptor_set_out=$@ $(PROTOS)

.PHONY: format
format: setup ## format and fix what can be fixed by itself
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

.PHONY: bench
bench: bench-embedder bench-indexer bench-gateway ## every benchmark that needs no data of yours

.PHONY: bench-embedder
bench-embedder: setup ## the embedder's speed beside others', about 2 hours (QUICK=1: 15 minutes; PEERS=0; ARGS="--only load")
	@$(BIN)/python -m benchmarks.embedder $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

.PHONY: bench-indexer
bench-indexer: setup ## the indexer's speed beside Chroma's and others', about 1 1/2 hours (QUICK=1: 10 minutes; PEERS=0; ARGS="--only …")
	@$(BIN)/python -m benchmarks.indexer $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

.PHONY: bench-gateway
bench-gateway: setup ## the gateway's share of a search, searches a second, ingest, 45 minutes (QUICK=1: 8 minutes; ARGS="--only …")
	@$(BIN)/python -m benchmarks.gateway $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

.PHONY: chaos
chaos: setup ## kill -9 under load, full disks, networks cut (ROUNDS=50 SEED=1 BASE=50000; ARGS="--only gateway")
	@$(BIN)/python -m tests.chaos --seed $(or $(SEED),1) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(BASE),--base $(BASE)) $(ARGS)

.PHONY: compose-test
compose-test: setup ## build deploy/compose.yaml, bring it up, index, search, scale, tear down (needs docker)
	@$(BIN)/python -m deploy.compose_test

.PHONY: clean
clean: ## remove what was built (.venv, gen, build, caches); data/ stays
	@rm -rf .venv gen build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
