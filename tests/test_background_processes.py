"""Two gateway processes on one store, one of which is killed while it works on background responses."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.responses import ResponseStreamEvent

from tests.forked import ForkedProcess, start_proxy
from tests.redis_server import RedisServer

ROOT = Path(__file__).parent.parent
FINISHED, RUNNING = 10, 50
SEEN_EVENTS = 4
TIMEOUT_S = 120


class Gateway:
    """A running `python -m proxy serve`, and a client of it."""

    def __init__(self, process: ForkedProcess, address: str) -> None:
        self.process = process
        self.address = address
        self.client = AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=TIMEOUT_S)

    @staticmethod
    async def start(config: Path) -> "Gateway":
        process = await start_proxy("serve", "--config", str(config))
        assert process.stdout is not None
        greeting = (await process.stdout.readline()).decode().split()
        return Gateway(process, greeting[3].removesuffix("."))

    async def create(self, model: str = "slow") -> "Follower":
        """Start a response in the background, and follow it."""
        stream = await self.client.responses.create(model=model, input="Hi", background=True, stream=True)
        return Follower(stream)

    async def follow(self, response_id: str) -> "Follower":
        return Follower(await self.client.responses.retrieve(response_id, stream=True))

    async def status(self, response_id: str) -> str | None:
        return (await self.client.responses.retrieve(response_id)).status

    async def close(self) -> None:
        await self.client.close()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


class Follower:
    """Reads a stream until it ends or breaks off."""

    def __init__(self, stream: AsyncStream[ResponseStreamEvent]) -> None:
        self._stream = stream
        self.events: list[Any] = []
        self.has_seen = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    @property
    def response_id(self) -> str:
        return str(self.events[0].response.id)

    async def _read(self) -> None:
        try:
            async for event in self._stream:
                self.events.append(event)
                if len(self.events) >= SEEN_EVENTS:
                    self.has_seen.set()
        except Exception:  # noqa: BLE001  the process was killed, or the response failed: the SDK raises for both
            pass


@pytest.fixture(params=["sqlite", "redis"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The config of both processes: two paced backends, a short lease, and a store that they share."""
    if request.param == "sqlite":
        state = f'use = "sqlite"\npath = "{tmp_path}/state.sqlite3"\ntimeout_ms = 30000\n'
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        state = f'use = "redis"\nurl = "{server.url}"\ntimeout_ms = 30000\n'
    path = tmp_path / "headgate.toml"
    path.write_text(
        f"[server]\nport = 0\n[state]\n{state}background_at_once = 100\nbackground_lease_s = 4\n"
        + "".join(
            f'[[backend]]\nname = "{name}"\nuse = "replay"\npath = "{ROOT}/tests/data/canonical.sse"\n'
            f'pace_ms = {pace_ms}\n[[route]]\nmodel = "{name}"\nbackend = "{name}"\n'
            for name, pace_ms in (("fast", 10), ("slow", 1_500))
        )
    )
    return path


@pytest.fixture
def hasty(config: Path) -> Path:
    """The same config with a short time to drain."""
    path = config.with_name("hasty.toml")
    path.write_text(config.read_text().replace("port = 0\n", "port = 0\ndrain_s = 0.2\n"))
    return path


@pytest.fixture
async def gateways(config: Path) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """The process that is killed, and the other one."""
    started = [await Gateway.start(config), await Gateway.start(config)]
    yield started[0], started[1]
    for gateway in started:
        await gateway.close()


async def test_a_killed_process_loses_no_event_and_leaves_nothing_running(gateways: tuple[Gateway, Gateway]):
    """What a client has received is replayed by the other process; what did not end fails within the lease."""
    dying, alive = gateways
    async with asyncio.timeout(TIMEOUT_S):
        complete = await asyncio.gather(*(dying.create("fast") for _ in range(FINISHED)))
        await asyncio.gather(*(each.reading for each in complete))
        cut = await asyncio.gather(*(dying.create() for _ in range(RUNNING)))
        await asyncio.gather(*(each.has_seen.wait() for each in cut))
        elsewhere = await asyncio.gather(*(alive.follow(each.response_id) for each in cut))
        await asyncio.gather(*(each.has_seen.wait() for each in elsewhere))
        dying.process.kill()
        await asyncio.gather(*(each.reading for each in (*cut, *elsewhere)))
        replayed = [await alive.follow(each.response_id) for each in (*complete, *cut)]
        await asyncio.gather(*(each.reading for each in replayed))
        statuses = [await alive.status(each.response_id) for each in (*complete, *cut)]

    for before, after in zip((*complete, *cut), replayed, strict=True):
        assert after.events[: len(before.events)] == before.events
    for live, after in zip(elsewhere, replayed[FINISHED:], strict=True):
        assert live.events == after.events
    assert statuses[:FINISHED] == ["completed"] * FINISHED
    assert statuses[FINISHED:] == ["failed"] * RUNNING


async def test_a_process_is_cancelled_by_the_other(gateways: tuple[Gateway, Gateway]):
    """Several at once, of which some are followed in each process."""
    working, other = gateways
    async with asyncio.timeout(TIMEOUT_S):
        running = await asyncio.gather(*(working.create() for _ in range(8)))
        await asyncio.gather(*(each.has_seen.wait() for each in running))
        elsewhere = await asyncio.gather(*(other.follow(each.response_id) for each in running))
        names = [each.response_id for each in running]
        cancelled = await asyncio.gather(*(other.client.responses.cancel(name) for name in names))
        await asyncio.gather(*(each.reading for each in (*running, *elsewhere)))
        statuses = [await working.status(name) for name in names]

    assert [each.status for each in cancelled] == statuses == ["cancelled"] * 8
    for here, there in zip(running, elsewhere, strict=True):
        assert here.events == there.events


async def test_a_process_that_is_stopped_ends_what_it_does(hasty: Path, gateways: tuple[Gateway, Gateway]):
    """As failed, with a reason, as soon as the time to drain is over."""
    stopping, (_, other) = await Gateway.start(hasty), gateways
    try:
        async with asyncio.timeout(TIMEOUT_S):
            running = await asyncio.gather(*(stopping.create() for _ in range(8)))
            await asyncio.gather(*(each.has_seen.wait() for each in running))
            stopping.process.terminate()
            await asyncio.gather(*(each.reading for each in running), stopping.process.wait())
            found = [await other.client.responses.retrieve(each.response_id) for each in running]
    finally:
        await stopping.close()

    assert stopping.process.returncode == 0
    assert [each.status for each in found] == ["failed"] * 8
    assert all(each.error is not None and "shutting down" in each.error.message for each in found)
