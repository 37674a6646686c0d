# Every target creates and uses .venv by itself.
PYTHON ?= python3
VENV := .venv
RELAY := $(VENV)/bin/relay
OMS := .venv-oms

.PHONY: install demo ops bench test check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(RELAY) demo

ops: install # the compiled ops: for this CPU where there is g++, for GPUs where there is nvcc
	$(VENV)/bin/python -m relay_core.cuda.build

bench: install # the quick tables of benchmarks/RESULTS.md: minutes on two cores that have nothing else to do
	-$(VENV)/bin/python -m relay_core.cuda.build --only host
	$(VENV)/bin/python -m benchmarks.series --steps benchmarks/quick.txt --out benchmarks/results/bench

test: install $(OMS)/.installed
	RELAY_OMS_PYTHON=$(CURDIR)/$(OMS)/bin/python $(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile

$(OMS)/.installed: # the public tool that our signatures are compared with; it pins other versions of what we use
	$(PYTHON) -m venv $(OMS)
	$(OMS)/bin/python -m pip install --quiet model-signing==1.1.1 pyOpenSSL
	touch $@

check: install
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) $(OMS) build *.egg-info
