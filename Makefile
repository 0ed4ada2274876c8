# One command for each habit; `make` alone prints them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
PROTOS := $(wildcard protos/likeness/*/v1/*.proto)

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environment and stubs -------------------------------------------------------------------------------------------
.venv/installed: requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the locked dependencies into .venv (several GB; minutes the first time) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.lock
	@touch $@

.venv/project: .venv/installed pyproject.toml
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

gen/.stubs: .venv/installed $(PROTOS)
	@rm -rf gen && mkdir -p gen
	@PATH=$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -Iprotos -I$(SITE) --python_out=gen --grpc_python_out=gen \
		--mypy_out=quiet:gen --mypy_grpc_out=quiet:gen $(PROTOS)
	@touch $@

.PHONY: setup
setup: .venv/project gen/.stubs ## the environment and the stubs, nothing else

.PHONY: stubs
stubs: gen/.stubs ## Python stubs from protos/ into gen/

.PHONY: lock
lock: .venv/installed ## compile requirements/*.lock from pyproject.toml again
	@for set in embedder indexer gateway client dev; do \
		extras=$$([[ $$set == dev ]] && echo --all-extras || echo --extra $$set); \
		[[ $$set == dev ]] || constrain="-c requirements/dev.lock"; \
		[[ $$set == dev ]] && constrain=; \
		echo "requirements/$$set.lock"; \
		$(BIN)/uv pip compile pyproject.toml $$extras --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --no-header --no-annotate $${constrain:-} --quiet -o requirements/$$set.lock; \
	done
