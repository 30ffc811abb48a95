# A defended model from two commands: `make train`, `make table`. `make` alone lists the targets.

PYTHON      ?= python3
VENV        ?= .venv
# An index of CPU builds of torch, where the ordinary one holds CUDA builds of several GB.
TORCH_INDEX ?=
RUN_DIR     ?= outputs/llama_lora
# More overrides for `make train` and `make table`, e.g. ARGS="model=tiny_random".
ARGS        ?=
RUN         := $(VENV)/bin/python -m
STAMP       := $(VENV)/.installed

# Threads that sleep at once have to be woken for every small operation, and threads that spin long keep two jobs on few
# cores from each other: a little of each. No library reports home.
export GOMP_SPINCOUNT         ?= 10000
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help venv train table test lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=$(PYTHON)  RUN_DIR=$(RUN_DIR)  ARGS=\"overrides\"  TORCH_INDEX=URL (an index of CPU builds of torch)"

venv: $(STAMP) ## make .venv and install everything into it

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-c constraints.txt -e '.[dev]'
	touch $@

train: $(STAMP) ## train, calibrate, export and measure the default model (RUN_DIR says where)
	$(RUN) safealign.train +recipe=llama_lora run_dir=$(RUN_DIR) $(ARGS)

table: $(STAMP) ## the whole table for the model of `make train`
	$(RUN) safealign.evaluate model=$(RUN_DIR)/export suite=table baselines=[undefended,plain_sft] $(ARGS)

test: lint ## lint, types and all tests that a CPU can run
	$(RUN) pytest -q -m "not slow and not gpu and not multiprocess"
	$(RUN) pytest -q -m "(slow or multiprocess) and not gpu"

lint: $(STAMP) ## ruff and mypy
	$(RUN) ruff check .
	$(RUN) mypy

clean: ## remove caches and build products (not .venv, not outputs)
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
