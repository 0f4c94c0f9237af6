# make run: set up and serve.  make setup: set up only.  make test: set up and run all tests.  make quick: the fast tests.
# make check: required before every push.  make bench: measurements.  make soak: a regular caller among hostile ones.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?=

.PHONY: run setup test quick check bench soak lock clean

run: .venv/.runs
	@exec $(BIN)/headgate serve $(if $(CONFIG),--config $(CONFIG))

setup: .venv/.runs

# Tests start many Python processes: each would otherwise compile every source again.
unexport PYTHONDONTWRITEBYTECODE

# A process for each core, and each file in one process: fixtures such as loaded models are made once for a file.
PYTEST := $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile

test: .venv/.tests
	@sh .ci/redis
	$(PYTEST)

# About a minute on two idle cores, for use while working. It leaves out what is slow by nature: local models, stores and
# stored state, the upstream client, WebSocket mode, training, benchmarks, clusters, soak tests, whole processes, crowds of
# callers, large bodies, measurements, and property tests (selected by the mark that hypothesis sets). It lists paths,
# because then no test needs a mark, and a path that no longer exists is not an error.
SLOW := tests/backends/local tests/backends/training tests/backends/upstream tests/bench tests/clients tests/config \
  tests/deploy tests/http/websocket tests/soak tests/state tests/stores tests/commands/test_model.py tests/telemetry/test_logs.py \
  tests/test_app.py tests/test_attacks.py tests/test_background.py tests/test_compaction.py \
  tests/test_composed_schemas.py tests/test_disconnects.py tests/test_drain_delay.py tests/test_endpoint_schemas.py \
  tests/test_history.py tests/test_local_model.py tests/test_main.py tests/test_newcomer.py \
  tests/test_ownership_endpoints.py tests/test_pool_kill.py tests/test_request_forms.py tests/test_second_signal.py \
  tests/test_stored_state.py tests/test_stored_state_endpoints.py tests/test_upstream_faults.py tests/test_workers.py
SLOW_NAMES := *cluster* *soak* *_deep.py *_large_* *_processes.py *shared_flight* *websocket*
SLOW_TESTS := tests/wire/test_sse.py::test_cost_grows tests/wire/test_sse.py::test_a_recording_can_be_cut \
  tests/wire/test_frames.py::test_a_message_of_any_length \
  tests/policies/test_max_tool_calls.py::test_two_hundred_parallel_calls \
  tests/policies/test_max_tool_calls.py::test_parallel_calls_that_use_less \
  tests/cache/test_vault.py::test_two_teams_never_read tests/cache/test_vault.py::test_a_small_entry_in_memory \
  tests/telemetry/test_planted_secrets.py::test_no_output_contains_a_secret

quick: .venv/.tests
	@sh .ci/redis
	$(PYTEST) -m "not hypothesis" $(SLOW:%=--ignore=%) $(SLOW_NAMES:%=--ignore-glob='%') $(SLOW_TESTS:%=--deselect=%)

check: .venv/.tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@sh .ci/redis
	$(PYTEST) --cov --cov-report=
	$(BIN)/coverage report --include='proxy/wire/*,policies/*' --fail-under=100 --show-missing

bench: .venv/.tests
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench --only policies --starts 15 --rounds 9 --seconds 0.4
	$(BIN)/python -m tests.bench.local

# About five minutes: one regular caller beside hostile callers, upstreams and operators. See tests/soak/README.md.
soak: .venv/.tests
	$(BIN)/python -m tests.soak

# The lock files carry a hash for every file of every dependency; pip refuses anything else.
lock:
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --extra fast --extra build -o requirements.lock pyproject.toml
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --extra fast --extra build --extra grpc --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv build *.egg-info

# The environment is created without pip, and packages are installed from outside it: Debian's Python has no ensurepip.
PIP := $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python
# The lock files are complete. Without --no-deps pip would resolve extras such as coverage[toml] again, and refuse the
# first release that is newer than the lock.
INSTALL := $(PIP) install -qq --root-user-action=ignore --no-deps
# Silent unless a requirement of an installed package is missing or has the wrong version.
COMPLETE = conflicts=$$($(PIP) check) || { echo "$$conflicts" >&2; exit 1; }

.venv/bin/python:
	$(PYTHON) -m venv --without-pip .venv

.venv/.runs: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Setting up .venv (once; a minute or two)"
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-build-isolation -e .
	@$(COMPLETE)
	@touch $@

.venv/.tests: requirements-dev.lock .venv/.runs
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@$(COMPLETE)
	@touch $@
