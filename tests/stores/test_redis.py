"""A real Redis that is away, dies, keeps silent, or answers what nobody asked."""

import asyncio
import random
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Self

import orjson
import pytest
import redis

from proxy.stores import StoreError
from proxy.stores.redis import RedisStore
from tests.conftest import tables_for
from tests.raw import Heard, ask, nothing_left_running, post, until  # noqa: F401
from tests.redis_server import RedisServer
from tests.upstream import FakeUpstream

HIT, MISS = "headgate; hit", "headgate; fwd=uri-miss"
PATIENT_MS = 5000  # no deadline of these tests' own


def tables(upstream: FakeUpstream, url: str, **more: object) -> dict[str, object]:
    return tables_for(upstream, cache={"use": "redis", "url": url, **more})


def question(**more: object) -> bytes:
    """A call that consents to be cached, unlike any other."""
    return post(orjson.dumps({"model": "m", "prompt_cache_key": secrets.token_hex(8), **more}))


def failures(logged: list[dict[str, object]]) -> list[object]:
    return [line["action"] for line in logged if line["event"] == "cache.failed"]


def said(answer: Heard) -> tuple[int, str]:
    return answer.status, answer.headers["cache-status"].partition("; ttl")[0]


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """The session's Redis; what a test does to it is made good."""
    yield redis_server
    redis_server.stop()
    redis_server.start()


async def test_an_answer_is_kept_for_every_process(redis_server: RedisServer, start_gate, upstream: FakeUpstream):
    """What one gate has asked, another need not ask."""
    first = await start_gate(tables(upstream, redis_server.url, timeout_ms=PATIENT_MS))
    second = await start_gate(tables(upstream, redis_server.url, timeout_ms=PATIENT_MS))
    data = question()

    assert [said(await ask(gate, data)) for gate in (first, second)] == [(200, MISS), (200, HIT)]
    assert len(upstream.asked) == 1


async def test_a_redis_that_is_away_at_the_start_is_a_miss(start_gate, upstream: FakeUpstream, logged):
    """The gate starts, answers, and says once for each thing it tried that it failed."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        gate = await start_gate(tables(upstream, f"redis://127.0.0.1:{reserved.getsockname()[1]}/0"))
        async with asyncio.timeout(2):
            answer = await ask(gate, question())

    assert said(answer) == (200, MISS)
    assert failures(logged) == ["get", "put"]


async def test_a_redis_that_dies_and_comes_back_is_a_miss_meanwhile(server, start_gate, upstream, logged):
    """Connections that died with it are not held against it."""
    gate = await start_gate(tables(upstream, server.url, timeout_ms=PATIENT_MS))
    data = question()
    told = [said(await ask(gate, data)) for _ in range(2)]
    server.stop()
    async with asyncio.timeout(2):
        told.append(said(await ask(gate, data)))
    failed = failures(logged)
    server.start()
    told += [said(await ask(gate, data)) for _ in range(2)]

    assert told == [(200, MISS), (200, HIT), (200, MISS), (200, MISS), (200, HIT)]
    assert failed == failures(logged) == ["get", "put"]


async def test_a_silent_redis_is_a_miss_within_its_deadline(server: RedisServer, start_gate, upstream, logged):
    """Many at once wait no longer than one: two commands of 50 ms each, not one after the other."""
    gate = await start_gate(tables(upstream, server.url))
    await ask(gate, question())
    server.pause()
    async with asyncio.timeout(4):  # redis-py's own defaults would take a minute
        told = await asyncio.gather(*(ask(gate, question()) for _ in range(20)))
    failed = failures(logged)
    server.resume()
    data = question()

    assert {said(answer) for answer in told} == {(200, MISS)}
    assert failed.count("get") == failed.count("put") == 20
    await until_hit(gate, data)


async def until_hit(gate: str, data: bytes) -> None:
    async with asyncio.timeout(5):
        while said(await ask(gate, data)) != (200, HIT):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_redis_that_is_silent_from_the_start_is_a_miss(server: RedisServer, start_gate, upstream, logged):
    """It accepts connections, and that is all: the handshake has the same deadline."""
    server.pause()
    gate = await start_gate(tables(upstream, server.url))
    async with asyncio.timeout(2):
        answer = await ask(gate, question())
    server.resume()

    assert said(answer) == (200, MISS)
    assert failures(logged) == ["get", "put"]


GARBAGE = [b"", b"{", b"null", b"[]", b"7", b"{}", b"\xff\xfe", b'{"key":7}', b"[" * 100_000]


@pytest.mark.parametrize("garbage", [*GARBAGE, None], ids=[*(g[:8].decode("latin-1") for g in GARBAGE), "a list"])
async def test_garbage_under_a_key_is_a_miss(redis_server: RedisServer, start_gate, upstream, garbage: bytes | None):
    """It is asked again, and the answer takes the garbage's place where Redis lets it."""
    gate = await start_gate(tables(upstream, redis_server.url, timeout_ms=PATIENT_MS))
    data = question()
    with redis.Redis(port=redis_server.port) as direct:
        direct.flushdb()
        await ask(gate, data)
        (key,) = direct.keys()
        direct.delete(key)
        if garbage is None:
            direct.rpush(key, "a", "b")
        else:
            direct.set(key, garbage)

    assert [said(await ask(gate, data)) for _ in range(2)] == [(200, MISS), (200, HIT)]


