# Two commands on a fresh machine: `make demo` and `make test`; `make check` while working.
PYTHON ?= python3
JOBS ?= 2
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# `make test PYTHON=python3.13` has an environment of its own.
VENV := $(if $(filter file,$(origin PYTHON)),.venv,.venv-$(VERSION))
BIN := $(VENV)/bin
# What is imported is compiled then; of all 20,000 files it would take a minute.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile

# The files of requirements/ are complete and pinned, for Python 3.11. Other versions get the newest
# that setup.py admits, without compilers for accelerators, Apache Beam and PyTorch: the tests that
# need these skip and say so.
ifeq ($(VERSION),3.11)
BASE := -r requirements/base.txt
DEV := -r requirements/dev.txt
ENVIRONMENTS = $(VENV)/.dev $(VENV)/.aot $(VENV)/.beam $(VENV)/.libero $(VENV)/.light
else
BASE := -e .
DEV := -e .[dev,serve]
ENVIRONMENTS = $(VENV)/.dev
endif

# A file is one worker's; they begin in the order of tests/conftest.py. A worker that crashes ends the
# run: replaced, it would leave the others waiting for ever (pytest-xdist 3.8, #1378).
BY_FILE := --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: check demo demo-plan test test-aot fuzz torture lint clean

demo: demo-plan $(VENV)/.base
	$(BIN)/lapa demo

demo-plan:
	@[ -e $(VENV)/.base ] || echo "make demo: installs 2.7 GB of packages into $(VENV) first" \
		"(600 MB to download, one to two minutes), then runs lapa demo:" \
		"6 minutes on two quiet CPU cores, 20 where others use them; 0.3 GB in runs/demo."

test: $(ENVIRONMENTS)
	@$(BIN)/python -I lapa_jax/envs/graphics.py
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(JOBS) $(BY_FILE)

# The inner loop: lint and the fast tests, in two minutes on two cores.
check: lint
	$(BIN)/python -m pytest -q -n $(JOBS) $(BY_FILE) -m "not slow and not aot and not simulator"

# Every shipped config for every machine it names, ahead of time: about an hour on two cores.
test-aot: $(VENV)/.dev $(VENV)/.aot
	$(BIN)/python -m pytest -n $(JOBS) -m aot -o faulthandler_timeout=0 tests/aot

# 10,000 requests that `lapa serve` should refuse, and 1,000 clients that vanish: some minutes.
fuzz: $(VENV)/.dev
	LAPA_FUZZ_REQUESTS=10000 LAPA_FUZZ_DISCONNECTS=1000 \
		$(BIN)/python -m pytest tests/serving/test_fuzz.py

# A hundred faults in a run of each stage: about two hours on two cores. The directory is
# kept, with what every process said.
TORTURE ?= torture-$(shell date +%Y%m%d-%H%M%S)
torture: $(VENV)/.dev
	$(BIN)/python tests/torture/torture.py --faults 100 --out $(TORTURE)

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: requirements/base.txt setup.py | $(BIN)/python
	$(BIN)/python $(PIP) $(BASE)
	$(BIN)/python $(PIP) --no-deps -e .
	touch $@

$(VENV)/.dev: requirements/dev.txt requirements/gcs.txt requirements/no_deps.txt $(VENV)/.base
	$(BIN)/python $(PIP) $(DEV)
	$(BIN)/python $(PIP) --no-deps -r requirements/no_deps.txt
	touch $@

# Compilers for accelerators, in a folder of their own: in the environment itself JAX would look for
# the hardware at every start. --no-deps: the CUDA libraries are not needed to compile.
$(VENV)/.aot: requirements/aot.txt | $(BIN)/python
	$(BIN)/python $(PIP) --upgrade --no-deps --target $(VENV)/aot -r requirements/aot.txt
	touch $@

# Apache Beam, which wants older versions of what .base has, in an environment of its own.
$(VENV)/.beam: requirements/beam.txt setup.py | $(BIN)/python
	$(BIN)/python -m venv --clear $(VENV)/beam
	$(VENV)/beam/bin/python $(PIP) -r requirements/beam.txt
	$(VENV)/beam/bin/python $(PIP) --no-deps -e .
	touch $@

# LIBERO, which wants another MuJoCo than Meta-World, in an environment of its own (2 GB).
$(VENV)/.libero: requirements/libero.txt | $(BIN)/python
	$(BIN)/python -m venv --clear $(VENV)/libero
	$(VENV)/libero/bin/python $(PIP) --no-deps -r requirements/libero.txt
	touch $@

# The light installation, which the tests run the demo in: without TensorFlow, under 1 GB.
$(VENV)/.light: requirements/light.txt setup.py | $(BIN)/python
	$(BIN)/python -m venv --clear $(VENV)/light
	$(VENV)/light/bin/python $(PIP) --no-deps -r requirements/light.txt
	$(VENV)/light/bin/python $(PIP) --no-deps -e .
	touch $@

clean:
	rm -rf .venv .venv-* build *.egg-info
