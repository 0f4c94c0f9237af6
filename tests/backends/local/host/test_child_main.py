"""The engine's process, spoken to directly."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from backends.local.decoding.job import Job, Options
from backends.local.host.child_process import ROOT, environment
from backends.local.host.ipc import Link, Order, job_message, message, steps_of

PATIENCE_S = 30
PLACEMENT = {"device": "cpu", "device_index": [0], "compute_type": "default", "workers": 1, "intra_threads": 1}


class Talk:
    """A child and the link to it."""

    def __init__(self, process, link):
        self.process = process
        self.link = link

    async def hear(self, *kinds):
        """The content of the next message of one of these kinds."""
        while (said := await self.link.receive()) is not None:
            if said[0] in kinds:
                return said[1:]
        return None

    async def start(self, folder, **changes):
        vocabulary = json.loads((folder / "vocabulary.json").read_text())
        order = {"path": str(folder), "placement": PLACEMENT, "vocabulary_size": len(vocabulary)}
        rest = {"stop_ids": [2], "kv_bytes_per_token": 1024, "prefix_cache_bytes": 0, "process_bytes": None}
        self.size = len(vocabulary)
        self.link.send(message("start", Order(**order | rest | changes)))
        return await self.hear("ready", "failed")

    async def ended(self):
        """Its exit code, and what it wrote."""
        errors = (await asyncio.to_thread(self.process.communicate, timeout=PATIENCE_S))[1]
        return self.process.returncode, errors


def oom_score(number):
    return int(Path(f"/proc/{number}/oom_score_adj").read_text())


def born(end):
    command = [sys.executable, "-P", "-m", "backends.local.host.child_main", str(end.fileno())]
    with end:
        return subprocess.Popen(
            command, pass_fds=(end.fileno(),), env=environment(1), stderr=subprocess.PIPE, text=True, cwd=ROOT.parent
        )


@pytest.fixture
async def child():
    """A child that waits for its order."""
    ours, theirs = socket.socketpair()
    process = born(theirs)
    talk = Talk(process, await Link.over(ours))
    async with asyncio.timeout(PATIENCE_S):
        yield talk
    talk.link.close()
    process.kill()
    await talk.ended()


async def test_it_makes_the_tokens_it_is_asked_for(child, folder):
    """After it has told where and how, and what the model costs here."""
    (ready,) = await child.start(folder)
    child.link.send(job_message(Job(7, [1, 5, 6], Options(4, frozenset()))))
    steps = []
    while not steps or steps[-1].finish is None:
        steps += steps_of(await child.hear("steps"), child.size)

    assert (ready["device"], ready["compute_type"], ready["costs"]["workers"]) == ("cpu", "int8_float32", 1)
    assert sum(len(step.tokens) for step in steps) == 4
    assert ({step.job for step in steps}, steps[0].cached_tokens, steps[-1].finish) == ({7}, 0, "length")


async def test_it_tells_that_it_lives_while_it_loads_and_works(child, endless):
    """With how much memory it takes."""
    child.link.send(message("ping"))
    first = await child.hear("pong")
    await child.start(endless)
    child.link.send(job_message(Job(7, [1, 5, 6], Options(10**6, frozenset()))))
    await child.hear("steps")
    child.link.send(message("ping"))
    (resident,) = await child.hear("pong")

    assert first[0] > 10_000_000
    assert resident > first[0]


async def test_a_job_that_is_cancelled_says_no_more(child, endless):
    """The only worker is free for the next one."""
    await child.start(endless)
    child.link.send(job_message(Job(7, [1, 5, 6], Options(10**6, frozenset()))))
    await child.hear("steps")
    child.link.send(message("cancel", 7))
    child.link.send(message("cancel", 99))
    child.link.send(job_message(Job(8, [1, 5, 6], Options(3, frozenset()))))
    while not any(step.job == 8 and step.finish for step in steps_of(await child.hear("steps"), child.size)):
        pass


async def test_it_ends_in_good_order_when_it_is_told_to(child, endless):
    """In the middle of an answer."""
    await child.start(endless)
    child.link.send(job_message(Job(7, [1, 5, 6], Options(10**6, frozenset()))))
    await child.hear("steps")
    child.link.send(message("close"))

    assert await child.ended() == (0, "")


@pytest.mark.parametrize("working", [False, True])
async def test_it_ends_when_nobody_listens_any_more(child, endless, working):
    """Within a second: a gate that was killed leaves no orphan, loading or at work."""
    if working:
        await child.start(endless)
        child.link.send(job_message(Job(7, [1, 5, 6], Options(10**6, frozenset()))))
        await child.hear("steps")
    else:
        child.link.send(message("ping"))
        await child.hear("pong")
        child.link.send(message("start", Order(str(endless), PLACEMENT, 1, [2], 1024, 0, None)))
    child.link.close()
    code = await asyncio.to_thread(child.process.wait, timeout=1)

    assert code == 0


async def test_what_stops_the_gate_does_not_stop_it(child, folder):
    """Ctrl-C and a service manager's stop reach both; the gate drains first."""
    await child.start(folder)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child.process.pid, name)
    child.link.send(message("ping"))

    assert await child.hear("pong")


async def test_it_goes_before_the_gate_when_memory_runs_out(child, folder):
    """Which the system knows by a figure."""
    await child.start(folder)

    assert oom_score(child.process.pid) >= 500


async def test_a_model_that_cannot_be_loaded_is_told(child, tmp_path, folder):
    """In the words of whoever found out."""
    (tmp_path / "vocabulary.json").write_text("[]")

    (why,) = await child.start(tmp_path)
    assert "cannot be loaded on cpu" in why


async def test_a_model_that_was_exchanged_is_not_loaded(child, folder):
    """The gate has read the tokenizer of another one."""
    assert await child.start(folder, vocabulary_size=5) == [
        f"The model in {folder} is not the one that was there when the gate was started."
    ]


async def test_too_little_memory_is_told(child, folder):
    """Of the limit that was set, not of the machine's; when not even that can be said, the process ends."""
    told = await child.start(folder, process_bytes=150_000_000)

    assert told is None or "cannot be loaded" in told[0] or "emory" in told[0] or "allocate" in told[0]


@pytest.mark.parametrize("noise", [orjson.dumps(["what"]), b"{", orjson.dumps(["job", 1])])
async def test_what_no_gate_says_ends_it(child, noise):
    """With a traceback on stderr, for it should never happen."""
    child.link.send(noise)
    code, errors = await child.ended()

    assert (code, "BrokenLink" in errors) == (1, True)
