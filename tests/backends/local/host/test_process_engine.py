"""An engine in a process of its own, behind the local backend: what becomes of calls when it does not do well."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends.local.host import process_engine as process
from proxy.wire.errors import BackendError
from tests.backends.local.conftest import ask, call_of, engine_processes, until
from tests.models import write_model

PATIENCE_S = 60
STARTS = 6  # as many as it takes to see a leak; it was tried with many more


@pytest.fixture
def start(start_local):
    """Start a local backend with an engine in a process of its own."""

    async def begin(folder, **keys):
        plenty = {"max_output_tokens": 100_000, "kv_bytes": 10**10, "workers": 1}
        return await start_local(folder, engine="process", **plenty | keys)

    return begin


@asynccontextmanager
async def answering(local):
    """An answer that is being made, its events one by one."""
    async with local.respond(call_of(input="Hi")) as reply:
        await anext(reply.batches)
        await anext(reply.batches)
        yield reply.batches


async def failure_of(batches):
    with pytest.raises(BackendError) as failed:
        async for _ in batches:
            pass
    return failed.value.status, failed.value.code


async def refusal_of(local):
    with pytest.raises(BackendError) as refused:
        await ask(local, input="Hi", max_output_tokens=16)
    return refused.value


async def crash(logged):
    """Until the gate has learned of it, and said so."""
    (number,) = engine_processes()
    ended = len(reasons(logged))
    os.kill(number, signal.SIGKILL)
    await until(lambda: len(reasons(logged)) > ended)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def reasons(logged):
    return [line["reason"] for line in logged if line["event"] == "local.engine_ended"]


async def test_an_answer_comes_from_another_process(folder, start):
    """Which is gone when the backend is closed."""
    local = await start(folder)
    events = await ask(local, input="Hi")
    (number,) = engine_processes()
    await local.close()

    assert (events[-1].type, engine_processes()) == ("response.completed", [])
    assert number != os.getpid()
    assert (await refusal_of(local)).code == "local_model_unavailable"


async def test_a_crash_fails_who_is_answered_and_not_the_next(endless, start, logged):
    """Who comes while it is started again waits for it."""
    local = await start(endless)
    (number,) = engine_processes()
    async with answering(local) as batches:
        os.kill(number, signal.SIGKILL)
        failed = await failure_of(batches)
        down = await local.ready()
        events = await ask(local, input="Hi", max_output_tokens=16)

    assert failed == (502, "local_model_failed")
    assert (down, await local.ready(), events[-1].type) == (False, True, "response.incomplete")
    assert engine_processes() != [number]
    lines = {line["event"]: line for line in logged}
    assert (lines["local.engine_ended"]["reason"], lines["local.engine_ended"]["backend"]) == ("SIGKILL", "local")
    assert "local.engine_restarted" in lines


async def test_a_process_that_hangs_is_ended(endless, start, logged):
    """Who is answered learns that it failed, within the time that was set; the next one is answered by the new one."""
    local = await start(endless, hang_timeout_s=1)
    (number,) = engine_processes()
    async with answering(local) as batches:
        os.kill(number, signal.SIGSTOP)
        began = time.monotonic()
        failed = await failure_of(batches)
        took_s = time.monotonic() - began
    events = await ask(local, input="Hi", max_output_tokens=16)

    assert (failed, events[-1].type) == ((502, "local_model_failed"), "response.incomplete")
    assert took_s < 3
    assert reasons(logged) == ["it was silent for 1 s"]


async def test_who_comes_when_the_next_start_is_far_is_told_when(tmp_path, start, monkeypatch, logged):
    """At once: nobody waits for what will not be there in time. Its model may come back meanwhile."""
    folder = write_model(tmp_path / "model", ["Hello"])
    local = await start(folder, start_timeout_s=2)
    monkeypatch.setattr(process, "FIRST_PAUSE_S", 4.0)
    folder.rename(tmp_path / "away")
    await crash(logged)
    began = time.monotonic()
    refused = await refusal_of(local)
    took_s = time.monotonic() - began

    assert (refused.status, refused.code) == (503, "local_model_unavailable")
    assert (3 <= int(refused.headers["Retry-After"]) <= 4, took_s < 1) == (True, True)
    await until(lambda: len(reasons(logged)) == 2)
    assert "vocabulary.json" in logged[-1]["reason"]
    assert logged[-1]["starts_in_s"] == 8
    monkeypatch.undo()
    (tmp_path / "away").rename(folder)


async def test_who_waits_too_long_is_told_to_come_back(folder, start, monkeypatch):
    """A start may take longer than a caller can wait."""
    local = await start(folder, preload=False, start_timeout_s=0.05)
    refused = await refusal_of(local)

    assert (refused.status, refused.code) == (503, "local_model_unavailable")
    assert refused.headers == {"Retry-After": "1"}


async def test_pauses_grow_while_it_is_not_well(folder, start, monkeypatch, logged):
    """And are short again after it was well for a while."""
    local = await start(folder)
    for well_s in (60, 60, 60, 0):
        monkeypatch.setattr(process, "WELL_S", well_s)
        await ask(local, input="Hi")
        await crash(logged)
    await ask(local, input="Hi")

    assert [line["starts_in_s"] for line in logged if line["event"] == "local.engine_ended"] == [0.25, 0.5, 1.0, 0.25]


async def test_a_model_that_cannot_be_loaded_fails_the_start(folder, start):
    """In the words of the process that tried."""
    with pytest.raises(OSError, match=f"The model in {folder} cannot be loaded on cpu as int8_bfloat16: Requested"):
        await start(folder, compute_type="int8_bfloat16")
    assert engine_processes() == []


@pytest.mark.parametrize("process_bytes", [1, 100_000_000])
async def test_too_little_memory_fails_the_start(folder, start, process_bytes):
    """With the limit that was set, and its key."""
    with pytest.raises(OSError, match=f"process_bytes is {process_bytes}, which may be too small"):
        await start(folder, process_bytes=process_bytes)


async def test_an_answer_that_takes_too_much_memory_fails(endless, start, logged):
    """What is left of its process cannot be trusted: there is a new one for the next call."""
    local = await start(endless, process_bytes=1_500_000_000)
    with pytest.raises(BackendError) as failed:
        await ask(local, input="word " * 20_000, max_output_tokens=16)
    events = await ask(local, input="Hi", max_output_tokens=16)

    assert (failed.value.status, failed.value.code) == (502, "local_model_failed")
    assert events[-1].type == "response.incomplete"
    assert reasons(logged) in (["it was out of memory"], ["SIGABRT"], ["SIGSEGV"])


async def test_whatever_goes_wrong_in_a_start_it_is_tried_again(folder, start, monkeypatch, logged):
    """Also what nobody thought of: it is told, and the gate says that it is not ready."""

    class Odd(Exception):
        pass

    async def fail(*_, **__):
        raise Odd("what nobody thought of")

    local = await start(folder, preload=False)
    monkeypatch.setattr(process, "FIRST_PAUSE_S", 0.01)
    with monkeypatch.context() as odd:
        odd.setattr(process.Spawned, "started", fail)
        calling = asyncio.create_task(ask(local, input="Hi"))
        await until(lambda: len(reasons(logged)) >= 2)
        ready = await local.ready()
    events = await calling

    assert (reasons(logged)[0], ready) == ("Odd: what nobody thought of", False)
    assert (events[-1].type, await local.ready()) == ("response.completed", True)


async def test_without_preload_the_first_call_loads_it(folder, start, logged):
    """Until then nothing runs; it is ready all the same."""
    local = await start(folder, preload=False)
    before = engine_processes(), await local.ready()
    events = await ask(local, input="Hi")

    assert (before, events[-1].type, len(engine_processes())) == (([], True), "response.completed", 1)


async def test_an_idle_model_is_unloaded_and_comes_back(endless, start, logged):
    """Not while it is being used."""
    local = await start(endless, keep_alive_s=0.5)
    (number,) = engine_processes()
    async with answering(local):
        await asyncio.sleep(1)
        busy = engine_processes()
    await until(lambda: number not in engine_processes())
    idle = engine_processes(), await local.ready()
    events = await ask(local, input="Hi", max_output_tokens=16)

    assert (busy, idle, events[-1].type) == ([number], ([], True), "response.incomplete")
    assert [line["backend"] for line in logged if line["event"] == "local.unloaded"] == ["local"]
    assert "local.engine_ended" not in {line["event"] for line in logged}


async def test_two_models_share_one_budget(folder, endless, start):
    """The one that is idle makes room; while both are busy, the late one is told to come back."""
    size = (folder / "model.bin").stat().st_size + 1_000_000
    limits = {"memory_bytes": 300_000_000, "kv_bytes": 200_000_000, "prefix_cache_bytes": 0, "start_timeout_s": 5}
    assert size < limits["memory_bytes"] - limits["kv_bytes"]
    first = await start(endless, name="first", **limits)
    second = await start(folder, name="second", **limits)
    (number,) = engine_processes()  # there is no room to load the second one ahead
    async with asyncio.timeout(PATIENCE_S):
        said = [(await ask(local, input="Hi", max_output_tokens=16))[-1].type for local in (first, second, first)]
        one_at_a_time = engine_processes()
        async with answering(first):
            began = time.monotonic()
            refused = await refusal_of(second)
            took_s = time.monotonic() - began
        after = await ask(second, input="Hi")

    assert said == ["response.incomplete", "response.completed", "response.incomplete"]
    assert (len(one_at_a_time), number in one_at_a_time) == (1, False)
    assert (refused.status, refused.headers, 4 < took_s < 8) == (503, {"Retry-After": "1"}, True)
    assert after[-1].type == "response.completed"


async def test_a_model_that_never_fits_fails_the_start(folder, start):
    with pytest.raises(ValueError, match="memory_bytes is 1000, but one model alone takes about"):
        await start(folder, memory_bytes=1000)
    assert engine_processes() == []


async def test_starts_leave_nothing_behind(folder, start):
    """No process, no descriptor, no task."""
    counts = []
    for _ in range(STARTS):
        local = await start(folder)
        await ask(local, input="Hi")
        await local.close()
        counts.append((open_files(), len(asyncio.all_tasks())))

    assert engine_processes() == []
    assert counts[-1] == counts[1]


async def test_many_callers_get_their_own_answers(tmp_path, start):
    """The same as alone, through one socket."""
    local = await start(write_model(tmp_path / "random"), workers=2)
    texts = [f"Hello {'x' * length}" for length in range(20)]
    alone = [await ask(local, input=text, max_output_tokens=30) for text in texts]
    together = await asyncio.gather(*(ask(local, input=text, max_output_tokens=30) for text in texts))

    def said(events):
        return events[-1].response["output"][0]["content"][0]["text"]

    assert list(map(said, alone)) == list(map(said, together))


async def test_a_caller_that_leaves_frees_the_only_worker(endless, start):
    """Also one that leaves while the process is being started."""
    local = await start(endless, preload=False)
    leaving = asyncio.create_task(ask(local, input="Hi"))
    await asyncio.sleep(0.1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    async with answering(local):
        pass
    events = await ask(local, input="Hi", max_output_tokens=16)

    assert events[-1].type == "response.incomplete"


async def test_closing_while_it_loads_ends_it(folder, start):
    local = await start(folder, preload=False)
    calling = asyncio.create_task(ask(local, input="Hi"))
    await until(engine_processes)
    await local.close()

    assert engine_processes() == []
    with pytest.raises(BackendError, match=r"is closing|was stopped"):
        await calling
