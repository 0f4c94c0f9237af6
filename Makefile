# make run: set up and serve.  make setup: set up only.  make test: set up and run all tests.  make quick: the fast tests.
# make check: required before every push.  make bench: measurements.  make soak: a regular caller among hostile ones.
PYTHON ?= python3
ifeq ($(VIRTUAL_ENV),$(CURDIR)/.venv)
# With .venv activated python3 is its own, which has no pip: take the Python that it was made from.
PYTHON := $(shell $(PYTHON) -c 'import sys; print(sys.base_prefix)')/bin/python3
endif
BIN := .venv/bin
CONFIG ?=

.PHONY: run setup test quick check bench soak lock clean

run: .venv/.runs
	@exec $(BIN)/headgate serve $(if $(CONFIG),--config $(CONFIG))

setup: .venv/.runs

# Tests start many Python processes: each would otherwise compile every source again.
unexport PYTHONDONTWRITEBYTECODE

# Two processes for each core, because tests also wait for sockets, processes and timers. Each file runs in one process:
# fixtures such as loaded models are made once for a file. They run in the order of tests/longest.py, not of their numbers
# of tests.
PROCESSES := $(shell expr $$(getconf _NPROCESSORS_ONLN) \* 2)
# Each process that imports aiohttp reads the certificates of all authorities, which takes 0.08 s of CPU. Tests trust none of
# them, so they find one, which has signed nothing.
PYTEST := SSL_CERT_FILE=$(CURDIR)/tests/data/authority.pem $(BIN)/pytest -q -n $(PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: .venv/.tests
	@sh .ci/redis
	$(PYTEST)

# Under a minute on two idle cores, for use while working. It leaves out what is slow by nature: loaded models, stores of
# other processes, training, benchmarks, soak tests, whole processes, crowds of callers, large bodies, gateways by the
# hundred, what waits for time to pass, and property tests (selected by the mark that hypothesis sets). Every other file is
# in it. It lists paths, because then no test needs a mark, and a path that no longer exists is not an error.
SLOW := tests/backends/training tests/bench tests/clients tests/deploy tests/soak \
  $(addprefix tests/backends/local/,$(addsuffix .py,test_answer test_calling test_grammar test_local test_teams \
    decoding/test_constrained decoding/test_constrained_demo decoding/test_grammar_matcher \
    decoding/test_grammar_tokenizer grammar/test_compile_cost host/test_child_main host/test_child_process \
    host/test_engine_host host/test_gateway host/test_gpu host/test_process_engine host/test_thread_engine model/test_chat_template \
    model/test_model model/test_model_prompt model/test_template_sandbox model/test_tokenizer request/test_cost \
    request/test_tool_choice request/test_truncation scheduling/test_plan scheduling/test_prefix_cache \
    scheduling/test_scheduler scheduling/test_scheduler_crowds scheduling/test_scheduler_grammars \
    scheduling/test_scheduler_teams speech/test_hermes speech/test_output_parser speech/test_tool_call_parser)) \
  $(addprefix tests/backends/upstream/,$(addsuffix .py,test_connections test_decode test_reaching test_scrub test_upstream \
    http1/test_connection http1/test_dial http1/test_parser http1/test_pool)) \
  $(addprefix tests/http/test_,$(addsuffix .py,body cycles health many_values pacing relay server write_timeout)) \
  $(addprefix tests/state/test_,$(addsuffix .py,background background_outages cancellations items journal \
    local_resources lost_jobs summary)) \
  $(addprefix tests/stores/,$(addsuffix .py,test_counters test_memory test_store sqlite/test_commit_thread \
    sqlite/test_database sqlite/test_large_values sqlite/test_transaction)) \
  $(addprefix tests/test_,$(addsuffix .py,app app_shutdown attacks background compaction composed_schemas degraded dialects \
    disconnects drain_delay early_start endpoints history limits_over_time local_cancel local_model main newcomer ownership_endpoints pool_kill reload \
    request_forms rolling_restart second_signal shutdown steering stored_state upstream_faults workers)) \
  $(addprefix tests/admin/,console/test_browser.py console/test_console.py api/test_dispatch.py api/test_resources.py api/test_schema.py api/test_scope.py test_oidc.py test_sessions.py) \
  tests/commands/test_admin_client.py tests/commands/test_backup.py tests/commands/test_identity.py tests/commands/test_key.py tests/policies/test_max_tool_calls.py tests/routing/test_attempts.py \
  tests/test_joint_reload.py tests/test_shared_stderr.py tests/telemetry/test_dead_collector.py tests/cache/test_key_deep.py \
  tests/pricing/test_prices.py tests/telemetry/test_audit.py tests/telemetry/test_logs.py tests/telemetry/test_planted_secrets.py \
  tests/telemetry/test_recorder.py
SLOW_NAMES := *cluster* *soak* *_large_* *_processes.py *shared_flight* *websocket* *test_redis*
SLOW_TESTS := tests/wire/test_sse.py::test_cost_grows tests/wire/test_sse.py::test_a_recording_can_be_cut \
  tests/wire/test_frames.py::test_a_message_of_any_length tests/cache/test_key.py::test_no_two_different \
  tests/cache/test_vault.py::test_two_teams_never_read tests/cache/test_vault.py::test_a_small_entry_in_memory \
  tests/cache/test_differential.py::test_pairs_of_calls

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

# About nine minutes: one regular caller beside hostile callers, upstreams and operators. See tests/soak/README.md.
soak: .venv/.tests
	$(BIN)/python -m tests.soak

# The lock files carry a hash for every file of every dependency; pip refuses anything else.
lock:
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --extra fast --extra build -o requirements.lock pyproject.toml
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --extra fast --extra build --extra cuda -c requirements.lock -o requirements-cuda.lock pyproject.toml
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --extra fast --extra build --extra grpc --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv build *.egg-info

# The environment is created without pip, and packages are installed from outside it: Debian's Python has no ensurepip.
PIP := $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python
# The lock files are complete. Without --no-deps pip would resolve extras such as coverage[toml] again, and refuse the
# first release that is newer than the lock.
INSTALL := $(PIP) install -qq --root-user-action=ignore --no-deps --no-compile
# pip compiles on one core. A few files of packages are templates, which no Python compiles.
COMPILE := $(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null || true
# Silent unless a requirement of an installed package is missing or has the wrong version.
COMPLETE = conflicts=$$($(PIP) check) || { echo "$$conflicts" >&2; exit 1; }

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Headgate needs Python 3.11 or later. $(PYTHON) is $$($(PYTHON) -V); name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --without-pip .venv

.venv/.runs: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Setting up .venv (once; a minute or two)"
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-build-isolation -e .
	@$(COMPILE)
	@$(COMPLETE)
	@touch $@

.venv/.tests: requirements-dev.lock .venv/.runs
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@$(COMPILE)
	@$(COMPLETE)
	@touch $@
