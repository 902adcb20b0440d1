# `make` alone lists what can be made. Needs Python 3.11 or newer, git and make; the rest goes into .venv (and, of
# test-inception, test-baselines, test-lowest and test-newest, into .venv-inception and so on).

# The first of these that is new enough and can make an environment; `make setup PYTHON=...` names another.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$python; break; fi; done)
BIN := .venv/bin
READY := .venv/.ready
INCEPTION := .venv-inception
BASELINES := .venv-baselines
NAME ?= autoencoder codec decoding evaluating quantizer sampling shards

.DEFAULT_GOAL := help
.PHONY: help setup demo soak test coverage test-lowest test-newest test-triton test-inception test-web test-baselines check bench experiments docs dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

# $(call environment,FOLDER,TARGET): make the environment in FOLDER, which TARGET needs.
define environment
	@test -n "$(PYTHON)" || { echo "make $(2) needs Python 3.11 or newer with venv; name one with PYTHON=..." >&2; exit 2; }
	@echo "setting up $(1) with $$($(PYTHON) --version); the first time takes some minutes"
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(1)
endef

setup: $(READY) ## make .venv and install the package and its tools, at the pinned versions

$(READY): pyproject.toml constraints.txt
	$(call environment,.venv,setup)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,docs]'
	@touch $@

demo: $(READY) ## run the whole pipeline on the embedded pictures, into runs/demo
	$(BIN)/vqvae2 demo --out runs/demo

# One process per core. Each takes whole files, because fixtures belong to a file, in the order of tests/conftest.py.
pytest_of = OMP_NUM_THREADS=1 $(1)/bin/pytest -n auto --dist loadfile --no-loadscope-reorder
PYTEST := $(call pytest_of,.venv)

test: $(READY) ## run the tests, one process per core
	@$(PYTEST)

coverage: $(READY) ## run the tests and measure their coverage (90 % at least), which takes longer
	@$(PYTEST) --cov --cov-fail-under=90

test-lowest: .venv-lowest/.ready ## run the tests with the lowest versions that pyproject.toml allows (some GB)
	@$(call pytest_of,.venv-lowest)

test-newest: .venv-newest/.ready ## run the tests with the newest versions that pyproject.toml allows (some GB)
	@$(call pytest_of,.venv-newest)

# pip cannot choose the lowest versions; uv can.
RESOLUTION_lowest := lowest-direct
RESOLUTION_newest := highest

.venv-%/.ready: pyproject.toml
	$(call environment,.venv-$*,test-$*)
	@.venv-$*/bin/python -m pip install --disable-pip-version-check --quiet uv
	@.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --resolution $(RESOLUTION_$*) -e '.[dev]'
	@touch $@

# Triton is installed into a folder of its own, so that nothing else here finds it.
test-triton: $(READY) ## run the tests of the fused kernels without a GPU, in Triton's interpreter (some minutes)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target build/triton triton==3.9.0
	@TRITON_INTERPRET=1 PYTHONPATH=build/triton $(PYTEST) tests/autoencoder/test_nearest_triton.py tests/prior/test_step_triton.py

test-inception: $(INCEPTION)/.ready ## run the tests of FID, IS and KID, which need a torch and a torchvision of their own (6 GB)
	$(INCEPTION)/bin/python -m pytest tests/evaluate/inception

$(INCEPTION)/.ready: pyproject.toml constraints.txt constraints-inception.txt
	$(call environment,$(INCEPTION),test-inception)
	@grep -v '^torch==' constraints.txt | cat - constraints-inception.txt > $(INCEPTION)/constraints.txt
	@$(INCEPTION)/bin/python -m pip install --disable-pip-version-check --quiet -c $(INCEPTION)/constraints.txt -e '.[evaluate,inception]' pytest
	@touch $@

test-web: $(READY) ## run the tests of the web page in a real browser: installs playwright, takes the system's Chromium
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt playwright
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests/web

test-baselines: $(BASELINES)/.ready ## run the tests of the paper's baseline, whose package needs an older library than ours
	$(BASELINES)/bin/python -m pytest tests/experiments/test_baselines.py

$(BASELINES)/.ready: pyproject.toml constraints.txt
	$(call environment,$(BASELINES),test-baselines)
	@grep -v '^python-dateutil==' constraints.txt > $(BASELINES)/constraints.txt
	@$(BASELINES)/bin/python -m pip install --disable-pip-version-check --quiet -c $(BASELINES)/constraints.txt -e . pytest pytorch-pretrained-biggan==0.1.1
	@touch $@

soak: $(READY) ## attack the package for hours: kills, damaged files, full disks; SLICE=1 takes some minutes
	@$(BIN)/python tools/soak.py $(if $(SLICE),--slice)

check: $(READY) ## check format, lint and types, and change nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY) ## run the benchmarks of a CPU that need no arguments, or one: make bench NAME=...
	@set -e; for name in $(NAME); do echo "benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py; done

experiments: $(READY) ## list the experiments with the time that each takes
	@$(BIN)/python experiments/compare.py list

docs: $(READY) ## build the documentation site into site/, and fail on a broken link
	@$(BIN)/python tools/site_pages.py build/pages
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html; its search needs a server: python -m http.server --directory site"

dist: ## build sdist and wheel into dist/, check that both give the same wheel, install it in a new environment and use it
	@test -n "$(PYTHON)" || { echo "make dist needs Python 3.11 or newer with venv; name one with PYTHON=..." >&2; exit 2; }
	@rm -rf dist build/dist
	@$(PYTHON) -m venv build/dist/tools
	@build/dist/tools/bin/python -m pip install --disable-pip-version-check --quiet build twine
	@build/dist/tools/bin/python -m build --outdir dist .
	@build/dist/tools/bin/python -m build --wheel --outdir build/dist/direct .
	@cmp dist/*.whl build/dist/direct/*.whl
	@build/dist/tools/bin/twine check --strict dist/*
	@$(PYTHON) -m venv build/dist/new
	@build/dist/new/bin/python -m pip install --disable-pip-version-check --quiet dist/*.whl
	@cd build/dist && new/bin/vqvae2 --version && new/bin/vqvae2 sample emoji64 --n 2 --out samples
	@ls -lh dist; du -sh build/dist/new

clean: ## remove what builds and checks leave behind; .venv and runs/ stay
	rm -rf build dist site htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find src tests tools experiments benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
