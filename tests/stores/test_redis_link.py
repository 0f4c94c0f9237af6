"""The connection that all calls share: what it sends, and how answers find their senders."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from proxy.stores import StoreError, _redis_link
from proxy.stores._redis_commands import encode_command, encode_field_gets, encode_gets, encode_new, encode_sets
from proxy.stores._redis_link import RedisLink
from proxy.stores._redis_parser import ErrorAnswer, ValuePieces
from proxy.stores.redis import RedisStore
from tests.redis_server import RedisServer


class Wire(asyncio.Transport):
    """The other end of a link: what was written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        assert not self.is_closed
        self.sent.append(data)

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
async def changed() -> list[str | None]:
    return []


@pytest.fixture
async def link(wire: Wire, changed: list[str | None]) -> RedisLink:
    return RedisLink(wire, None, 0.05, lambda error: error, changed.append)


def ask(link: RedisLink, *names: bytes) -> asyncio.Future[list[Any]]:
    return link.ask(b"".join(map(encode_command, names)), len(names))


@pytest.mark.parametrize(
    ("encoded", "parts"),
    [
        (encode_command(b"EVALSHA", b"", b"a\r\nb"), [b"EVALSHA", b"", b"a\r\nb"]),
        (encode_sets(["k\u00e9"], [b"\r\n"], 7), [b"SET", b"k\xc3\xa9", b"\r\n", b"PX", b"7"]),
        (encode_new(["k\u00e9"], b"v", 7), [b"SET", b"k\xc3\xa9", b"v", b"PX", b"7", b"NX"]),
        (encode_new(["k"], b"", 70), [b"SET", b"k", b"", b"PX", b"70", b"NX"]),
        (encode_field_gets([b"{k}"], b"name"), [b"HGET", b"{k}", b"name"]),
        (encode_gets(["key"]), [b"GET", b"key"]),
    ],
)
def test_a_command_is_sent_with_the_length_of_each_part(encoded: bytes, parts: list[bytes]):
    """So that any bytes pass."""
    assert encoded == b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


async def test_commands_of_one_turn_of_the_loop_are_one_write(wire: Wire, link: RedisLink):
    """Those of calls that could run before it too; the next turn's are the next write."""
    ask(link, b"a")
    asyncio.get_running_loop().call_soon(ask, link, b"c")  # after the write
    ask(link, b"b")
    written = []
    for _ in range(3):
        written.append(len(wire.sent))
        await asyncio.sleep(0)

    assert wire.sent == [encode_command(b"a") + encode_command(b"b"), encode_command(b"c")]
    assert written == [0, 1, 2]


async def test_nothing_is_written_to_a_link_that_was_closed_in_the_same_turn(wire: Wire, link: RedisLink):
    """Its sender gets the error, and the event loop none."""
    asked = ask(link, b"a")
    link.close()
    await asyncio.sleep(0)

    with pytest.raises(ConnectionError):
        await asked
    assert wire.sent == []


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
async def test_answers_reach_their_senders_in_order(link: RedisLink, changed: list[str | None], size: int):
    """Of both versions of the protocol, however the network cuts them; one whose sender has left is passed over."""
    asked = [ask(link, b"a", b"b"), ask(link, b"c"), ask(link, b"d"), ask(link, b"e"), ask(link, b"f"), ask(link, b"g")]
    asked[1].cancel()
    received = (
        b"$4\r\na\r\nb\r\n>2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n$-1\r\n+OK\r\n%2\r\n+proto\r\n:3\r\n+modules\r\n*0\r\n"
        b"_\r\n>2\r\n$10\r\ninvalidate\r\n_\r\n>1\r\n$5\r\nother\r\n-WRONGTYPE not a value\r\n*2\r\n*-1\r\n:1\r\n"
    )
    for start in range(0, len(received), size):
        link.data_received(received[start : start + size])
    found = await asyncio.gather(*asked, return_exceptions=True)

    assert found[0] == [b"a\r\nb", None]
    assert [found[2], found[3], found[5]] == [[[b"proto", 3, b"modules", []]], [None], [[None, 1]]]
    assert isinstance(found[4], ErrorAnswer)
    assert str(found[4]) == "WRONGTYPE not a value"
    assert changed == ["a", "b", None]


@pytest.mark.parametrize("size", [1, 4, 5, 7, 10, 1000])
async def test_short_answers_reach_their_senders_in_order(link: RedisLink, size: int):
    """Those of one sender are read together if all are there, however many they are, and wherever they are cut."""
    asked = [ask(link, *[b"a"] * number) for number in (2, 1, 6, 4, 2)]
    asked[1].cancel()
    received = b"+OK\r\n$-1\r\n" * 7 + b"$1\r\nv\r\n"
    for start in range(0, len(received), size):
        link.data_received(received[start : start + size])
    del asked[1]
    found = [[*each] for each in await asyncio.gather(*asked)]

    assert found == [[b"OK", None], [None, b"OK"] * 3, [None, b"OK"] * 2, [None, b"v"]]


