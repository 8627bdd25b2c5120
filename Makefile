# `make demo` and `make test` are all the set-up there is: they make .venv here, install from this folder, and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INPUT ?=
# A regular expression that finds the patient in a path, for scans whose file names say who is who.
PATIENT_REGEX ?=

.PHONY: demo test soak evidence lint plan-venv plan-venv-gpu clean

$(INSTALLED): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "error: PYTHON: %d.%d found; Python 3.11 or newer is needed, e.g. make PYTHON=python3.12" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e '.[test]'
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python launch/demo.py $(if $(INPUT),--input="$(INPUT)") $(if $(PATIENT_REGEX),--patient-regex='$(PATIENT_REGEX)')

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache

test: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile

# Apache Beam brings 190 MB and older versions of what the rest uses, so its tests have an environment of their own.
soak: $(INSTALLED)
	@$(BIN)/python -m pytest -m soak
	@test -x .venv-beam/bin/python || $(PYTHON) -m venv .venv-beam
	@.venv-beam/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e '.[test,beam,oracles]'
	@.venv-beam/bin/python -m pytest -k beam tests/data/ingest/test_beam.py tests/launch/test_ingest_command.py
	@.venv-beam/bin/python -m pytest tests/curiabench/test_cox.py tests/curiabench/test_overlap.py tests/curiabench/test_adapters.py

evidence: $(INSTALLED)
	@$(BIN)/python launch/demo.py --evidence $(if $(INPUT),--input="$(INPUT)")

# The TPU compiler for `launch/plan.py --topology`, apart: libtpu complains at every start where there is no TPU.
plan-venv:
	@test -x .venv-tpu/bin/python || $(PYTHON) -m venv .venv-tpu
	@.venv-tpu/bin/python -m pip install --quiet --disable-pip-version-check -e '.[tpu]'

# XLA's compiler for NVIDIA GPUs for `launch/plan.py --gpus`: gigabytes of CUDA that training on a CPU need not have.
plan-venv-gpu:
	@test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu
	@.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check -e '.[cuda]'

clean:
	rm -rf demo runs
