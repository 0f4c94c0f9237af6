"""Tests of the handle on one child process, working or faulty."""

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from backends.local.decoding.job import DecodingOptions, Job
from backends.local.host import child_process, watchdog
from backends.local.host.child_process import ChildProcess, child_environment
from backends.local.host.ipc import EngineSpec
from proxy.wire.errors import RequestError
from tests.backends.local.conftest import until
from tests.timeouts import fail_if_stuck

PATIENCE_S = 30
PLACEMENT = {"device": "cpu", "device_index": [0], "compute_type": "default", "workers": 1, "intra_threads": 1}


def spec_of(path, vocabulary_size=1000):
    return EngineSpec(str(path), PLACEMENT, vocabulary_size, [0], 1024, 0, None)


async def run(process, steps):
    await process.receive(steps.extend)
    return await process.wait()


@pytest.fixture
async def start(monkeypatch):
    """Start a process with this fault: `process, steps, running = await start(fault)`."""
    monkeypatch.setattr(child_process, "PROGRAM", Path(__file__).with_name("faulty_child.py"))
    monkeypatch.setattr(child_process, "GRACE_S", 0.3)
    started = []

    async def start_child(fault, hang_timeout_s=PATIENCE_S):
        process = await ChildProcess.start(spec_of(fault), hang_timeout_s=hang_timeout_s)
        steps = []
        running_task = asyncio.create_task(run(process, steps))
        started.append((process, running_task))
        return process, steps, running_task

    async with asyncio.timeout(PATIENCE_S):
        yield start_child
    for process, running_task in started:
        await process.stop()
        await running_task


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("noise", "it sent a message that is not JSON"),
        ("oversized", "it sent a message of 4294967295 bytes"),
        ("unknown", "it sent a message of an unknown kind"),
        ("odd log", "it sent a message of an unknown kind"),
        ("bad steps", "it sent invalid steps"),
        ("tokens", "it sent more tokens than a job's limit"),
        ("out of memory", "it was out of memory"),
        ("closes", "it did not exit"),
    ],
)
async def test_a_faulty_child_is_killed(start, fault, expected):
    """Its jobs are lost, and it accepts no more."""
    process, steps, running_task = await start(fault)
    accepted = await process.submit(Job(7, [1, 2, 3], DecodingOptions(150, frozenset())))
    reason = await running_task

    assert accepted
    assert reason.startswith(expected)
    assert [*process.jobs, *(step.job for step in steps if step.finish == "failed")] == [7]
    assert not await process.submit(Job(8, [1, 2, 3], DecodingOptions(150, frozenset())))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("dies while loading", "exited while it was loading: exit 3"),
        ("noise while loading", "exited while it was loading: it sent a message that is not JSON"),
        ("odd start", "exited while it was loading: it sent an invalid .ready. message"),
    ],
)
async def test_a_child_that_is_never_ready_is_an_error(start, fault, reason):
    with pytest.raises(OSError, match=reason):
        await start(fault)


async def test_a_child_that_sends_no_first_message_is_killed(start, monkeypatch):
    """The time to the first message is long but limited."""
    monkeypatch.setattr(child_process, "FIRST_MESSAGE_S", 0.5)
    with pytest.raises(OSError, match="while it was loading: it sent no message for 1 s"):
        await start("never loads", hang_timeout_s=1)


async def test_a_child_that_reads_nothing_is_killed(start):
    """Jobs that wait to be sent need little memory and no time of the loop."""
    process, _, running_task = await start("deaf", hang_timeout_s=1)
    prompt = list(range(100_000))
    submitting = [
        asyncio.create_task(process.submit(Job(number, prompt, DecodingOptions(9, frozenset()))))
        for number in range(50)
    ]
    await asyncio.sleep(0.3)
    submitted = sum(task.done() for task in submitting)
    reason = await running_task

    assert (reason, submitted < 5) == ("it sent no message for 1 s", True)
    assert submitted == sum(await asyncio.gather(*submitting)) == len(process.jobs)


async def test_a_child_whose_jobs_make_no_progress_is_killed(start, monkeypatch):
    """It answers pings, but a call of the library never returns; cancelled jobs do not count."""
    monkeypatch.setattr(watchdog, "MAX_STALL_S", 0.5)
    monkeypatch.setattr(watchdog, "LOADING_FACTOR", 0)
    process, _, running_task = await start("answers pings", hang_timeout_s=1)
    await process.submit(Job(7, [1, 2, 3], DecodingOptions(9, frozenset())))
    process.cancel(7)
    await asyncio.sleep(1)
    alone = running_task.done()
    await process.submit(Job(8, [1, 2, 3], DecodingOptions(9, frozenset())))

    assert (alone, await running_task) == (False, "its jobs made no progress for 1 s")
    assert list(process.jobs) == [8]


async def test_a_job_that_is_too_large_is_refused(start, monkeypatch):
    """It would end the connection, and the answers of others with it."""
    process, _, _ = await start("deaf")
    monkeypatch.setattr(child_process, "MAX_BYTES", 1000)

    with pytest.raises(RequestError, match="bytes for the model; the limit is 1000"):
        await process.submit(Job(7, [1, 2, 3], DecodingOptions(9, frozenset(), grammar="x" * 1000)))


async def test_a_flood_of_messages_does_not_block_the_loop(start):
    """The loop has turns while messages arrive without end."""
    process, _, running_task = await start("pongs")
    with fail_if_stuck():
        await until(lambda: process.resident_bytes)
        for _ in range(100):
            await asyncio.sleep(0)
        await process.stop()

    assert "it did not exit" in await running_task


async def test_a_busy_gateway_does_not_kill_its_child(folder):
    """A blocked loop has not received the pongs."""
    size = len(json.loads((folder / "vocabulary.json").read_text()))
    process = await ChildProcess.start(spec_of(folder, size), hang_timeout_s=0.5)
    running_task = asyncio.create_task(run(process, []))
    for _ in range(3):
        await asyncio.sleep(0.01)
        time.sleep(0.8)  # noqa: ASYNC251  the loop has to be blocked
    await asyncio.sleep(0.2)
    alive = not running_task.done()
    await process.stop()

    assert (alive, await running_task, process.resident_bytes > 10_000_000) == (True, "exit 0", True)


def test_the_environment_of_a_child_contains_no_secrets(monkeypatch):
    """It contains library paths; the number of threads can be overridden."""
    monkeypatch.setattr(
        os, "environ",
        {"OPENAI_API_KEY": "sk-1", "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "CT2_VERBOSE": "1", "AWS_SECRET": "x"},
    )  # fmt: skip
    environment = child_environment(3)

    assert environment == {
        "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "CT2_VERBOSE": "1", "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(child_process.ROOT),
    }  # fmt: skip
