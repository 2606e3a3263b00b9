# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test test-aot torture lint clean

# Huge pages: memory that a step takes anew comes in fewer faults (docs/performance.md).
demo: $(VENV)/.base
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/lapa demo

test: $(VENV)/.dev $(VENV)/.aot $(VENV)/.beam
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# Every shipped config for every machine it names, ahead of time: about an hour on two cores.
test-aot: $(VENV)/.dev $(VENV)/.aot
	$(BIN)/python -m pytest -n $(JOBS) -m aot tests/aot

# A hundred faults in a run of each stage: about an hour and a half on two cores. The directory is
# kept, with what every process said.
TORTURE ?= torture-$(shell date +%Y%m%d-%H%M%S)
torture: $(VENV)/.dev
	$(BIN)/python tests/torture/torture.py --faults 100 --out $(TORTURE)

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: requirements/base.txt setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/base.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	touch $@

# Compilers for accelerators, in a folder of their own: in the environment itself JAX would look for
# the hardware at every start. --no-deps: the CUDA libraries are not needed to compile.
$(VENV)/.aot: requirements/aot.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
		--target $(VENV)/aot -r requirements/aot.txt
	touch $@

# Apache Beam, which wants older versions of what .base has, in an environment of its own.
$(VENV)/.beam: requirements/beam.txt setup.py | $(BIN)/python
	$(BIN)/python -m venv --clear $(VENV)/beam
	$(VENV)/beam/bin/python -m pip install --quiet --disable-pip-version-check \
		-r requirements/beam.txt
	$(VENV)/beam/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
