# `make` alone lists the commands. macOS' make 3.81 and BSD tools must be able to run this file.

VENV    = .venv
BIN     = $(VENV)/bin
PYTHON  ?=
ifeq ($(shell uname -s),Linux)
EXTRAS  ?= dev,deepspeed,tracking
else
EXTRAS  ?= dev,tracking
endif
TORCH_INDEX ?=
SEED    ?= 1
BASE    ?=
RUN     ?= runs/quickstart
ARGS    ?=
CPU_INDEX = https://download.pytorch.org/whl/cpu
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help train paper report test test-all test-faults lint types docs tutorial dist sandbox bench clean

help:  ## this list
	@echo "grpo-tir: every command makes what it needs first (a virtual environment in $(VENV), pinned packages)."
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo
	@echo "Options, as in 'make train SEED=3':"
	@echo "  PYTHON=python3.12   the interpreter to use (from 3.11 on; unset: the first found; to change it: make clean)"
	@echo "  TORCH_INDEX=URL     index to install torch from; unset: on Linux without an NVIDIA card"
	@echo "                      $(CPU_INDEX), else the ordinary registry"
	@echo "  EXTRAS=...          extras that test, lint and types install beside train, of dev, docs, deepspeed, data,"
	@echo "                      tracking, peft, executor (unset: $(EXTRAS))"

train: $(VENV)/installed  ## teach a tiny model to use Python, in minutes, on any machine  [SEED=1]
	@echo "make train: builds a tiny base model, trains it with the tool and, as a control, without (seed $(SEED))"
	@$(BIN)/grpo-tir quickstart --seed $(SEED) $(ARGS)

paper: $(VENV)/installed  ## test the paper's findings again in a miniature world, in about an hour  [ARGS="--seeds 1 --only c"]
	@$(BIN)/grpo-tir paper $(ARGS)

report: $(VENV)/installed  ## write the report of a run as one HTML file  [RUN=runs/quickstart]
	@$(BIN)/grpo-tir report $(RUN) $(ARGS)

test: $(VENV)/installed-$(EXTRAS)  ## all tests except the slow ones; Docker tests are skipped without an engine  [ARGS=]
	@echo "make test: the tests; those that need what this machine lacks are skipped and listed at the end"
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/installed-$(EXTRAS)  ## all tests, the slow ones too
	@$(BIN)/python -m pytest $(ARGS)

test-faults: $(VENV)/installed-$(EXTRAS)  ## kill runs in every phase and compare the resumed ones
	@$(BIN)/python -m pytest tests/faults $(ARGS)

lint: $(VENV)/installed-$(EXTRAS)  ## ruff, rules and format
	@$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .

types: $(VENV)/installed-$(EXTRAS)  ## mypy
	@$(BIN)/python -m mypy

docs:  ## build the site in build/docs; a broken link or an undocumented public name is an error
	@$(MAKE) --no-print-directory EXTRAS=docs $(VENV)/installed-docs
	@$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs $(ARGS)
	@echo "make docs: open build/docs/index.html"

tutorial:  ## write the notebook docs/tutorial.ipynb from docs/tutorial.py
	@$(MAKE) --no-print-directory EXTRAS=docs $(VENV)/installed-docs
	@$(BIN)/python -m jupytext --to ipynb docs/tutorial.py

dist: $(VENV)/installed-$(EXTRAS)  ## build sdist and wheel in dist/ and check that a registry takes them
	@$(BIN)/python -m build -q && $(BIN)/python -m twine check --strict dist/*

sandbox: $(VENV)/installed  ## build the executor's container  [BASE=image to build on]
	@$(BIN)/grpo-tir sandbox build $(if $(BASE),--base $(BASE)) $(ARGS)

bench: $(VENV)/installed  ## every benchmark, each prints one JSON line last; a single one: make bench-grader, …
	@for file in $$(grep -l '^if __name__' benchmarks/*.py | grep -v gpu); do echo "== $$file"; $(BIN)/python "$$file" $(ARGS) || exit 1; done

bench-%: benchmarks/%.py $(VENV)/installed
	@$(BIN)/python $< $(ARGS)

clean:  ## remove environment, caches and build folders; keep runs/
	rm -rf $(VENV) .cache build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
	find src sandbox recipes tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. The stamp file is written last, so that an interrupted installation is continued. When setup.cfg
# or the pins are newer than the stamp, the packages are updated.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@$(ENVIRONMENT)
	@$(TORCH)
	@echo "make: installing grpo-tir and its pinned packages into $(VENV) (a few minutes the first time)"
	@$(PIP) -c constraints.txt -e ".[train]"
	@touch $@

$(VENV)/installed-$(EXTRAS): setup.cfg pyproject.toml constraints.txt
	@$(ENVIRONMENT)
	@$(TORCH)
	@echo "make: installing grpo-tir [$(EXTRAS)] and its pinned packages into $(VENV) (a few minutes the first time)"
	@$(PIP) -c constraints.txt -e ".[train,$(EXTRAS)]"
	@touch $@ $(VENV)/installed

# Show pip's progress bars on a terminal, and nothing in a log.
PIP = quiet=; [ -t 1 ] || quiet=-q; $(BIN)/python -m pip install $$quiet --disable-pip-version-check

USABLE = import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))

ANSWERS = import urllib.request as r; r.urlopen("$(CPU_INDEX)/torch/", timeout=5)

define ENVIRONMENT
python='$(PYTHON)'; \
for name in python3.13 python3.12 python3.11 python3; do \
  [ -z "$$python" ] && $$name -c '$(USABLE)' >/dev/null 2>&1 && python=$$name; \
done; \
if ! "$$python" -c '$(USABLE)' >/dev/null 2>&1; then \
  echo "make: found no Python from 3.11 on that can make virtual environments$${python:+; $$python is none}." >&2; \
  echo "make: install one (Debian: apt install python3 python3-venv, macOS: brew install python@3.13)" >&2; \
  echo "make: or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
  exit 1; \
fi; \
if ! $(BIN)/python -m pip --version >/dev/null 2>&1 || \
   { [ -n '$(PYTHON)' ] && [ "$$("$$python" -V)" != "$$($(BIN)/python -V)" ]; }; then \
  echo "make: making a virtual environment in $(VENV) with $$("$$python" -V)"; \
  "$$python" -m venv --clear $(VENV); \
fi
endef

# Install torch alone and first: a named index serves only torch; all other packages come from the registry.
define TORCH
index='$(TORCH_INDEX)'; \
if [ -z "$$index" ] && [ "$$(uname -s)" = Linux ] && [ ! -e /dev/nvidiactl ] && \
   ! command -v nvidia-smi >/dev/null 2>&1 && ! $(BIN)/python -c 'import torch' >/dev/null 2>&1; then \
  if $(BIN)/python -c '$(ANSWERS)' >/dev/null 2>&1; then \
    echo "make: no NVIDIA card found: taking torch's CPU build"; \
    index='$(CPU_INDEX)'; \
  else \
    echo "make: no NVIDIA card found, but $(CPU_INDEX) does not answer:"; \
    echo "make: taking the registry's torch, which for Linux may bring gigabytes of CUDA"; \
  fi; \
fi; \
if [ -n "$$index" ]; then \
  echo "make: installing torch from $$index"; \
  $(PIP) --no-deps --index-url "$$index" "$$(grep '^torch==' constraints.txt)"; \
fi
endef
