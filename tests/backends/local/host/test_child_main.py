"""Tests of the child process, over its socket."""

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

from backends.local.decoding.job import DecodingOptions, Job
from backends.local.host.child_process import PROGRAM, ROOT, child_environment
from backends.local.host.ipc import Channel, EngineSpec, decode_steps, encode_job, encode_message

PATIENCE_S = 30
PLACEMENT = {"device": "cpu", "device_index": [0], "compute_type": "default", "workers": 1, "intra_threads": 1}


class ChildClient:
    """A child and the channel to it."""

    def __init__(self, process, channel):
        self.process = process
        self.channel = channel

    async def receive(self, *kinds):
        """Return the content of the next message of one of these kinds."""
        while (message := await self.channel.receive()) is not None:
            if message[0] in kinds:
                return message[1:]
        return None

    async def start(self, folder, **changes):
        vocabulary = json.loads((folder / "vocabulary.json").read_text())
        spec = {"path": str(folder), "placement": PLACEMENT, "vocabulary_size": len(vocabulary)}
        rest = {"stop_ids": [2], "kv_bytes_per_token": 1024, "prefix_cache_bytes": 0, "process_bytes": None}
        self.size = len(vocabulary)
        self.channel.send(encode_message("start", EngineSpec(**spec | rest | changes)))
        return await self.receive("ready", "failed")

    async def wait(self):
        """Return its exit code and what it wrote to stderr."""
        errors = (await asyncio.to_thread(self.process.communicate, timeout=PATIENCE_S))[1]
        return self.process.returncode, errors


def oom_score(number):
    return int(Path(f"/proc/{number}/oom_score_adj").read_text())


def spawn(end):
    command = [sys.executable, "-P", PROGRAM, str(end.fileno())]
    with end:
        return subprocess.Popen(
            command,
            pass_fds=(end.fileno(),),
            env=child_environment(1),
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT.parent,
        )


@pytest.fixture
async def child():
    """A child that waits for its "start" message."""
    ours, theirs = socket.socketpair()
    process = spawn(theirs)
    client = ChildClient(process, await Channel.open(ours))
    async with asyncio.timeout(PATIENCE_S):
        yield client
    client.channel.close()
    process.kill()
    await client.wait()


async def test_a_job_delivers_its_tokens(child, folder):
    """After "ready" has reported the device and the costs."""
    (ready,) = await child.start(folder)
    child.channel.send(encode_job(Job(7, [1, 5, 6], DecodingOptions(4, frozenset()))))
    steps = []
    while not steps or steps[-1].finish is None:
        steps += decode_steps(await child.receive("steps"), child.size)

    assert (ready["device"], ready["compute_type"], ready["costs"]["workers"]) == ("cpu", "int8_float32", 1)
    assert sum(len(step.tokens) for step in steps) == 4
    assert ({step.job for step in steps}, steps[0].cached_tokens, steps[-1].finish) == ({7}, 0, "length")


async def test_pings_are_answered_while_it_loads_and_works(child, endless):
    """With its resident memory."""
    child.channel.send(encode_message("ping"))
    first = await child.receive("pong")
    await child.start(endless)
    child.channel.send(encode_job(Job(7, [1, 5, 6], DecodingOptions(10**6, frozenset()))))
    await child.receive("steps")
    child.channel.send(encode_message("ping"))
    (resident,) = await child.receive("pong")

    assert first[0] > 10_000_000
    assert resident > first[0]


async def test_a_cancelled_job_delivers_no_more_steps(child, endless):
    """The only worker is free for the next one."""
    await child.start(endless)
    child.channel.send(encode_job(Job(7, [1, 5, 6], DecodingOptions(10**6, frozenset()))))
    await child.receive("steps")
    child.channel.send(encode_message("cancel", 7))
    child.channel.send(encode_message("cancel", 99))
    child.channel.send(encode_job(Job(8, [1, 5, 6], DecodingOptions(3, frozenset()))))
    while not any(step.job == 8 and step.finish for step in decode_steps(await child.receive("steps"), child.size)):
        pass


async def test_close_ends_it_cleanly(child, endless):
    """In the middle of an answer."""
    await child.start(endless)
    child.channel.send(encode_job(Job(7, [1, 5, 6], DecodingOptions(10**6, frozenset()))))
    await child.receive("steps")
    child.channel.send(encode_message("close"))

    assert await child.wait() == (0, "")


@pytest.mark.parametrize("working", [False, True])
async def test_it_exits_when_the_gateway_is_gone(child, endless, working):
    """Within a second, loading or working: a killed gateway leaves no orphan."""
    if working:
        await child.start(endless)
        child.channel.send(encode_job(Job(7, [1, 5, 6], DecodingOptions(10**6, frozenset()))))
        await child.receive("steps")
    else:
        child.channel.send(encode_message("ping"))
        await child.receive("pong")
        child.channel.send(encode_message("start", EngineSpec(str(endless), PLACEMENT, 1, [2], 1024, 0, None)))
    child.channel.close()
    code = await asyncio.to_thread(child.process.wait, timeout=1)

    assert code == 0


async def test_signals_that_stop_the_gateway_do_not_stop_it(child, folder):
    """Ctrl-C and a service manager reach both; the gateway drains first."""
    await child.start(folder)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child.process.pid, name)
    child.channel.send(encode_message("ping"))

    assert await child.receive("pong")


async def test_it_is_killed_before_the_gateway_when_memory_runs_out(child, folder):
    await child.start(folder)

    assert oom_score(child.process.pid) >= 500


async def test_it_has_libraries_of_the_engine_only(child, folder):
    """What the gateway imports beside them would take time and memory."""
    await child.start(folder)
    libraries = await asyncio.to_thread(Path(f"/proc/{child.process.pid}/maps").read_text)

    assert ("ctranslate2" in libraries, "pydantic_core" in libraries) == (True, False)


async def test_a_model_that_cannot_be_loaded_is_reported(child, tmp_path, folder):
    """With the message of the library."""
    (tmp_path / "vocabulary.json").write_text("[]")

    (reason,) = await child.start(tmp_path)
    assert "cannot be loaded on cpu" in reason


async def test_a_model_that_was_replaced_is_not_loaded(child, folder):
    """The gateway has read the tokenizer of the former one."""
    assert await child.start(folder, vocabulary_size=5) == [
        f"The model in {folder} has changed since the gateway was started; restart the gateway."
    ]


async def test_too_little_memory_is_reported(child, folder):
    """When even that fails, the process exits."""
    answer = await child.start(folder, process_bytes=150_000_000)

    assert answer is None or "cannot be loaded" in answer[0] or "emory" in answer[0] or "allocate" in answer[0]


@pytest.mark.parametrize("noise", [orjson.dumps(["what"]), b"{", orjson.dumps(["job", 1])])
async def test_an_invalid_message_ends_it(child, noise):
    """With a traceback on stderr."""
    child.channel.send(noise)
    code, errors = await child.wait()

    assert (code, "IpcError" in errors) == (1, True)