async def test_an_entry_of_another_key_is_nobodys(redis_server: RedisServer, start_gate, upstream: FakeUpstream):
    """Two entries change places: neither caller gets the other's answer."""
    gate = await start_gate(tables(upstream, redis_server.url, timeout_ms=PATIENT_MS))
    mine, yours = question(input="mine"), question(input="yours")
    with redis.Redis(port=redis_server.port) as direct:
        direct.flushdb()
        for data in (mine, yours):
            await ask(gate, data)
        one, other = direct.keys()
        kept = direct.mget(one, other)
        direct.mset({one: kept[1], other: kept[0]})

    assert [said(await ask(gate, data)) for data in (mine, yours)] == [(200, MISS)] * 2
    assert [asked.body["input"] for asked in upstream.asked] == ["mine", "yours"] * 2


async def test_keys_in_redis_hold_no_text_of_callers(redis_server: RedisServer, start_gate, upstream: FakeUpstream):
    """They are hashes: nobody can spell another's key, a glob, or a command."""
    gate = await start_gate(tables(upstream, redis_server.url, timeout_ms=PATIENT_MS))
    with redis.Redis(port=redis_server.port) as direct:
        direct.flushdb()
        await ask(gate, question(input="a", prompt_cache_key="tenant:*\r\nFLUSHALL"))
        (key,) = direct.keys()

    assert len(bytes.fromhex(key.decode())) == 32


async def test_a_full_redis_is_a_line_in_the_log(redis_server: RedisServer, start_gate, upstream, logged):
    """It refuses to write, and reads go on."""
    gate = await start_gate(tables(upstream, redis_server.url, timeout_ms=PATIENT_MS))
    with redis.Redis(port=redis_server.port) as direct:
        direct.flushdb()
        direct.config_set("maxmemory", "1")
        try:
            answer = await ask(gate, question())
        finally:
            direct.config_set("maxmemory", "0")

    assert said(answer) == (200, MISS)
    assert failures(logged) == ["put"]


async def test_a_wrong_password_is_a_miss_and_stands_nowhere(redis_server, start_gate, upstream, logged, monkeypatch):
    """The log says what Redis said."""
    monkeypatch.setenv("REDIS_KEY", "hush-hush")
    gate = await start_gate(tables(upstream, redis_server.url, password="env:REDIS_KEY", timeout_ms=PATIENT_MS))

    assert said(await ask(gate, question())) == (200, MISS)
    assert failures(logged) == ["get", "put"]
    assert "hush-hush" not in str(logged)


async def test_a_sum_that_was_cut_off_is_added_at_most_once(server: RedisServer):
    """A command that got no answer is not sent again: redis-py's own retries would add eleven times."""
    store = RedisStore(url=server.url)
    await store.start()
    server.pause()
    with pytest.raises(StoreError):
        await store.add("sum", 1, ttl_s=60)
    server.resume()
    with redis.Redis(port=server.port) as direct:
        added = int(direct.get("sum") or 0)
    await store.close()

    assert added <= 1


class SlowLine:
    """Stands before Redis and brings each of its answers some milliseconds late."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._lines: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._line, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line is not None
        self._lines.add(line)
        try:
            answers, commands = await asyncio.open_connection("127.0.0.1", self._port)
            back = asyncio.create_task(self._pump(answers, writer, late=True))
            try:
                await self._pump(reader, commands, late=False)
            finally:
                back.cancel()
                commands.transport.abort()
        finally:
            writer.transport.abort()
            self._lines.discard(line)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if late:
                    await asyncio.sleep(self._random.uniform(0, 0.01))
                writer.write(data)
                await writer.drain()


@pytest.fixture(params=["cancelled by its caller", "cut off by its deadline"])
async def hasty(request: pytest.FixtureRequest, redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    """A store behind a slow line, few connections for many commands, and 200 values that are their own keys."""
    async with SlowLine(redis_server.port, seed=7) as line:
        short = request.param == "cut off by its deadline"
        store = RedisStore(url=line.url, timeout_ms=25 if short else PATIENT_MS, max_connections=8)
        await store.start()
        with redis.Redis(port=redis_server.port) as direct:
            direct.mset({f"own{i}": f"own{i}" for i in range(200)})
        yield store
        await store.close()


async def test_the_answer_to_a_command_that_was_given_up_reaches_nobody_else(hasty: RedisStore):
    """The OpenAI incident of March 2023: a late answer on a pooled connection went to the next user of it."""
    dice = random.Random(11)
    wrong: list[tuple[str, bytes]] = []
    whole = 0

    async def get(key: str) -> None:
        nonlocal whole
        with suppress(StoreError):
            value = await hasty.get(key)
            whole += 1
            if value != key.encode():
                wrong.append((key, value or b""))

    async def hurried(key: str, patience: float) -> None:
        asking = asyncio.create_task(get(key))
        await asyncio.wait([asking], timeout=patience)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    for _ in range(40):
        keys = [f"own{dice.randrange(200)}" for _ in range(40)]
        await asyncio.gather(*(hurried(key, dice.choice([0, 0.002, 0.005, 5, 5])) for key in keys))

    if hasty.timeout_ms == PATIENT_MS:  # no connection has been lost to the pool either
        await asyncio.gather(*(get(f"own{i}") for i in range(50)))
        assert whole > 50
    assert wrong == []
    assert whole > 0
