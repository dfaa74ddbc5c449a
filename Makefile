# Everything works on a fresh machine with Python >= 3.11 and make, and from a folder whose path has a space:
# make splits lists at spaces, so every path below is relative.
#
#   make demo        simulate a drug screen, fit, predict, compare; figures and files go to demo_output/
#   make test        the test suite, with coverage, but for tests marked slow
#   make test-all    the slow ones too; what continuous integration runs
#   make docs        the documentation, in docs/_build/html; warnings are errors
#   make tutorials   run the tutorial notebooks again, in place; those on real data where DATA=folder has it
#   make bench-real  tables on real data (DATA=folder)
#   make bench-structure   tables on simulated data: graph and targets (SUITES="main size ...", BENCH=folder)
#   make bench-prediction  tables on simulated data: drugs and doses that were not measured (the same)
#   make bench-worlds      tables on simulated data that share no code with the package (SUITES="kinetic variants regulators sciplex gnw")
#   make bench-sensitivity tables of what other values of constants do (SUITES="kinetic gnw nonlinear")
#   make bench-scale       what fits cost, on simulated data (SUITES="cells genes ...")
#   make bench-campaign    tables of campaigns of three rounds, chosen by the model or at random, on simulated data
#   make mutants     which small changes of the scientific core the tests do not see (MUTANTS=number, SEED=0)
#   make lint        style and types
#   make clean       remove what the above made

# The first of these that is new enough; PYTHON=/path/to/python overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
DATA ?= ../shared/data
BENCH ?= ../shared/bench
SUITES ?= main
MUTANTS ?= 70
SEED ?= 0

# An editable install remembers the folder it was made in, so a checkout that was moved or copied installs again.
HERE := $(shell pwd | cksum | cut -d ' ' -f 1)
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --constraint constraints.txt

# Matrices here are small: on a busy machine threads that wait for each other take many times longer than one alone.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-all docs tutorials bench-real bench-structure bench-prediction bench-worlds bench-sensitivity bench-scale bench-campaign \
	mutants lint clean .venv

help:
	@sed -n 's/^#   make/make/p' Makefile

demo: .venv
	$(PY) tutorials/demo.py --output demo_output

PYTEST := $(PY) -m pytest --numprocesses 2 --dist loadfile --cov --cov-report=term --cov-report=xml

test: .venv/test-$(HERE)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: test
	$(PYTEST) -m slow --cov-append $(PYTEST_ARGS)

docs: .venv/doc-$(HERE)
	$(PY) -m sphinx -b html -W --keep-going docs docs/_build/html

tutorials: .venv/tutorials-$(HERE)
	$(PY) tutorials/run.py --data "$(DATA)"

bench-real: .venv/bench-$(HERE)
	$(PY) benchmarks/real/run.py --data "$(DATA)"

bench-structure: .venv/bench-$(HERE)
	$(PY) benchmarks/structure/run.py $(SUITES) --bench "$(BENCH)"

bench-prediction: .venv/bench-$(HERE)
	$(PY) benchmarks/prediction/run.py $(SUITES) --bench "$(BENCH)"

bench-worlds: .venv/bench-$(HERE)
	$(PY) benchmarks/worlds/run.py $(if $(filter main,$(SUITES)),kinetic variants regulators sciplex gnw,$(SUITES)) --data "$(DATA)"

bench-sensitivity: .venv/bench-$(HERE)
	$(PY) benchmarks/sensitivity/run.py $(if $(filter main,$(SUITES)),kinetic gnw nonlinear,$(SUITES)) --data "$(DATA)"

bench-scale: .venv/bench-$(HERE)
	$(PY) benchmarks/scale/run.py $(if $(filter main,$(SUITES)),cells genes regulators contexts features library stored steps,$(SUITES))

bench-campaign: .venv/bench-$(HERE)
	$(PY) benchmarks/campaign/run.py

mutants: .venv/mutation-$(HERE)
	$(PY) benchmarks/mutants/run.py --number $(MUTANTS) --seed $(SEED)

lint: .venv/lint-$(HERE)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

clean:
	rm -rf .venv demo_output docs/_build docs/generated docs/notebooks .coverage coverage.xml dist \
		.pytest_cache .ruff_cache .mypy_cache .hypothesis .mutants.json

.venv: .venv/run-$(HERE)

# One stamp for each set of packages, made again when pyproject.toml or constraints.txt is newer.
.venv/run-$(HERE): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "scGIM needs Python 3.11 or newer; none found. Try: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PY) -c "" 2>/dev/null || { echo "Making .venv with $(PYTHON)"; "$(PYTHON)" -m venv --clear .venv; }
	@echo "Installing scGIM and what it needs into .venv (a few minutes the first time)"
	@$(PIP) --quiet --upgrade pip
	@$(PIP) --editable .
	@touch $@

.venv/test-$(HERE): .venv/run-$(HERE)
	@$(PIP) --quiet --group test --editable ".[chem]"
	@touch $@

.venv/mutation-$(HERE): .venv/test-$(HERE)
	@$(PIP) --quiet --group mutation
	@touch $@

.venv/doc-$(HERE): .venv/run-$(HERE)
	@$(PIP) --quiet --group doc
	@touch $@

.venv/lint-$(HERE): .venv/run-$(HERE)
	@$(PIP) --quiet --group typecheck ruff
	@touch $@

.venv/tutorials-$(HERE): .venv/run-$(HERE)
	@$(PIP) --quiet --editable ".[chem,tutorials]"
	@touch $@

.venv/bench-$(HERE): .venv/run-$(HERE)
	@$(PIP) --quiet --group bench
	@touch $@
