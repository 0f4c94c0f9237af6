"""The gateway as a process: start, shutdown, and logs."""

import asyncio
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

import aiohttp
import orjson
import pytest
from yarl import URL

from tests.raw import RawAnswer, ask, events, no_tasks_left, post, until, wire  # noqa: F401
from tests.upstream import CANONICAL

ROOT = Path(__file__).parent.parent
STREAM = post(b'{"model":"m","stream":true}')
TYPES = [event["type"] for event in events(CANONICAL)[:-1]]
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHUTDOWN = "server_shutdown"


@dataclass
class Process:
    """A running `python -m proxy serve`."""

    address: str
    process: asyncio.subprocess.Process

    def listens(self) -> bool:
        url = URL(self.address)
        with socket.socket() as probe:
            return probe.connect_ex((url.host, url.port)) == 0

    async def log(self) -> list[dict[str, Any]]:
        """Return its log lines after its end. Raises ValueError for a line that is not JSON, such as one of a traceback."""
        assert self.process.stderr
        return [orjson.loads(line) for line in (await self.process.stderr.read()).splitlines()]

    async def end(self) -> int:
        """Return its exit status, at most 25 s later."""
        async with asyncio.timeout(25):
            return await self.process.wait()


Serve = Callable[..., Awaitable[Process]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start gateways as processes: `await serve(pace_ms=..., drain_s=...)` replays the canonical stream."""
    started: list[asyncio.subprocess.Process] = []

    async def start(
        *, pace_ms: float = 0, drain_s: float = 20, port: int = 0, stderr: int | IO[bytes] = PIPE, open_files: int = 0
    ) -> Process:
        config = tmp_path / f"{len(started)}.toml"
        config.write_text(
            f"[server]\nport = {port}\ndrain_s = {drain_s}\n"
            f'[[backend]]\nname = "tape"\nuse = "replay"\npath = "{ROOT}/tests/data/canonical.sse"\npace_ms = {pace_ms}\n'
            f'[[route]]\nmodel = "*"\nbackend = "tape"\n'
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", "serve", "--config", str(config),
            cwd=ROOT, stdout=PIPE, stderr=stderr, preexec_fn=partial(limit_files, open_files) if open_files else None,
        )  # fmt: skip
        started.append(process)
        assert process.stdout
        async with asyncio.timeout(25):
            greeting = (await process.stdout.readline()).decode().split()
        return Process(greeting[3].removesuffix("/v1.") if greeting else "", process)

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def limit_files(number: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


@asynccontextmanager
async def streaming_from(gate: Process) -> AsyncIterator[aiohttp.ClientResponse]:
    """Open a stream; its head has arrived."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gate.address}/v1/responses", json={"model": "m", "stream": True}) as answer,
    ):
        assert answer.status == 200
        yield answer


@pytest.fixture
def handle_sighup() -> Iterator[Callable[[signal.Handlers], None]]:
    """Set how processes that are started from here on handle SIGHUP."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda does: signal.signal(signal.SIGHUP, does) and None
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda name: name.name)
async def test_a_running_stream_is_finished_before_the_process_ends(serve: Serve, handle_sighup, name: signal.Signals):
    """New connections are refused at once, the running stream is complete byte for byte, and the exit status is 0."""
    handle_sighup(signal.SIG_DFL)
    gate = await serve(pace_ms=60)
    async with streaming_from(gate) as answer:
        first = await answer.content.readany()
        gate.process.send_signal(name)
        await until(lambda: not gate.listens())
        rest = await answer.read()

    assert first + rest == CANONICAL
    assert await gate.end() == 0


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT], ids=lambda name: name.name)
async def test_a_second_signal_ends_the_process_at_once(serve: Serve, name: signal.Signals):
    """A person who presses Ctrl-C twice does not want to wait for `drain_s`."""
    gate = await serve(pace_ms=500)
    async with streaming_from(gate):
        gate.process.send_signal(name)
        await until(lambda: not gate.listens())
        gate.process.send_signal(name)
        status = await gate.end()

    assert status == 128 + name


async def test_a_gateway_under_nohup_ignores_sighup(serve: Serve, handle_sighup):
    """A signal that was ignored at the start stays ignored; SIGTERM ends the process."""
    handle_sighup(signal.SIG_IGN)
    gate = await serve()
    gate.process.send_signal(signal.SIGHUP)
    answer = await ask(gate.address, post())
    gate.process.send_signal(signal.SIGTERM)

    assert answer.status == 200
    assert await gate.end() == 0
    assert [line["event"] for line in await gate.log()].count("request.finished") == 1


async def test_a_full_disk_under_the_logs_fails_no_call(serve: Serve):
    """Only log lines are lost; bodies and streams are answered, and the exit status is 0."""
    with os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb") as full:
        gate = await serve(stderr=full)
    answers = [await ask(gate.address, question) for question in (post(), post(), STREAM)]
    gate.process.send_signal(signal.SIGTERM)

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert await gate.end() == 0


async def test_a_closed_pipe_under_the_logs_fails_no_call(serve: Serve):
    """The process that read them has ended."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe:
        gate = await serve(stderr=pipe)
    os.close(reader)
    answers = [await ask(gate.address, question) for question in (post(), STREAM)]
    gate.process.send_signal(signal.SIGTERM)

    assert [answer.status for answer in answers] == [200, 200]
    assert await gate.end() == 0


