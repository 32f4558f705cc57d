PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup serve doctor prometheus dashboards test lint types bench compare oracle schemas clients train clean

setup: $(STAMP)

# pip's dependency groups need pip 25.1; a fresh venv may carry an older one.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	touch $(STAMP)

serve: setup
	$(BIN)/commons serve $(ARGS)

doctor: setup
	$(BIN)/commons doctor $(ARGS)

prometheus:
	prometheus --config.file=deploy/prometheus/prometheus.yml --storage.tsdb.path=build/prometheus $(ARGS)

dashboards: setup
	$(BIN)/python -m deploy.grafana.build

# Files go to two processes, each with one thread for matrix products.
test: setup
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m deploy.loadtest.measure $(ARGS)

compare: setup
	$(BIN)/python -m deploy.loadtest.compare $(ARGS)

oracle: setup
	$(BIN)/python -m tests.conversations $(ARGS)

clients: setup
	$(BIN)/python -m deploy.loadtest.clients $(ARGS)

schemas: setup
	$(BIN)/python -m tests.structured $(ARGS)

# Both cores are kept busy by a batch each.
train: setup
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m engine.embedded.train $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache bench-results .clients
