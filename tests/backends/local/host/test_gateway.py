"""Tests of a whole gateway when the engine of its local model fails."""

import asyncio
import os
import signal
import subprocess
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import openai
import pytest

from tests.backends.local.conftest import engine_processes, until
from tests.forked import start_proxy

PATIENCE_S = 60
DELTA = "response.output_text.delta"
ROOT = Path(__file__).parents[4]


def alive(number):
    """Return whether a process runs; a zombie does not."""
    with suppress(OSError):
        return Path(f"/proc/{number}/cmdline").read_bytes() != b""
    return False


def tables(folder, **keys):
    backend = {"name": "local", "use": "local", "path": str(folder), "max_output_tokens": 100_000, "kv_bytes": 10**10}
    return {"backend": [backend | keys], "route": [{"model": "*", "backend": "local"}]}


class EndlessStream:
    """Reads an endless answer as text."""

    def __init__(self, http, address):
        self.text = ""
        self._reading = asyncio.create_task(self._read(http, address))

    async def _read(self, http, address):
        body = {"model": "tick", "input": "Hi", "stream": True}
        async with asyncio.timeout(PATIENCE_S), http.post(f"{address}/v1/responses", json=body) as answer:
            async for chunk in answer.content.iter_any():
                self.text += chunk.decode()

    async def until(self, kind):
        """Wait for the first event of this type."""
        await until(lambda: f"event: {kind}" in self.text or self._reading.done())

    async def wait(self):
        await self._reading
        return self.text


