# Every target sets up what it needs; CI runs the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup check format lint types imports test demo

help:
	@echo "make demo   set up, then tune a real model on real data"
	@echo "make test   set up, then run all tests"
	@echo "make check  format, lint, types, import contracts, tests"

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev,examples]'
	touch $@

setup: $(VENV)/.ready
	@command -v rabbitmq-server >/dev/null || test -x /usr/lib/rabbitmq/bin/rabbitmq-server || ./ops/install-rabbitmq

check: setup format lint types imports test

format: setup
	$(BIN)/ruff format --check .

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

test: setup
	$(BIN)/python -m pytest

demo: $(VENV)/.ready
	$(BIN)/trialfleet run examples/digits/study.toml
