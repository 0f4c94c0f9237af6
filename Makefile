# make run: set up and serve.  make test: set up and test.  make check: what every push passes.  make bench: figures.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?=

.PHONY: run setup test check bench lock clean

run: .venv/.runs
	@exec $(BIN)/headgate serve $(if $(CONFIG),--config $(CONFIG))

setup: .venv/.runs

test: .venv/.tests
	@sh .ci/redis
	$(BIN)/pytest -q

check: .venv/.tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@sh .ci/redis
	$(BIN)/pytest -q --cov --cov-report=
	$(BIN)/coverage report --include='proxy/wire/*,policies/*' --fail-under=100 --show-missing

bench: .venv/.tests
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench --only policies --starts 15 --rounds 9 --seconds 0.4
	$(BIN)/python -m tests.bench.local

# The lock files carry a hash for every file of every dependency; pip refuses anything else.
lock:
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --extra fast --extra build -o requirements.lock pyproject.toml
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --extra fast --extra build --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv build *.egg-info

# Made without pip inside and filled from outside: Debian's Python comes without ensurepip.
PIP := $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python
# Names the packages' folder in the environment: the sources run from where they are, with no build step.
LINK := $(PIP) install -q --no-deps --no-build-isolation -e .

.venv/bin/python:
	$(PYTHON) -m venv --without-pip .venv

.venv/.runs: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Setting up .venv (once; a minute or two)"
	@$(PIP) install -q --require-hashes -r requirements.lock
	@$(LINK)
	@touch $@

.venv/.tests: requirements-dev.lock .venv/.runs
	@$(PIP) install -q --require-hashes -r requirements-dev.lock
	@touch $@