async def send_call(http, address):
    body = {"model": "tick", "input": "Hi", "max_output_tokens": 16}
    async with asyncio.timeout(PATIENCE_S), http.post(f"{address}/v1/responses", json=body) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("name", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_crash_fails_all_running_streams(slow, start_gateway, http, name):
    """None of them looks complete. The gateway continues, and its next answer is good."""
    address = await start_gateway(tables(slow, workers=2))
    streams = [EndlessStream(http, address) for _ in range(20)]
    await asyncio.gather(*(stream.until("response.created") for stream in streams))
    await asyncio.wait({asyncio.create_task(stream.until(DELTA)) for stream in streams}, return_when="FIRST_COMPLETED")
    (number,) = engine_processes()
    os.kill(number, name)
    texts = [await stream.wait() for stream in streams]
    status, answer = await send_call(http, address)

    assert any(DELTA in text for text in texts)
    assert [text.count("event: response.failed") for text in texts] == [1] * 20
    assert [text for text in texts if "response.completed" in text or "response.incomplete" in text] == []
    assert (status, answer["status"], engine_processes() != [number]) == (200, "incomplete", True)


async def test_the_sdk_raises_an_error_when_the_engine_crashes(slow, start_gateway):
    """With the message, not with an answer that looks complete; the same client continues."""
    address = await start_gateway(tables(slow))
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client:
        events = await client.responses.create(model="tick", input="Hi", stream=True)
        await anext(event async for event in events if event.type == DELTA)
        for number in engine_processes():
            os.kill(number, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="The local model failed"):
            assert [event async for event in events] == []
        answer = await client.responses.create(model="tick", input="Hi", max_output_tokens=16)

    assert answer.status == "incomplete"


async def test_a_json_call_in_flight_gets_a_502(slow, start_gateway, http):
    """No byte of its answer has been sent, so a status is possible."""
    address = await start_gateway(tables(slow))
    call = asyncio.create_task(http.post(f"{address}/v1/responses", json={"model": "tick", "input": "Hi"}))
    later = EndlessStream(http, address)
    await later.until("response.created")  # the call before it runs, too
    for number in engine_processes():
        os.kill(number, signal.SIGKILL)
    async with await call as answer:
        content = await answer.json()
    await later.wait()

    assert (answer.status, content["error"]["code"]) == (502, "local_model_failed")


async def test_a_gateway_continues_while_its_engine_hangs(slow, start_gateway, http, logged):
    """Its callers get an error within the timeout; callers of other backends are not affected."""
    other = {"name": "canned", "use": "replay", "path": str(ROOT / "tests/data/canonical.sse")}
    config = tables(slow, hang_timeout_s=1)
    config = {
        "backend": [*config["backend"], other],
        "route": [{"model": "canned", "backend": "canned"}, *config["route"]],
    }
    address = await start_gateway(config)
    stream = EndlessStream(http, address)
    await stream.until(DELTA)
    for number in engine_processes():
        os.kill(number, signal.SIGSTOP)
    async with http.post(f"{address}/v1/responses", json={"model": "canned", "input": "Hi"}) as answer:
        others = answer.status
    text = await stream.wait()
    status, _ = await send_call(http, address)

    assert (others, text.count("event: response.failed"), status) == (200, 1, 200)
    assert [line["reason"] for line in logged if line["event"] == "engine.exited"] == ["it sent no message for 1 s"]
    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [200, 200, 200]


@asynccontextmanager
async def run_gateway(tmp_path, folder, drain_s=20, **keys):
    """Start a gateway in a process of its own; yield the process and its address."""
    settings = {"max_output_tokens": 100_000, "kv_bytes": 10**10} | keys
    lines = "\n".join(f"{name} = {value}" for name, value in settings.items())
    config = tmp_path / "headgate.toml"
    config.write_text(
        f"""[server]\nport = 0\ndrain_s = {drain_s}\n[[backend]]\nuse = "local"\nname = "tick"\npath = "{folder}"\n{lines}
[[route]]\nmodel = "*"\nbackend = "tick"\n"""
    )
    process = await start_proxy("serve", "--config", str(config), stderr=subprocess.PIPE)
    try:
        line = (await process.stdout.readline()).decode()
        yield process, line.split()[3].removesuffix("/v1.")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_a_killed_gateway_leaves_no_engine(slow, tmp_path, http):
    """It has exited within a second, in the middle of an answer."""
    async with run_gateway(tmp_path, slow) as (process, address):
        stream = EndlessStream(http, address)
        await stream.until(DELTA)
        (number,) = engine_processes(process.pid)
        process.kill()
        await process.wait()
        await until(lambda: not alive(number), patience_s=1)
        with pytest.raises(aiohttp.ClientError):
            await stream.wait()


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
async def test_a_stopped_gateway_finishes_running_answers(slow, tmp_path, http, name):
    """The signal reaches all processes; the engine continues until the gateway has drained."""
    async with run_gateway(tmp_path, slow, max_output_tokens=1000) as (process, address):
        stream = EndlessStream(http, address)
        await stream.until(DELTA)
        (number,) = engine_processes(process.pid)
        for each in (number, process.pid):
            os.kill(each, name)
        text = await stream.wait()
        errors = (await process.communicate())[1].decode()

    assert text.count("event: response.incomplete") == 1
    assert (process.returncode, "Traceback" in errors, alive(number)) == (0, False, False)


async def test_answers_that_outlast_the_drain_end_with_a_reason(slow, tmp_path, http):
    """A stream by its last events, after its text; a JSON call by a status. The engine exits, too."""
    async with run_gateway(tmp_path, slow, drain_s=0.5, workers=2) as (process, address):
        stream = EndlessStream(http, address)
        body = {"model": "tick", "input": "Hi", "max_output_tokens": 100_000}
        whole = asyncio.create_task(http.post(f"{address}/v1/responses", json=body))
        await stream.until(DELTA)
        (number,) = engine_processes(process.pid)
        os.kill(process.pid, signal.SIGTERM)
        text = await stream.wait()
        async with await whole as answer:
            content = await answer.json()
        errors = (await process.communicate())[1].decode()

    assert [text.count(f"event: {kind}") for kind in ("response.output_item.done", "error", "response.failed")] == [
        1
    ] * 3
    assert text.endswith("data: [DONE]\n\n")
    assert (answer.status, content["error"]["code"], text.count('"code":"server_shutdown"')) == (
        503,
        "server_shutdown",
        2,
    )
    assert (process.returncode, "Traceback" in errors, '"status": 499' in errors, alive(number)) == (
        0,
        False,
        False,
        False,
    )