async def test_logs_that_are_not_read_delay_no_call(serve: Serve):
    """A pipe that is full stays full; calls are answered, and SIGTERM ends the process."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe, os.fdopen(reader, "rb"):
        gate = await serve(stderr=pipe)
        async with wire(gate.address) as connection:
            for _ in range(1000):  # more lines than a pipe holds
                await connection.send(HEALTH)
                assert (await connection.answer()).status == 200
        answer = await ask(gate.address, STREAM)
        gate.process.send_signal(signal.SIGTERM)

        assert answer.body == CANONICAL
        assert await gate.end() == 0


async def test_more_connections_than_open_files_are_refused(serve: Serve):
    """With 256 open files, 400 clients at once: each is served, refused with 503 or disconnected; then all is well."""
    gate = await serve(open_files=256)

    async def status() -> int | None:
        try:
            async with wire(gate.address) as connection:
                await connection.send(HEALTH)
                answer = await connection.answer()
                await all_answered.wait()
                return answer.status
        except (OSError, asyncio.IncompleteReadError):
            return None

    all_answered = asyncio.Event()
    clients = [asyncio.create_task(status()) for _ in range(400)]
    async with asyncio.timeout(20):
        refused = await ask_until(gate.address, 503)
    all_answered.set()
    statuses = await asyncio.gather(*clients)
    async with asyncio.timeout(20):
        await ask_until(gate.address, 200)
    gate.process.send_signal(signal.SIGTERM)

    assert refused.error["code"] == "connections_exhausted"
    assert set(statuses) <= {200, 503, None}
    assert statuses.count(200) >= 32
    assert await gate.end() == 0
    lines = await gate.log()
    assert "connections.exhausted" in [line["event"] for line in lines]
    assert [line for line in lines if line["level"] == "error"] == []


async def ask_until(address: str, status: int) -> RawAnswer:
    """Send calls until one has this status, and return its answer."""
    while True:
        try:
            answer = await ask(address, post())
        except (OSError, asyncio.IncompleteReadError):
            continue
        if answer.status == status:
            return answer


@pytest.mark.parametrize("drain_s", [0, 0.3])
async def test_a_stream_longer_than_the_drain_ends_with_an_error(serve: Serve, drain_s: float):
    """It ends as the protocol requires; the log line has status 200 and the code, and the exit status is 0."""
    gate = await serve(pace_ms=500, drain_s=drain_s)
    async with streaming_from(gate) as answer:
        gate.process.send_signal(signal.SIGTERM)
        received = await answer.read()

    assert received.endswith(b"data: [DONE]\n\n")
    *first, error, failed, _ = events(received)
    assert [event["type"] for event in first] == TYPES[: len(first)]
    assert (error["type"], error["code"], error["error"]["type"]) == ("error", SHUTDOWN, "server_error")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert await gate.end() == 0
    lines = await gate.log()
    assert [(line["status"], line["code"]) for line in lines if line["event"] == "request.finished"] == [
        (200, SHUTDOWN)
    ]
    assert [line["event"] for line in lines if line["level"] in ("warning", "error")] == []


async def test_idle_connections_do_not_delay_the_shutdown(serve: Serve):
    """With and without a request before, they are closed long before the drain ends."""
    gate = await serve(drain_s=600)
    async with wire(gate.address) as used, wire(gate.address) as silent:
        await used.send(post())
        assert (await used.answer()).status == 200
        gate.process.send_signal(signal.SIGTERM)

        assert await used.rest() == b""
        assert await silent.rest() == b""
    assert await gate.end() == 0


async def test_the_log_is_json_from_start_to_end(serve: Serve):
    """One line for each event, on stderr; stdout has the greeting."""
    gate = await serve()
    await ask(gate.address, post())
    gate.process.send_signal(signal.SIGTERM)
    out, err = await gate.process.communicate()
    lines = [line for line in err.decode().splitlines() if line]

    assert [line.startswith("{") and line.endswith("}") for line in lines] == [True] * 4
    assert [
        event
        for event in ("server.started", "request.finished", "server.stopping", "server.stopped")
        if event in err.decode()
    ] == ["server.started", "request.finished", "server.stopping", "server.stopped"]
    assert b"curl" in out


async def test_a_port_in_use_is_reported_in_a_sentence(serve: Serve):
    """Exit status 2 and no traceback: the input is at fault."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gate = await serve(port=port)
        _, received = await gate.process.communicate()

    assert gate.process.returncode == 2
    assert received.startswith(b"headgate cannot start: ")
    assert str(port).encode() in received
    assert received.count(b"\n") == 1
