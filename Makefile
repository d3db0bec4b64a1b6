# Every target sets up .venv by itself; python3 (>= 3.11, with venv) and make are all that must be there.
# PYTHON=... names another interpreter, JOBS=... the test processes, TORCH_INDEX= (empty) PyTorch with CUDA.

.DEFAULT_GOAL := help
.PHONY: help demo test real check lint types format docs notebook clean

JOBS ?= 2
export PYTHON TORCH_INDEX
ifeq ($(origin PYTHON), undefined)
unexport PYTHON
endif
ifeq ($(origin TORCH_INDEX), undefined)
unexport TORCH_INDEX
endif

BIN := .venv/bin
INPUTS := pyproject.toml constraints.txt scripts/setup.sh

help: ## show this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name what; do printf '  make %-8s %s\n' "$$name" "$$what"; done

demo: .venv/.setup ## see a fact located, edited, checked and taken back
	@$(BIN)/engram demo

test: .venv/.setup-dev ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS)

real: .venv/.setup-dev ## fetch two real models (350 MB, into the cache folder), run the tests that need them
	@scripts/real_models.sh
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -m real

check: lint types ## style, formatting and types

lint: .venv/.setup-dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "Not formatted. Type: make format" >&2; exit 1; }

types: .venv/.setup-dev
	@$(BIN)/pyright >.venv/pyright.log 2>&1 || { cat .venv/pyright.log; exit 1; }

format: .venv/.setup-dev ## format the code and make the safe repairs
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

docs: .venv/.setup-docs ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

notebook: .venv/.setup-dev ## run the example notebook and keep what it prints and draws in it
	@$(BIN)/python scripts/notebook.py

clean: ## remove what builds and tests leave behind (.venv stays)
	@rm -rf build dist site .hypothesis .pytest_cache .ruff_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.setup: $(INPUTS)
	@scripts/setup.sh
	@touch $@

.venv/.setup-dev: $(INPUTS)
	@scripts/setup.sh dev
	@touch .venv/.setup $@

.venv/.setup-docs: $(INPUTS)
	@scripts/setup.sh docs
	@touch .venv/.setup $@
