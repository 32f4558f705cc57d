PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup serve doctor prometheus dashboards test lint bench scenarios compare locust \
	metrics-cost oracle schemas clients train clean

help:  ## this list; ARGS="..." passes arguments to most of them
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP)  ## install into .venv

# pip's dependency groups need pip 25.1; a fresh venv may carry an older one.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	touch $(STAMP)

serve: setup  ## start the endpoint
	$(BIN)/commons serve $(ARGS)

doctor: setup  ## what this machine can do, and what is misconfigured
	$(BIN)/commons doctor $(ARGS)

prometheus:  ## a Prometheus that scrapes the endpoint
	prometheus --config.file=deploy/prometheus/prometheus.yml --storage.tsdb.path=build/prometheus $(ARGS)

dashboards: setup  ## render Grafana's dashboards
	$(BIN)/python -m deploy.grafana.build

# Files go to two processes, each with one thread for matrix products.
test: setup  ## run all tests
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## measure this server and others at length
	$(BIN)/python -m deploy.loadtest.measure $(ARGS)

compare: setup  ## one scenario on this server and on other MLX servers
	$(BIN)/python -m deploy.loadtest.compare $(ARGS)

# Every scenario file on a server of the embedded model, which has the adapters for them.
scenarios: setup  ## every load scenario on this server, with a page for each
	for name in $(basename $(notdir $(wildcard server/scenarios/*.toml))); do \
	  $(BIN)/python -m deploy.loadtest.compare --servers commons --embedded --scenario $$name $(ARGS) || exit; \
	done

locust: build/locust/.installed  ## the load of the locust file on a running endpoint
	build/locust/bin/locust -f deploy/loadtest/locustfile.py --host http://127.0.0.1:8000 $(ARGS)

build/locust/.installed: deploy/loadtest/locust.txt
	$(PYTHON) -m venv build/locust
	build/locust/bin/python -m pip install --quiet --disable-pip-version-check -r deploy/loadtest/locust.txt
	touch $@

metrics-cost: setup  ## what counting costs of a step, a request and a scrape
	$(BIN)/python -m deploy.loadtest.metrics_cost $(ARGS)

oracle: setup  ## long runs of random conversations against cold ones
	$(BIN)/python -m tests.conversations $(ARGS)

clients: setup  ## Claude Code, Codex and OpenCode against this server
	$(BIN)/python -m deploy.loadtest.clients $(ARGS)

schemas: setup  ## long runs of random schemas and replies
	$(BIN)/python -m tests.structured $(ARGS)

# Both cores are kept busy by a batch each.
train: setup  ## make the embedded model
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m engine.embedded.train $(ARGS)

clean:  ## remove what was made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache bench-results .clients
