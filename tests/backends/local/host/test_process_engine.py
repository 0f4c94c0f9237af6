"""Tests of an engine in a child process, behind the local backend, when that process fails."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backends.local.host import process_engine
from proxy.wire.errors import BackendError
from tests.backends.local.conftest import ask, engine_processes, respond, until
from tests.models import write_model

PATIENCE_S = 60
STARTS = 6  # enough to show a leak


@pytest.fixture
def start(start_local):
    """Start a local backend with an engine in a process of its own."""

    async def begin(folder, **keys):
        limits = {"max_output_tokens": 100_000, "kv_bytes": 10**10, "workers": 1}
        return await start_local(folder, engine="process", **limits | keys)

    return begin


@asynccontextmanager
async def running_answer(local):
    """Start an answer and yield its further batches."""
    async with respond(local, input="Hi") as reply:
        await anext(reply.batches)
        await anext(reply.batches)
        yield reply.batches


async def read_error(batches):
    with pytest.raises(BackendError) as failed:
        async for _ in batches:
            pass
    return failed.value.status, failed.value.code


async def refused_call(local):
    with pytest.raises(BackendError) as refused:
        await ask(local, input="Hi", max_output_tokens=16)
    return refused.value


async def crash(logged):
    """Kill the engine and wait until the gateway has logged it."""
    (number,) = engine_processes()
    exits = len(reasons(logged))
    os.kill(number, signal.SIGKILL)
    await until(lambda: len(reasons(logged)) > exits)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def reasons(logged):
    return [line["reason"] for line in logged if line["event"] == "engine.exited"]


async def test_an_answer_comes_from_another_process(folder, start):
    """The process has exited when the backend is closed."""
    local = await start(folder)
    events = await ask(local, input="Hi")
    (number,) = engine_processes()
    await local.close()

    assert (events[-1].type, engine_processes()) == ("response.completed", [])
    assert number != os.getpid()
    assert (await refused_call(local)).code == "local_model_unavailable"


async def test_a_crash_fails_running_answers_and_no_later_ones(endless, start, logged):
    """Calls that arrive during the restart wait for it."""
    local = await start(endless)
    (number,) = engine_processes()
    async with running_answer(local) as batches:
        os.kill(number, signal.SIGKILL)
        failed = await read_error(batches)
        down = await local.ready()
        events = await ask(local, input="Hi", max_output_tokens=16)

    assert failed == (502, "local_model_failed")
    assert (down, await local.ready(), events[-1].type) == (False, True, "response.incomplete")
    assert engine_processes() != [number]
    lines = {line["event"]: line for line in logged}
    assert (lines["engine.exited"]["reason"], lines["engine.exited"]["backend"]) == ("SIGKILL", "local")
    assert "engine.restarted" in lines


async def test_a_process_that_hangs_is_killed(endless, start, logged):
    """Running answers fail within the timeout; the next call is answered by the new process."""
    local = await start(endless, hang_timeout_s=1)
    (number,) = engine_processes()
    async with running_answer(local) as batches:
        os.kill(number, signal.SIGSTOP)
        failed = await read_error(batches)
    events = await ask(local, input="Hi", max_output_tokens=16)

    assert (failed, events[-1].type) == ((502, "local_model_failed"), "response.incomplete")
    assert reasons(logged) == ["it sent no message for 1 s"]


async def test_a_call_long_before_the_next_start_is_refused(folder, start, monkeypatch, logged):
    """At once, with the time until then; the model may be available again by then."""
    local = await start(folder)
    monkeypatch.setattr(process_engine, "FIRST_BACKOFF_S", 4000.0)
    monkeypatch.setattr(process_engine, "MAX_BACKOFF_S", 4000.0)
    await crash(logged)
    refused = await refused_call(local)

    assert (refused.status, refused.code) == (503, "local_model_unavailable")
    assert refused.message == "The local model failed and will be restarted."  # it did not wait for a start
    assert 3000 < int(refused.headers["Retry-After"]) <= 4000


async def test_a_model_that_is_not_found_after_a_crash_is_loaded_later(tmp_path, start, monkeypatch, logged):
    """The pause before the next start doubles."""
    folder = write_model(tmp_path / "model", ["Hello"])
    local = await start(folder)
    monkeypatch.setattr(process_engine, "FIRST_BACKOFF_S", 0.01)
    folder.rename(tmp_path / "away")
    await crash(logged)
    await until(lambda: len(reasons(logged)) == 2)
    (tmp_path / "away").rename(folder)
    events = await ask(local, input="Hi")
    first, second, *_ = [line for line in logged if line["event"] == "engine.exited"]

    assert (first["starts_in_s"], second["starts_in_s"]) == (0.01, 0.02)
    assert "vocabulary.json" in second["reason"]
    assert events[-1].type == "response.completed"


async def test_a_call_that_waits_too_long_for_a_start_is_refused(folder, start, monkeypatch):
    """With a Retry-After."""
    local = await start(folder, preload=False, start_timeout_s=0.05)
    refused = await refused_call(local)

    assert (refused.status, refused.code) == (503, "local_model_unavailable")
    assert refused.headers == {"Retry-After": "1"}


async def test_the_back_off_grows_with_each_failure(folder, start, monkeypatch, logged):
    """And is short again after the engine has been stable."""
    local = await start(folder)
    for stable_s in (60, 60, 60, 0):
        monkeypatch.setattr(process_engine, "STABLE_S", stable_s)
        await ask(local, input="Hi")
        await crash(logged)
    await ask(local, input="Hi")

    assert [line["starts_in_s"] for line in logged if line["event"] == "engine.exited"] == [0.25, 0.5, 1.0, 0.25]


async def test_a_model_that_cannot_be_loaded_fails_the_start(folder, start):
    """With the message of the child."""
    with pytest.raises(OSError, match=f"The model in {folder} cannot be loaded on cpu as int8_bfloat16: Requested"):
        await start(folder, device="cpu", compute_type="int8_bfloat16")
    assert engine_processes() == []


@pytest.mark.parametrize("process_bytes", [1, 100_000_000])
async def test_too_little_memory_fails_the_start(folder, start, process_bytes):
    """With the key and its value."""
    with pytest.raises(OSError, match=f"process_bytes is {process_bytes}, which may be too small"):
        await start(folder, process_bytes=process_bytes)


async def test_an_answer_that_needs_too_much_memory_fails(endless, start, logged):
    """The process may not recover, so the next call gets a new one."""
    local = await start(endless, process_bytes=1_500_000_000)
    with pytest.raises(BackendError) as failed:
        await ask(local, input="word " * 20_000, max_output_tokens=16)
    events = await ask(local, input="Hi", max_output_tokens=16)

    assert (failed.value.status, failed.value.code) == (502, "local_model_failed")
    assert events[-1].type == "response.incomplete"
    assert reasons(logged) in (["it was out of memory"], ["SIGABRT"], ["SIGSEGV"])


async def test_any_error_of_a_start_is_retried(folder, start, monkeypatch, logged):
    """An unexpected one, too; its type and place are logged, and the backend is not ready meanwhile."""

    class UnexpectedError(Exception):
        pass

    async def fail(*_, **__):
        raise UnexpectedError("any message")

    local = await start(folder, preload=False)
    monkeypatch.setattr(process_engine, "FIRST_BACKOFF_S", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(process_engine.ChildProcess, "start", fail)
        calling = asyncio.create_task(ask(local, input="Hi"))
        await until(lambda: len(reasons(logged)) >= 2)
        ready = await local.ready()
    events = await calling

    assert reasons(logged)[0].startswith("UnexpectedError at local/host/test_process_engine.py:")
    assert "any message" not in str(logged)
    assert not ready
    assert (events[-1].type, await local.ready()) == ("response.completed", True)


async def test_without_preload_the_first_call_loads_the_model(folder, start, logged):
    """No process runs before; the backend is ready."""
    local = await start(folder, preload=False)
    before = engine_processes(), await local.ready()
    events = await ask(local, input="Hi")

    assert (before, events[-1].type, len(engine_processes())) == (([], True), "response.completed", 1)


async def test_an_idle_model_is_unloaded_and_loaded_again(endless, start, logged):
    """A model in use is not."""
    local = await start(endless, keep_alive_s=0.5)
    (number,) = engine_processes()
    async with running_answer(local):
        await asyncio.sleep(1)
        busy = engine_processes()
    await until(lambda: number not in engine_processes())
    idle = engine_processes(), await local.ready()
    events = await ask(local, input="Hi", max_output_tokens=16)

    assert (busy, idle, events[-1].type) == ([number], ([], True), "response.incomplete")
    assert [line["backend"] for line in logged if line["event"] == "model.unloaded"] == ["local"]
    assert "engine.exited" not in {line["event"] for line in logged}


async def test_two_models_share_one_memory_budget(folder, endless, start, monkeypatch):
    """The idle one is unloaded; while both are in use, calls for the second one are refused."""
    size = (folder / "model.bin").stat().st_size + 1_000_000
    limits = {
        "memory_bytes": 300_000_000,
        "kv_bytes": 200_000_000,
        "prefix_cache_bytes": 0,
        "start_timeout_s": PATIENCE_S,
    }
    assert size < limits["memory_bytes"] - limits["kv_bytes"]
    first = await start(endless, name="first", **limits)
    second = await start(folder, name="second", **limits)
    (number,) = engine_processes()  # the budget has no room to preload the second one
    async with asyncio.timeout(PATIENCE_S):
        endings = [(await ask(local, input="Hi", max_output_tokens=16))[-1].type for local in (first, second, first)]
        one_at_a_time = engine_processes()
        impatient = replace(second._engine._settings, start_timeout_s=0.5)
        async with running_answer(first):
            with monkeypatch.context() as patch:
                patch.setattr(second._engine, "_settings", impatient)
                refused = await refused_call(second)
        after = await ask(second, input="Hi")

    assert endings == ["response.incomplete", "response.completed", "response.incomplete"]
    assert (len(one_at_a_time), number in one_at_a_time) == (1, False)
    assert (refused.status, refused.headers) == (503, {"Retry-After": "1"})
    assert refused.message == "The local model is not loaded yet."  # it waited for start_timeout_s
    assert after[-1].type == "response.completed"


async def test_a_model_that_never_fits_fails_the_start(folder, start):
    with pytest.raises(ValueError, match="memory_bytes is 1000, but one model alone takes about"):
        await start(folder, memory_bytes=1000)
    assert engine_processes() == []


async def test_repeated_starts_leak_nothing(folder, start):
    """No process, no descriptor, no task."""
    counts = []
    for _ in range(STARTS):
        local = await start(folder)
        await ask(local, input="Hi")
        await local.close()
        counts.append((open_files(), len(asyncio.all_tasks())))

    assert engine_processes() == []
    assert counts[-1] == counts[1]


async def test_simultaneous_callers_get_their_own_answers(tmp_path, start):
    """The same ones as alone, over one socket."""
    local = await start(write_model(tmp_path / "random"), workers=2)
    texts = [f"Hello {'x' * length}" for length in range(20)]
    alone = [await ask(local, input=text, max_output_tokens=30) for text in texts]
    together = await asyncio.gather(*(ask(local, input=text, max_output_tokens=30) for text in texts))

    def text_of(events):
        return events[-1].response["output"][0]["content"][0]["text"]

    assert list(map(text_of, alone)) == list(map(text_of, together))
    assert len(set(map(text_of, alone))) == 20


async def test_a_caller_that_disconnects_frees_the_only_worker(endless, start):
    """Also one that disconnects while the process is being started."""
    local = await start(endless, preload=False)
    disconnecting = asyncio.create_task(ask(local, input="Hi"))
    await asyncio.sleep(0.1)
    disconnecting.cancel()
    await asyncio.gather(disconnecting, return_exceptions=True)
    async with running_answer(local):
        pass
    events = await ask(local, input="Hi", max_output_tokens=16)

    assert events[-1].type == "response.incomplete"


async def test_closing_while_the_model_loads_ends_the_process(folder, start):
    local = await start(folder, preload=False)
    calling = asyncio.create_task(ask(local, input="Hi"))
    await until(engine_processes)
    await local.close()

    assert engine_processes() == []
    with pytest.raises(BackendError, match=r"is closing|was stopped"):
        await calling
