"""The connection on which scripts set values: what it sends, and how answers find their senders."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from proxy.stores import StoreError
from proxy.stores._redis_link import ScriptFailed, ScriptLink
from proxy.stores._redis_values import ValueLink
from proxy.stores.redis import RedisStore
from tests.redis_server import RedisServer


class Wire(asyncio.Transport):
    """The other end of a link: what was written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.sent += data

    def abort(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def link(wire: Wire) -> ScriptLink:
    return ScriptLink(wire, None)


async def test_a_command_is_sent_with_the_length_of_each_part(wire: Wire, link: ScriptLink):
    """So that any bytes pass."""
    link.ask(b"EVALSHA", b"", b"a\r\nb")

    assert wire.sent == b"*3\r\n$7\r\nEVALSHA\r\n$0\r\n\r\n$4\r\na\r\nb\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_answers_reach_their_senders_in_order(link: ScriptLink, size: int):
    """However the network cuts them; one whose sender has left is passed over."""
    asked = [link.ask(b"a"), link.ask(b"b"), link.ask(b"c"), link.ask(b"d")]
    asked[1].cancel()
    received = b"*2\r\n:1\r\n:0\r\n*1\r\n:1\r\n-OOM command not allowed\r\n*0\r\n"
    for start in range(0, len(received), size):
        link.data_received(received[start : start + size])
    found = await asyncio.gather(*asked, return_exceptions=True)

    assert [found[0], found[3]] == [[1, 0], []]
    assert isinstance(found[2], ScriptFailed)
    assert str(found[2]) == "OOM command not allowed"


@pytest.mark.parametrize(
    "received", [b"+OK\r\n", b"$1\r\na\r\n", b"*x\r\n", b":1\r\n", b"*1\r\n-ERR\r\n", b"*0\r\n*0\r\n"]
)
async def test_what_is_no_answer_of_a_script_closes_the_link(wire: Wire, link: ScriptLink, received: bytes):
    """It would not be known whose the next answer is."""
    link.ask(b"a")
    link.data_received(received)

    assert wire.is_closed
    assert not link.is_open


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
async def test_values_and_changes_are_distinguished(wire: Wire, size: int):
    """Of both versions of the protocol, however the network cuts them."""
    changed: list[str | None] = []
    link = ValueLink(wire, None, changed.append)
    asked = [link.get(["a", "b"]), link.track(), link.get(["c"]), link.get(["d"])]
    asked[2].cancel()
    received = (
        b"$4\r\na\r\nb\r\n>2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n$-1\r\n%2\r\n+proto\r\n:3\r\n+modules\r\n*0\r\n"
        b"+OK\r\n_\r\n>2\r\n$10\r\ninvalidate\r\n_\r\n>1\r\n$5\r\nother\r\n-WRONGTYPE not a value\r\n"
    )
    for start in range(0, len(received), size):
        link.data_received(received[start : start + size])

    assert await asked[0] == [b"a\r\nb", None]
    assert changed == ["a", "b", None]
    with pytest.raises(ScriptFailed, match="WRONGTYPE"):
        await asked[3]


@pytest.mark.parametrize("received", [b"$1\r\nabc", b"$x\r\n", b"!1\r\n", b"*1\r\n" * 9 + b":1\r\n", b":1\r\n:2\r\n"])
async def test_what_is_no_value_closes_the_link(wire: Wire, received: bytes):
    """And what waits fails."""
    link = ValueLink(wire, None, lambda _: None)
    asked = link.get(["a"])
    link.data_received(received)
    link.connection_lost(None)

    assert wire.is_closed
    assert asked.done()
    with pytest.raises(ConnectionError):
        await link.get(["b"])


async def test_the_end_of_the_connection_fails_what_waits(wire: Wire, link: ScriptLink):
    """And what is sent afterwards."""
    before = link.ask(b"a")
    wire.is_closed = True
    link.connection_lost(None)
    after = link.ask(b"a")

    for answer in (before, after):
        with pytest.raises(ConnectionError):
            await answer


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(url=redis_server.url, timeout_ms=30_000)
    await store.start()
    yield store
    await store.close()


async def test_a_connection_that_redis_closes_is_opened_again(store: RedisStore, redis_server: RedisServer):
    """The put that finds it closed fails, and is not repeated: it may have been carried out."""
    name = f"link:{secrets.token_hex(8)}"
    await store.put(name, b"1", ttl_s=60)
    first = store._puts.link
    assert first is not None
    closed = asyncio.get_running_loop().create_future()
    lost = first.connection_lost
    first.connection_lost = lambda exc: (lost(exc), closed.set_result(None))  # type: ignore[method-assign,assign,func-returns-value]
    with redis.Redis(port=redis_server.port) as direct:
        direct.client_kill_filter(_type="normal", skipme=True)
    await closed
    await store.put(name, b"2", ttl_s=60)

    assert store._puts.link is not first
    assert await store.get(name) == b"2"


async def test_a_put_that_takes_too_long_closes_the_connection(store: RedisStore, redis_server: RedisServer):
    """Its late answer is never read, and the next put has a connection of its own."""
    name = f"link:{secrets.token_hex(8)}"
    await store.put(name, b"1", ttl_s=60)
    link = store._puts.link
    assert link is not None
    vars(store)["timeout_ms"] = 50
    redis_server.pause()
    try:
        with pytest.raises(StoreError, match="TimeoutError"):
            await store.put(name, b"2", ttl_s=60)
        writing = store._puts.writing
        if writing is not None:
            await writing
    finally:
        redis_server.resume()
    vars(store)["timeout_ms"] = 30_000
    await store.put(name, b"3", ttl_s=60)

    assert not link.is_open
    assert await store.get(name) == b"3"


async def test_the_connection_has_the_password_and_database_of_the_store(redis_server: RedisServer):
    """It is opened like any other."""
    name = f"link:{secrets.token_hex(8)}"
    url = redis_server.url.rpartition("/")[0] + "/3"
    store = RedisStore(url=url, password=SecretStr("secret"), timeout_ms=30_000)
    with redis.Redis(port=redis_server.port, password="secret", db=3) as direct:
        redis.Redis(port=redis_server.port).config_set("requirepass", "secret")
        try:
            await store.start()
            await store.put(name, b"1", ttl_s=60)
            found = direct.get(name)
            await store.close()
        finally:
            direct.config_set("requirepass", "")

    assert found == b"1"
