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

from proxy.__main__ import main
from tests.raw import RawAnswer, ask, events, no_tasks_left, post, until, wire  # noqa: F401
from tests.sockets import calling
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
        """Return its log lines after its end. Raises ValueError for a line that is not JSON, such as part of a traceback."""
        assert self.process.stderr
        return [orjson.loads(line) for line in (await self.process.stderr.read()).splitlines()]

    async def end(self) -> int:
        """Return its exit status; raise TimeoutError after 25 s."""
        async with asyncio.timeout(25):
            return await self.process.wait()


Serve = Callable[..., Awaitable[Process]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start gateways as processes: `await serve(pace_ms=..., drain_s=...)` replays the canonical stream."""
    started: list[asyncio.subprocess.Process] = []

    async def start(
        *, pace_ms: float = 0, drain_s: float = 20, port: int = 0, stderr: int | IO[bytes] = PIPE, open_files: int = 0,
        tables: str = "",
    ) -> Process:  # fmt: skip
        config = tmp_path / f"{len(started)}.toml"
        config.write_text(
            f"[server]\nport = {port}\ndrain_s = {drain_s}\n"
            f'[[backend]]\nname = "tape"\nuse = "replay"\npath = "{ROOT}/tests/data/canonical.sse"\npace_ms = {pace_ms}\n'
            f'[[route]]\nmodel = "*"\nbackend = "tape"\n{tables}'
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
async def streaming_from(gateway: Process) -> AsyncIterator[aiohttp.ClientResponse]:
    """Open a stream, and yield its answer when the head has arrived."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.address}/v1/responses", json={"model": "m", "stream": True}) as answer,
    ):
        assert answer.status == 200
        yield answer


@pytest.fixture
def terminal() -> Iterator[int]:
    """A terminal for the stderr of processes."""
    master, slave = os.openpty()
    yield slave
    os.close(slave)
    os.close(master)


@pytest.fixture
def handle_sighup() -> Iterator[Callable[[signal.Handlers], None]]:
    """Set how processes that are started afterwards handle SIGHUP."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda does: signal.signal(signal.SIGHUP, does) and None
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda name: name.name)
async def test_a_running_stream_is_finished_before_the_process_ends(
    serve: Serve, handle_sighup, terminal: int, name: signal.Signals
):
    """New connections are refused, the running stream is complete byte for byte, and the exit status is 0. SIGHUP is the
    end of the terminal.
    """
    handle_sighup(signal.SIG_DFL)
    gateway = await serve(pace_ms=60, stderr=terminal)
    async with streaming_from(gateway) as answer:
        first = await answer.content.readany()
        gateway.process.send_signal(name)
        await until(lambda: not gateway.listens())
        rest = await answer.read()

    assert first + rest == CANONICAL
    assert await gateway.end() == 0


@pytest.mark.parametrize(("drain_s", "last"), [(20, "response.completed"), (0.2, "response.failed")])
async def test_open_sockets_at_sigterm(serve: Serve, drain_s: float, last: str):
    """Idle ones close with 1001; a turn may end during the drain, or ends with it, and then its socket closes too."""
    gateway = await serve(pace_ms=60 if drain_s > 1 else 2000, drain_s=drain_s)
    async with calling(gateway.address) as idle, calling(gateway.address) as busy:
        await busy.create()
        await busy.read()
        gateway.process.send_signal(signal.SIGTERM)
        codes = [await idle.closed(), (await busy.turn())[-1]["type"], await busy.closed()]

    assert codes == [1001, last, 1001]
    assert await gateway.end() == 0


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT], ids=lambda name: name.name)
async def test_a_second_signal_ends_the_process_at_once(serve: Serve, name: signal.Signals):
    """Pressing Ctrl-C twice skips the wait of `drain_s`."""
    gateway = await serve(pace_ms=500)
    async with streaming_from(gateway):
        gateway.process.send_signal(name)
        await until(lambda: not gateway.listens())
        gateway.process.send_signal(name)
        status = await gateway.end()

    assert status == 128 + name


async def test_files_are_continued_in_new_ones_at_sighup(serve: Serve, handle_sighup, tmp_path: Path, capsys):
    """Both were renamed, as logrotate does; no call fails, and the audit files are one chain."""
    handle_sighup(signal.SIG_DFL)
    audit, record = tmp_path / "audit.jsonl", tmp_path / "record.jsonl"
    policy = '[[policy]]\nuse = "metadata_limits"\n'
    gateway = await serve(tables=f'[audit]\npath = "{audit}"\n[record]\npath = "{record}"\n{policy}')
    old = [path.with_suffix(".1") for path in (audit, record)]
    statuses = [(await ask(gateway.address, post())).status]
    for path, renamed in zip((audit, record), old, strict=True):
        await until(lambda path=path: path.stat().st_size > 0)
        path.rename(renamed)
    gateway.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(25):
        while not (audit.exists() and record.exists()):
            statuses.append((await ask(gateway.address, post())).status)
    gateway.process.send_signal(signal.SIGTERM)

    assert await gateway.end() == 0
    assert set(statuses) == {200}
    assert "files.reopened" in [line["event"] for line in await gateway.log()]
    assert main(["audit", "verify", str(old[0]), str(audit)]) == 0
    assert capsys.readouterr().out.endswith(f"{len(statuses) + 1} lines, the chain is intact.\n")  # one of the start
    assert sum(len(path.read_bytes().splitlines()) for path in (old[1], record)) == len(statuses)


async def test_a_gateway_under_nohup_ignores_sighup(serve: Serve, handle_sighup):
    """A signal that was ignored at the start stays ignored; SIGTERM ends the process."""
    handle_sighup(signal.SIG_IGN)
    gateway = await serve()
    gateway.process.send_signal(signal.SIGHUP)
    answer = await ask(gateway.address, post())
    gateway.process.send_signal(signal.SIGTERM)

    assert answer.status == 200
    assert await gateway.end() == 0
    assert [line["event"] for line in await gateway.log()].count("request.finished") == 1


async def test_a_full_disk_under_the_logs_fails_no_call(serve: Serve):
    """Only log lines are lost; bodies and streams are sent, and the exit status is 0."""
    with os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb") as full:
        gateway = await serve(stderr=full)
    answers = [await ask(gateway.address, question) for question in (post(), post(), STREAM)]
    gateway.process.send_signal(signal.SIGTERM)

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert await gateway.end() == 0


async def test_a_closed_pipe_under_the_logs_fails_no_call(serve: Serve):
    """The process that read the logs has ended."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe:
        gateway = await serve(stderr=pipe)
    os.close(reader)
    answers = [await ask(gateway.address, question) for question in (post(), STREAM)]
    gateway.process.send_signal(signal.SIGTERM)

    assert [answer.status for answer in answers] == [200, 200]
    assert await gateway.end() == 0


