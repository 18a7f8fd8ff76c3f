# Every target sets up what it needs, in .venv; CI runs the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup check format lint types imports test simulate chaos soak demo bench docs fuzz lock audit clean

help:
	@echo "make demo   set up, then tune a real model on real data"
	@echo "make test   set up, then run all tests"
	@echo "make simulate N=100000   simulate so many studies in which everything fails; SEED=7 shows one"
	@echo "make chaos  set up, then 200 faults over real studies: about half an hour"
	@echo "make soak   set up, then an hour at full load; MINUTES=N for another time"
	@echo "make bench  set up, then a short version of the benchmarks"
	@echo "make docs   set up, then build the documentation as a site in dist/site"
	@echo "make check  format, lint, types, import contracts, tests"
	@echo "make fuzz   look for bytes that codec, study files or HTTP fail on, SECONDS=60 for each"
	@echo "make lock   renew what deployments install; make audit: what is known against it"
	@echo "make clean  remove what the others made here"

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.runs: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable '.[examples]'
	touch $@

$(VENV)/.tests: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.runs

# The benchmarks' peers bring many packages of their own.
.venv-bench/.bench: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --upgrade pip
	.venv-bench/bin/pip install --quiet --editable '.[examples]' --group bench
	touch $@

# All that development needs: the packages, and a RabbitMQ server for the tests to start nodes of their own.
setup: $(VENV)/.tests
	@./ops/install-programs rabbitmq-server prometheus chromium openssl systemd

check: format lint types imports test

format: $(VENV)/.tests
	$(BIN)/ruff format --check .

lint: $(VENV)/.tests
	$(BIN)/ruff check .

types: $(VENV)/.tests
	$(BIN)/mypy

imports: $(VENV)/.tests
	$(BIN)/lint-imports

# Two at a time: most tests wait for processes. A file's tests stay together, with the servers that they share.
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

N ?= 10000
simulate: $(VENV)/.tests
	cd tests && ../$(BIN)/python -m simulation $(if $(SEED),--seed $(SEED),--schedules $(N) --jobs $(shell nproc))

# Hundreds of faults over real studies; Ctrl-C ends it, the same command goes on.
FAULTS ?= 200
chaos: setup
	$(BIN)/python tests/chaos/campaign.py --faults $(FAULTS) --state .chaos.jsonl

MINUTES ?= 60
soak: setup
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

demo: $(VENV)/.runs
	$(BIN)/trialfleet run examples/digits/study.toml

bench: .venv-bench/.bench
	for one in breakdown result_cache memory sampler_cost sampler_quality savings throughput utilisation; do .venv-bench/bin/python benchmarks/$$one.py --quick || exit 1; done

# By coverage, with atheris; what it finds stands in tests/fuzz/.found, and stops it.
SECONDS ?= 60
fuzz: $(VENV)/.tests
	$(BIN)/pip install --quiet 'atheris>=2.3'
	for one in codec study http; do $(BIN)/python tests/fuzz/run.py $$one $(SECONDS) || exit 1; done

# What deployments install, by digest, on Python 3.11 to 3.13: newest versions that pyproject.toml allows.
LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
lock: $(VENV)/.tests
	$(BIN)/pip install --quiet uv
	$(LOCK) pyproject.toml --output-file ops/docker/locks/runtime.txt
	$(LOCK) pyproject.toml --extra examples --output-file ops/docker/locks/examples.txt
	echo 'hatchling>=1.27' | $(LOCK) - --output-file ops/docker/locks/build.txt

# Needs the advisory service of PyPI over the network; what it could not ask about is a failure.
audit: $(VENV)/.tests
	$(BIN)/pip install --quiet pip-audit
	for one in runtime examples build; do $(BIN)/pip-audit --strict --requirement ops/docker/locks/$$one.txt --require-hashes --disable-pip || exit 1; done

docs: $(VENV)/.tests
	$(BIN)/python docs/build_cli_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .venv-bench dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache .chaos.jsonl
