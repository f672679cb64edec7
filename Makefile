# Two cores and Python 3.11 are enough. `make help` lists the words.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
KILLS ?= 200
SEEDS ?= 1000000
SOAK ?= 5000000
# Node does not look at the machine's own certificates by itself.
CERTIFICATES := $(wildcard /etc/ssl/certs/ca-certificates.crt)

.DEFAULT_GOAL := check
.PHONY: check setup demo test format lint types layers coverage gateway litellm campaign simulation bench bench-pacing soak lock clean help

check: format lint types layers test  ## what is expected before a push: format, lint, strict types, layers, tests

setup: $(INSTALLED)  ## make .venv with exactly what requirements.lock names

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "batchkit needs Python 3.11 or later; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(INSTALLED)  ## run the samples' job on the embedded simulator and show its summary
	@rm -rf demo && mkdir demo
	$(BIN)/batchkit run samples/reviews.jsonl -o demo/results.jsonl --simulate
	@echo "The answers are in demo/results.jsonl, one line each."

test: $(INSTALLED)  ## pass the tests
	$(BIN)/python -m pytest -q -n auto --dist worksteal

format: $(INSTALLED)  ## format the code in place (CI only looks)
	$(BIN)/ruff format $(if $(CI),--check) .
	$(BIN)/ruff check --quiet --select I $(if $(CI),,--fix) .

lint: $(INSTALLED)  ## ruff, every rule but those pyproject.toml gives a reason against
	$(BIN)/ruff check .

types: $(INSTALLED)  ## mypy --strict on the package, the samples and the public types
	$(BIN)/mypy

layers: $(INSTALLED)  ## the rooms import downwards only
	$(BIN)/lint-imports --no-cache

gateway:  ## install Portkey's gateway, for the tests that talk to it (needs npm)
	NODE_EXTRA_CA_CERTS="$${NODE_EXTRA_CA_CERTS:-$(CERTIFICATES)}" npm install --prefix .ci/gateway --ignore-scripts --no-package-lock --no-audit --no-fund

litellm:  ## install LiteLLM and OpenAI's client, for the tests that talk to them, in an environment of their own
	$(PYTHON) -m venv .ci/litellm/venv
	.ci/litellm/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r .ci/litellm/requirements.txt

coverage: $(INSTALLED)  ## the tests with branch coverage
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage report --skip-covered --sort=cover

campaign: $(INSTALLED)  ## kill a job 200 times, count what was lost, doubled and billed twice (some eight minutes)
	$(BIN)/python tests/campaign/kill_campaign.py --kills $(KILLS)

simulation: $(INSTALLED)  ## live through a million simulated jobs that crash (hours; SEEDS=10000 takes minutes)
	$(BIN)/python tests/simulation/simulated_job.py 0 $(SEEDS)

bench: $(INSTALLED)  ## batchkit beside a bare aiohttp loop and peers in environments of their own, made on first use (two minutes)
	$(BIN)/python benchmarks/throughput.py

bench-pacing: $(INSTALLED)  ## its pace at hidden limits: in simulated time, and on the clock beside OpenAI's client (a quarter of an hour)
	$(BIN)/python benchmarks/pacing.py --controllers batchkit
	$(BIN)/python benchmarks/pacing_real.py

soak: $(INSTALLED)  ## five million requests, to see that memory stays flat (SOAK=300000 takes minutes)
	$(BIN)/python benchmarks/soak.py $(SOAK)

lock:  ## choose versions anew within the ranges of pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group dev pyproject.toml -o requirements.lock

clean:  ## remove what make made
	rm -rf .venv demo dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

help:  ## these words
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