async def test_logs_that_are_not_read_delay_no_call(serve: Serve):
    """The pipe stays full, with whole lines; calls are answered, and SIGTERM ends the process."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as log:
        with os.fdopen(writer, "wb") as pipe:
            gateway = await serve(stderr=pipe)
        async with wire(gateway.address) as connection:
            for _ in range(1000):  # more lines than a pipe holds
                await connection.send(post(b'{"model":"%b"}' % (b"m" * 256)))
                assert (await connection.answer()).status == 200
        answer = await ask(gateway.address, STREAM)
        gateway.process.send_signal(signal.SIGTERM)

        assert answer.body == CANONICAL
        assert await gateway.end() == 0
        *whole, _ = log.read().split(b"\n")
    assert 0 < len(whole) < 1000
    assert {orjson.loads(line)["event"] for line in whole} == {"server.started", "request.finished"}


async def test_more_connections_than_open_files_are_refused(serve: Serve):
    """With 256 open files, each of 400 clients is served, refused with 503 or disconnected; later calls are served again."""
    gateway = await serve(open_files=256)

    async def status() -> int | None:
        try:
            async with wire(gateway.address) as connection:
                await connection.send(HEALTH)
                answer = await connection.answer()
                await all_answered.wait()
                return answer.status
        except (OSError, asyncio.IncompleteReadError):
            return None

    all_answered = asyncio.Event()
    clients = [asyncio.create_task(status()) for _ in range(400)]
    async with asyncio.timeout(20):
        refused = await ask_until(gateway.address, 503)
    all_answered.set()
    statuses = await asyncio.gather(*clients)
    async with asyncio.timeout(20):
        await ask_until(gateway.address, 200)
    gateway.process.send_signal(signal.SIGTERM)

    assert refused.error["code"] == "connections_exhausted"
    assert set(statuses) <= {200, 503, None}
    assert statuses.count(200) >= 32
    assert await gateway.end() == 0
    lines = await gateway.log()
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
    """It ends as the protocol requires; the log line has status 200 and the error code, and the exit status is 0."""
    gateway = await serve(pace_ms=500, drain_s=drain_s)
    async with streaming_from(gateway) as answer:
        gateway.process.send_signal(signal.SIGTERM)
        received = await answer.read()

    assert received.endswith(b"data: [DONE]\n\n")
    *first, error, failed, _ = events(received)
    assert [event["type"] for event in first] == TYPES[: len(first)]
    assert (error["type"], error["code"], error["error"]["type"]) == ("error", SHUTDOWN, "server_error")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert await gateway.end() == 0
    lines = await gateway.log()
    assert [(line["status"], line["code"]) for line in lines if line["event"] == "request.finished"] == [
        (200, SHUTDOWN)
    ]
    assert [line["event"] for line in lines if line["level"] in ("warning", "error")] == []


async def test_idle_connections_do_not_delay_the_shutdown(serve: Serve):
    """They are closed long before the drain ends, whether they had a request or not."""
    gateway = await serve(drain_s=600)
    async with wire(gateway.address) as used, wire(gateway.address) as silent:
        await used.send(post())
        assert (await used.answer()).status == 200
        gateway.process.send_signal(signal.SIGTERM)

        assert await used.rest() == b""
        assert await silent.rest() == b""
    assert await gateway.end() == 0


async def test_the_log_is_json_from_start_to_end(serve: Serve):
    """stderr has each line once, the last one too; stdout has the greeting."""
    gateway = await serve()
    for _ in range(10):
        await ask(gateway.address, post())
    gateway.process.send_signal(signal.SIGTERM)
    out, err = await gateway.process.communicate()

    assert gateway.process.returncode == 0
    assert [orjson.loads(line)["event"] for line in err.splitlines()] == [
        "server.started", *["request.finished"] * 10, "server.stopping", "server.stopped",
    ]  # fmt: skip
    assert b"curl" in out


async def test_a_port_in_use_is_reported_in_one_sentence(serve: Serve):
    """The exit status is 2, because the input is invalid, and there is no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = await serve(port=port)
        _, received = await gateway.process.communicate()

    assert gateway.process.returncode == 2
    assert received.startswith(b"headgate cannot start: ")
    assert str(port).encode() in received
    assert received.count(b"\n") == 1
