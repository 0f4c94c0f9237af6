"""One process of an engine, well-behaved or not."""

import asyncio
import json
import os
import time

import pytest

from backends.local.decoding.job import Job, Options
from backends.local.host import child_process as spawned
from backends.local.host import watchdog as progress
from backends.local.host.child_process import Spawned, environment
from backends.local.host.ipc import Order
from proxy.wire.errors import RequestError

PATIENCE_S = 30
PLACEMENT = {"device": "cpu", "device_index": [0], "compute_type": "default", "workers": 1, "intra_threads": 1}


def order(path, vocabulary_size=1000):
    return Order(str(path), PLACEMENT, vocabulary_size, [0], 1024, 0, None)


async def life(process, steps):
    await process.live(steps.extend)
    return await process.end()


@pytest.fixture
async def start(monkeypatch):
    """Start a process that misbehaves as it is told, and hear what it says: `steps, ended = await start(how)`."""
    monkeypatch.setattr(spawned, "PROGRAM", "tests.backends.local.host.rogue")
    monkeypatch.setattr(spawned, "GRACE_S", 0.3)
    running = []

    async def begin(how, hang_timeout_s=PATIENCE_S):
        process = await Spawned.started(order(how), hang_timeout_s=hang_timeout_s)
        steps = []
        living = asyncio.create_task(life(process, steps))
        running.append((process, living))
        return process, steps, living

    async with asyncio.timeout(PATIENCE_S):
        yield begin
    for process, living in running:
        await process.stop()
        await living


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("noise", "it sent a message that is not JSON"),
        ("oversized", "it sent a message of 4294967295 bytes"),
        ("unknown", "it sent a message of no kind that is known here"),
        ("odd log", "it sent a message of no kind that is known here"),
        ("bad steps", "it sent steps that are none"),
        ("tokens", "it sent more tokens than a job may have"),
        ("out of memory", "it was out of memory"),
        ("closes", "it did not end"),
    ],
)
async def test_what_no_engine_does_ends_it(start, how, why):
    """By force where it must be; its jobs are lost then."""
    process, steps, living = await start(how)
    begun = await process.begin(Job(7, [1, 2, 3], Options(150, frozenset())))
    told = await living

    assert begun
    assert told.startswith(why)
    assert [*process.jobs, *(step.job for step in steps if step.finish == "failed")] == [7]
    assert not await process.begin(Job(8, [1, 2, 3], Options(150, frozenset())))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("dies while loading", "ended while it was loading: exit 3"),
        ("noise while loading", "ended while it was loading: it sent a message that is not JSON"),
        ("odd start", "ended while it was loading: it sent an answer to its start that is none"),
    ],
)
async def test_one_that_never_gets_ready_is_an_error(start, how, why):
    with pytest.raises(OSError, match=why):
        await start(how)


async def test_one_that_never_says_a_word_is_ended(start, monkeypatch):
    """The time to the first word is long, for machines are busy; it is not for ever."""
    monkeypatch.setattr(spawned, "FIRST_WORD_S", 0.5)
    with pytest.raises(OSError, match="while it was loading: it was silent for 1 s"):
        await start("never loads", hang_timeout_s=1)


async def test_one_that_does_not_hear_is_ended(start):
    """What it is sent meanwhile takes no more memory than a few messages do, and no time of the loop."""
    process, _, living = await start("deaf", hang_timeout_s=1)
    began = time.monotonic()
    prompt = list(range(100_000))
    sending = [asyncio.create_task(process.begin(Job(number, prompt, Options(9, frozenset())))) for number in range(50)]
    await asyncio.sleep(0.3)
    handed_over = sum(task.done() for task in sending)
    why = await living
    took_s = time.monotonic() - began

    assert (why, handed_over < 5, took_s < 10) == ("it was silent for 1 s", True, True)
    assert handed_over == sum(await asyncio.gather(*sending)) == len(process.jobs)


async def test_one_whose_jobs_come_to_nothing_is_ended(start, monkeypatch):
    """It answers all that it is asked, but a call of its library never comes back; who left does not matter."""
    monkeypatch.setattr(progress, "LONGEST_S", 0.5)
    monkeypatch.setattr(progress, "TIMES_LOADING", 0)
    process, _, living = await start("answers pings", hang_timeout_s=1)
    await process.begin(Job(7, [1, 2, 3], Options(9, frozenset())))
    process.cancel(7)
    await asyncio.sleep(1)
    alone = living.done()
    await process.begin(Job(8, [1, 2, 3], Options(9, frozenset())))

    assert (alone, await living) == (False, "nothing came of its jobs for 1 s")
    assert list(process.jobs) == [8]


async def test_a_job_that_is_too_large_is_refused(start, monkeypatch):
    """Sent, it would break the link, and the answers of others with it."""
    process, _, _ = await start("deaf")
    monkeypatch.setattr(spawned, "MAX_BYTES", 1000)

    with pytest.raises(RequestError, match="bytes for the model; at most 1000 are read"):
        await process.begin(Job(7, [1, 2, 3], Options(9, frozenset(), grammar="x" * 1000)))


async def test_one_that_floods_leaves_the_loop_its_turns(start):
    """It says what it may say, all the time."""
    process, _, living = await start("pongs")
    turns = 0
    ends_at = time.monotonic() + 0.5
    while time.monotonic() < ends_at:
        await asyncio.sleep(0)
        turns += 1
    await process.stop()

    assert turns > 20
    assert "it did not end" in await living


async def test_a_gate_that_was_busy_itself_blames_nobody(folder):
    """A loop that stood still has not heard the answers."""
    size = len(json.loads((folder / "vocabulary.json").read_text()))
    process = await Spawned.started(order(folder, size), hang_timeout_s=0.5)
    living = asyncio.create_task(life(process, []))
    for _ in range(3):
        await asyncio.sleep(0.01)
        time.sleep(0.8)  # noqa: ASYNC251  that is the point
    await asyncio.sleep(0.2)
    alive = not living.done()
    await process.stop()

    assert (alive, await living, process.resident_bytes > 10_000_000) == (True, "exit 0", True)


def test_a_child_learns_nothing_of_the_gates_secrets(monkeypatch):
    """It gets to know where libraries are; what it is told of threads can be overruled."""
    monkeypatch.setattr(
        os, "environ",
        {"OPENAI_API_KEY": "sk-1", "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "CT2_VERBOSE": "1", "AWS_SECRET": "x"},
    )  # fmt: skip
    known = environment(3)

    assert known == {
        "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "CT2_VERBOSE": "1", "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(spawned.ROOT),
    }  # fmt: skip
