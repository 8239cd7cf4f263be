# Annheal. `make help` lists the targets.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# PYTEST_ARGS passes options on, as in: make test PYTEST_ARGS='-x -k wal'
PYTEST_ARGS ?=
# Unit and contract tests run side by side in so many processes. 0: in one.
TEST_WORKERS ?= 2
BENCH_ARGS ?=
BASE ?=
SOAK_MINUTES ?= 10
SOAK_STEPS ?= 100
SOAK_SEED ?=
PYTHON ?=
export PYTHON
PYTEST = $(BIN)/python -m pytest
# With -k or -m in PYTEST_ARGS, one of the two runs may choose no test: pytest then exits with 5.
SOME = || { status=$$?; [ $$status -eq 5 ] && [ -n "$(PYTEST_ARGS)" ] || exit $$status; }
SIDE_BY_SIDE = -n $(TEST_WORKERS) --dist loadfile

.PHONY: help setup demo demo-migration check test lint fmt types proto proto-check test-unit test-integration test-chaos \
	soak bench lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

# The stamps make repeated set-ups instant; the full one serves where the runtime one is asked for.
.venv/.setup-full: pyproject.toml constraints.txt scripts/setup.sh
	@bash scripts/setup.sh dev,hdf5,text,models,bench
	@touch .venv/.setup-runtime .venv/.setup-models .venv/.setup-full

.venv/.setup-runtime: pyproject.toml constraints.txt scripts/setup.sh
	@bash scripts/setup.sh hdf5,text
	@touch .venv/.setup-runtime

# The second model of a migration is 63 MB, which nothing else needs.
.venv/.setup-models: pyproject.toml constraints.txt scripts/setup.sh
	@bash scripts/setup.sh hdf5,text,models
	@touch .venv/.setup-runtime .venv/.setup-models

setup: .venv/.setup-full ## create .venv and install annheal with everything for development

demo: .venv/.setup-runtime ## 10,000 real packages: import, search, degrade, heal, kill -9, recover
	@$(BIN)/python samples/demo.py

demo-migration: .venv/.setup-models ## 10,000 packages get another embedding model while a client reads and writes
	@$(BIN)/python samples/demo_migration.py

test: setup lint types proto-check ## lint, types, contracts, generated code, then every test
	@$(PYTEST) $(SIDE_BY_SIDE) $(PYTEST_ARGS) tests/unit tests/contract $(SOME)
	@$(PYTEST) $(PYTEST_ARGS) tests/integration tests/chaos $(SOME)

check: lint types ## lint, types and the unit tests of what changed (BASE=REV): under two minutes
	@$(BIN)/python scripts/check_changed.py $(BASE)

lint: setup ## ruff, import contracts, buf lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run 'make fmt'" >&2; exit 1; }
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$report"; exit 1; }; tail -n 1 <<<"$$report"
	@$(BIN)/buf lint

fmt: setup ## format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

types: setup ## mypy --strict
	@$(BIN)/mypy

proto: setup ## regenerate annheal/v1 from protos/
	@PYTHON=$(BIN)/python bash scripts/generate_protos.sh .

proto-check: setup ## fail when the generated code is stale
	@PYTHON=$(BIN)/python bash scripts/check_protos.sh

test-unit: setup ## unit and contract tests only
	@$(PYTEST) $(SIDE_BY_SIDE) $(PYTEST_ARGS) tests/unit tests/contract

test-integration: setup ## tests over real processes, etcd and S3
	@$(PYTEST) $(PYTEST_ARGS) tests/integration

test-chaos: setup ## kill processes at random moments and at every crash point, and check the invariants
	@ANNHEAL_CHAOS_EVERY_POINT=1 $(PYTEST) $(PYTEST_ARGS) tests/chaos

soak: setup ## random histories of a shard for SOAK_MINUTES (10), new ones each time (SOAK_SEED=N repeats)
	@ANNHEAL_SOAK_S=$$(($(SOAK_MINUTES) * 60)) ANNHEAL_SOAK_SEED=$(SOAK_SEED) ANNHEAL_STATEFUL_STEPS=$(SOAK_STEPS) \
		$(BIN)/python -m pytest $(PYTEST_ARGS) tests/unit/test_shard_stateful.py -k soak

BENCHMARKS := ingest search filters unfiltered growth impact/recall_cost churn merge impact/compaction impact/first_minute impact/lanes impact/last_rung impact/recall_intervals \
	impact/write_amplification storage

bench: setup ## every benchmark, on the samples (BENCH_ARGS='--base x.npy --queries y.npy')
	@for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(BENCH_ARGS); done

lock: ## rewrite constraints.txt from a clean install of the newest versions
	@bash scripts/lock.sh

clean: ## remove .venv, caches and build output
	@rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