@pytest.mark.parametrize("size", [7, 1000, 1001, 4000])
async def test_a_large_value_is_read_in_one_pass(link: RedisLink, monkeypatch: pytest.MonkeyPatch, size: int):
    """Not once more for each piece that the network delivers, wherever it cuts what follows."""
    sizes: list[int] = []
    parse = _redis_link.parse_answer
    monkeypatch.setattr(_redis_link, "parse_answer", lambda data, at: (sizes.append(len(data)), parse(data, at))[1])
    asked, value, following = ask(link, b"a", b"b", b"c"), b"v" * 1_000_000, ask(link, b"d")
    link.data_received(b"$1000000\r\nvvvv")
    received = value[4:] + b"\r\n$3\r\nend\r\n$1000000\r\n" + value + b"\r\n:7\r\n"
    for start in range(0, len(received), size):
        link.data_received(received[start : start + size])

    first, end, second = await asked

    assert (b"".join(first), end, b"".join(second)) == (value, b"end", value)
    assert {type(first), type(second)} == {ValuePieces}
    assert await following == [7]
    assert max(sizes) < 4000 + size


async def test_a_large_value_that_is_longer_than_it_says_closes_the_link(wire: Wire, link: RedisLink):
    asked = ask(link, b"a")
    link.data_received(b"$10\r\nvvvv")
    link.data_received(b"vvvvvvv\r\n")

    assert (wire.is_closed, link.is_open, asked.done()) == (True, False, True)


@pytest.mark.parametrize(
    "received", [b"$1\r\nabc", b"$x\r\n", b"!1\r\n", b"*x\r\n", b"*1\r\n" * 9 + b":1\r\n", b":1\r\n:2\r\n", b"\r\n"]
)
async def test_what_is_no_answer_closes_the_link(wire: Wire, link: RedisLink, received: bytes):
    """It would not be known whose the next answer is."""
    asked = ask(link, b"a")
    link.data_received(received)

    assert (wire.is_closed, link.is_open, asked.done()) == (True, False, True)


async def test_the_end_of_the_connection_fails_what_waits(link: RedisLink, changed: list[str | None]):
    """And what has changed from then on is not known."""
    asked = ask(link, b"a")
    before = link.is_open
    link.eof_received()
    after = link.is_open
    link.connection_lost(None)

    with pytest.raises(ConnectionError):
        await asked
    assert (before, after, changed) == (True, False, [None])


async def test_a_late_answer_closes_the_link(wire: Wire, link: RedisLink):
    """Whatever waits with it fails; the time of a command begins when it is sent."""
    early = ask(link, b"a")
    link.data_received(b"_\r\n")
    found = await asyncio.gather(early, ask(link, b"b"), ask(link, b"c"), return_exceptions=True)

    assert [type(each) for each in found] == [list, TimeoutError, TimeoutError]
    assert (wire.is_closed, link.is_open) == (True, False)


@pytest.mark.parametrize(("received", "is_open"), [([b"$9\r\nv"], False), ([b"$9\r\nv", b"vvv"], True)])
async def test_nothing_is_late_while_a_large_answer_arrives(wire: Wire, received: list[bytes], is_open: bool):
    """It may take longer than a command, and so may those that wait for theirs behind it."""
    link = RedisLink(wire, None, 30, lambda error: error, lambda _: None)
    asked = ask(link, b"a"), ask(link, b"b")
    for data in received:
        link.data_received(data)
    link._end_late(link._waiting[0])  # the time of the first command is over
    link.data_received(b"v" * 5 + b"\r\n_\r\n")
    found = await asyncio.gather(*asked, return_exceptions=True)

    assert link.is_open == is_open
    assert is_open == (found == [[b"v" * 9], [None]])


async def test_answers_that_came_while_the_loop_was_busy_are_not_late(wire: Wire):
    """A timer is served before the network."""
    link = RedisLink(wire, None, 0, lambda error: error, lambda _: None)
    asked = ask(link, b"a")
    timer = link._timer
    while link._timer is timer:  # noqa: ASYNC110  no event says that a timer has run
        await asyncio.sleep(0)
    link.data_received(b"_\r\n")

    assert await asked == [None]
    assert link.is_open


async def test_a_link_that_is_retired_closes_with_its_last_answer(wire: Wire, link: RedisLink):
    """What was sent is answered."""
    asked = ask(link, b"a", b"b")
    link.retire()
    link.data_received(b"_\r\n")
    before = wire.is_closed
    link.data_received(b"_\r\n")

    assert (before, wire.is_closed, await asked) == (False, True, [None, None])


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(url=redis_server.url, timeout_ms=30_000)
    await store.start()
    yield store
    await store.close()


def link_of(store: RedisStore) -> RedisLink:
    link: RedisLink = store._server.link  # type: ignore[union-attr,assignment]
    return link


async def test_a_connection_that_redis_closes_is_opened_again(store: RedisStore, redis_server: RedisServer):
    """The put that finds it closed fails, and is not repeated: it may have been carried out."""
    name = f"link:{secrets.token_hex(8)}"
    await store.put(name, b"1", ttl_s=60)
    first = link_of(store)
    with redis.Redis(port=redis_server.port) as direct:
        direct.client_kill_filter(_type="normal", skipme=True)
    await first.closed.wait()
    await store.put(name, b"2", ttl_s=60)

    assert link_of(store) is not first
    assert await store.get(name) == b"2"


async def test_a_put_that_takes_too_long_closes_the_connection(store: RedisStore, redis_server: RedisServer):
    """Its late answer is never read, and the next put has a connection of its own."""
    name = f"link:{secrets.token_hex(8)}"
    await store.put(name, b"1", ttl_s=60)
    link = link_of(store)
    link._timeout_s = 0.05
    link._check_time()  # now, and not when the first put would have been late
    redis_server.pause()
    try:
        with pytest.raises(StoreError, match="TimeoutError"):
            await store.put(name, b"2", ttl_s=60)
    finally:
        redis_server.resume()
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
