# Every target creates and uses .venv by itself.
PYTHON ?= python3
VENV := .venv
RELAY := $(VENV)/bin/relay
OMS := .venv-oms
BUILD := .venv-build
RELEASE_KEYS ?= release-keys
IMAGES ?=

VENDOR := services/api/web/vendor
CHARTS := $(VENDOR)/uPlot.esm.js

.PHONY: install demo page ops bench test check hashes sbom release clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	command -v npm > /dev/null && $(MAKE) --no-print-directory page || echo "without npm the site's page shows tables, not charts"
	touch $@

page: $(CHARTS) # what the site's page draws charts with; without it (no npm) the page shows tables

$(CHARTS): docker/page/package-lock.json
	cd docker/page && npm ci --ignore-scripts --no-audit --no-fund --silent
	mkdir -p $(VENDOR)
	cp docker/page/node_modules/uplot/dist/uPlot.esm.js docker/page/node_modules/uplot/dist/uPlot.min.css $(VENDOR)
	cp docker/page/node_modules/uplot/LICENSE $(VENDOR)/uPlot.LICENSE
	touch $@

demo: install
	$(RELAY) demo

ops: install # the compiled ops: for this CPU where there is g++, for GPUs where there is nvcc
	$(VENV)/bin/python -m relay_core.cuda.build

bench: install # the quick tables of benchmarks/RESULTS.md: minutes on two cores that have nothing else to do
	-$(VENV)/bin/python -m relay_core.cuda.build --only host
	$(VENV)/bin/python -m benchmarks.series --steps benchmarks/quick.txt --out benchmarks/results/bench

test: install $(OMS)/.installed
	RELAY_OMS_PYTHON=$(CURDIR)/$(OMS)/bin/python $(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal

$(OMS)/.installed: # the public tool that our signatures are compared with; it pins other versions of what we use
	$(PYTHON) -m venv $(OMS)
	$(OMS)/bin/python -m pip install --quiet model-signing==1.1.1 pyOpenSSL
	touch $@

check: install
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(BUILD)/.installed: docker/hashes/build.txt
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/python -m pip install --quiet --require-hashes --requirement docker/hashes/build.txt
	touch $@

hashes: # docker/hashes/*.txt anew, after constraints.txt or pyproject.toml changed
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/python -m pip install --quiet uv
	UV=$(BUILD)/bin/uv sh docker/hashes.sh

sbom: $(BUILD)/.installed page # dist/: wheel, sdist, a CycloneDX bill of materials of each kind of installation, and of IMAGES
	rm -rf dist build
	$(BUILD)/bin/python -m build --no-isolation --outdir dist
	for kind in api-cpu api-gpu; do $(PYTHON) docker/sbom.py wheel dist/*.whl docker/hashes/$$kind.txt > dist/wheel-$$kind.cdx.json; done
	$(PYTHON) docker/sbom.py wheel dist/*.whl docker/hashes/trainer.txt docker/hashes/torch.txt > dist/wheel-trainer.cdx.json
	test -z "$(IMAGES)" || sh docker/images.sh dist $(IMAGES)

release: install sbom # the same, signed: make release IMAGES="relay-api:0.1.0 relay-trainer:0.1.0" RELEASE_KEYS=folder
	$(RELAY) release sign dist --keys $(RELEASE_KEYS)
	$(RELAY) release verify dist --card $(RELEASE_KEYS)/card.json

clean:
	rm -rf $(VENV) $(OMS) $(BUILD) build dist *.egg-info
