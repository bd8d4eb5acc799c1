# `make demo` shows what this is; `.ci/run` is what a change must pass.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BASE_PYTHON := $(shell command -v python3.11 || command -v python3)
PIP := $(PY) -m pip --quiet --disable-pip-version-check --no-input
PACKAGES := fedproxy_secure threat_models attacks
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2
SECAGG_TESTS := \
	tests/vectors \
	tests/properties/test_granularity_properties.py \
	tests/properties/test_masking_properties.py \
	tests/security/test_ckks_probe.py \
	tests/security/test_ckks_session.py \
	tests/security/test_gram.py \
	tests/security/test_journal.py \
	tests/security/test_lying_clients.py \
	tests/security/test_malformed_messages.py \
	tests/security/test_masking_must_fail.py \
	tests/security/test_provision.py \
	tests/security/test_selftest.py \
	tests/security/test_what_signatures_cover.py \
	tests/unit/test_ckks.py \
	tests/unit/test_expectations.py \
	tests/unit/test_granularity.py \
	tests/unit/test_ring.py \
	tests/unit/test_shamir_and_control.py \
	tests/unit/test_sketch.py

.PHONY: demo test test-all check coverage-secagg mutate-secagg bench clean
.DEFAULT_GOAL := demo

$(VENV): $(STAMP)

# torch first and pinned: the rest then finds it there and brings no second one.
$(STAMP): pyproject.toml requirements.lock
	@test -x $(PY) || $(BASE_PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes, about 2.5 GB"
	@$(PIP) install $$(grep '^torch==' requirements.lock)
	@$(PIP) install --editable '.[dev,dp,ckks,attacks,simulation,lm-eval,mlflow,wandb]' --constraint requirements.lock
	@touch $(STAMP)

demo: $(STAMP)
	@$(VENV)/bin/fedproxy-secure matrix configs/demo_trilemma.yaml --out runs/demo_trilemma --resume

test: $(STAMP)
	@$(PYTEST)

test-all: $(STAMP)
	@$(PYTEST) -m "slow or not slow"

check: $(STAMP)
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check .
	@$(PY) -m mypy --strict $(PACKAGES)
	@$(VENV)/bin/lint-imports
	@$(PY) -m tests.support.wheel_contents

# every branch of secagg and of the clients' journals, by their own tests
coverage-secagg: $(STAMP)
	@HYPOTHESIS_PROFILE=short $(PYTEST) --no-header $(SECAGG_TESTS) \
		--cov=fedproxy_secure.secagg --cov=fedproxy_secure.journal --cov-branch \
		--cov-report=term-missing:skip-covered --cov-fail-under=100

# what would no test notice? about 40 minutes of one core
mutate-secagg: $(VENV)/.mutation
	@nice $(PY) -m tests.support.mutation

$(VENV)/.mutation: $(STAMP)
	@$(PIP) install --editable '.[mutation]' --constraint requirements.lock
	@touch $@

bench: $(STAMP)
	@set -e; for file in tests/bench/[a-z]*.py; do \
		name=$$(basename "$$file" .py); echo "== $$name"; $(PY) -m "tests.bench.$$name"; \
	done

bench-%: $(STAMP)
	@$(PY) -m tests.bench.$(subst -,_,$*)

clean:
	@rm -rf build dist runs .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
