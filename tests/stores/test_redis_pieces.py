"""Large values in a real Redis: no command has all of one, and no other command waits for it."""

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from proxy.stores import StoreError
from proxy.stores import _redis_pieces as redis_pieces
from proxy.stores._breaker import StoreBreaker
from proxy.stores._redis_faults import RedisFaults
from proxy.stores._redis_pieces import PIECE_BYTES
from proxy.stores.redis import RedisStore
from tests.raw import no_tasks_left  # noqa: F401
from tests.redis_server import RedisServer

LONG_TIMEOUT_MS = 5000  # longer than any command of these tests
LARGE = struct.pack(f">{2 * PIECE_BYTES}I", *range(2 * PIECE_BYTES))  # eight pieces
OTHER = b"o" * (3 * PIECE_BYTES + 1)


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that closes a connection on which a command, or what was asked for, has more than 1 MB."""
    limits = ["--client-query-buffer-limit", "1mb", "--client-output-buffer-limit", "normal 1mb 0 0"]
    server = RedisServer(Path(tmp_path_factory.mktemp("redis")), *limits)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def store(strict_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(url=strict_server.url, timeout_ms=LONG_TIMEOUT_MS)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def direct(strict_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=strict_server.port) as client:
        yield client


def new_key() -> str:
    return f"pieces:{secrets.token_hex(8)}"


async def test_a_large_value_is_written_and_read_in_pieces(store: RedisStore):
    """By every verb that writes or reads values; commands of others are answered in between."""
    key, others = new_key(), [new_key() for _ in range(3)]
    kept, *_ = await asyncio.gather(
        store.put(key, LARGE, ttl_s=60),
        store.put_many([(others[0], OTHER), (others[1], b"small")], ttl_s=60),
        store.put_new(others[2:], OTHER, ttl_s=60),
    )

    assert kept
    assert await store.get(key) == LARGE
    assert await store.get_many([*others, new_key()]) == [OTHER, b"small", OTHER, None]


async def test_a_large_value_is_kept_only_under_a_free_key_if_so_asked(store: RedisStore, direct: redis.Redis):
    """Its pieces are removed at once otherwise."""
    key = new_key()

    assert await store.put(key, OTHER, ttl_s=60, if_absent=True)
    assert not await store.put(key, LARGE, ttl_s=60, if_absent=True)
    assert not await store.put(key, b"small", ttl_s=60, if_absent=True)
    assert await store.put_new([key], LARGE, ttl_s=60) == [False]
    assert await store.get(key) == OTHER
    assert [*direct.scan_iter(f"*{key}*:pieces*")] == [b"{%b}:pieces" % key.encode()]


async def test_pieces_are_replaced_and_removed_with_their_value(store: RedisStore, direct: redis.Redis):
    """And expire with it."""
    key = new_key()
    await store.put(key, LARGE, ttl_s=60)
    await store.put(key, OTHER, ttl_s=30)
    replaced, fields = await store.get(key), direct.hlen(f"{{{key}}}:pieces")
    ttls_ms = [direct.pttl(name) for name in (key, f"{{{key}}}:pieces")]
    await store.delete(key)

    assert (replaced, fields) == (OTHER, 4 + 1)  # one says that the four pieces are all
    assert all(0 < ttl_ms <= 30_000 for ttl_ms in ttls_ms)
    assert [*direct.scan_iter(f"*{key}*")] == []


@pytest.mark.parametrize("verb", ["put", "put_many"])
async def test_a_small_value_removes_the_pieces_that_it_replaces(
    store: RedisStore, strict_server: RedisServer, direct: redis.Redis, verb: str
):
    """Those that another process has written too; the pieces of other keys stay."""
    key, other = new_key(), new_key()
    writer = RedisStore(url=strict_server.url, timeout_ms=LONG_TIMEOUT_MS)
    await writer.start()
    await writer.put_many([(key, LARGE), (other, OTHER)], ttl_s=60)
    await writer.close()
    if verb == "put":
        await store.put(key, b"small", ttl_s=60)
    else:
        await store.put_many([(new_key(), b"new"), (key, b"small")], ttl_s=60)

    assert await store.get_many([key, other]) == [b"small", OTHER]
    assert [*direct.scan_iter(f"*{key}*")] == [key.encode()]


async def test_the_pieces_of_a_later_value_stay(store: RedisStore):
    """Of one that was written between the small value and the removal of the pieces that it has replaced."""
    key = new_key()
    await store.put(key, OTHER, ttl_s=60)
    await store._large_values.remove(store._server, key)

    assert await store.get(key) == OTHER


async def test_a_small_value_is_kept_although_the_pieces_cannot_be_removed(
    store: RedisStore, direct: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    """They expire."""
    key = new_key()
    await store.put(key, OTHER, ttl_s=60)
    direct.execute_command("ACL", "SETUSER", "default", "-unlink")
    try:
        await store.put(key, b"small", ttl_s=60)
    finally:
        direct.execute_command("ACL", "SETUSER", "default", "+unlink")

    assert await store.get(key) == b"small"
    assert direct.pttl(f"{{{key}}}:pieces") > 0


async def test_a_value_whose_pieces_were_evicted_is_gone(store: RedisStore, direct: redis.Redis):
    """It is a miss and no fault."""
    key = new_key()
    await store.put(key, LARGE, ttl_s=60)
    direct.delete(f"{{{key}}}:pieces")

    assert await store.get(key) is None


async def test_a_value_that_is_replaced_while_it_is_read_is_read_anew(strict_server: RedisServer, direct: redis.Redis):
    """A reader never gets pieces of two values."""
    key = new_key()
    reader, writer = (RedisStore(url=strict_server.url, timeout_ms=LONG_TIMEOUT_MS) for _ in range(2))
    for store in (reader, writer):
        await store.start()
    await writer.put(key, LARGE, ttl_s=60)
    seen = set()

    async def read() -> None:
        for _ in range(10):
            with suppress(StoreError):  # it was replaced too often
                seen.add(await reader.get(key))

    async def write() -> None:
        for number in range(10):
            await writer.put(key, OTHER if number % 2 else LARGE, ttl_s=60)

    await asyncio.gather(read(), write())
    last = await reader.get(key)
    for store in (reader, writer):
        await store.close()

    assert seen <= {LARGE, OTHER}
    assert last == OTHER


async def test_a_value_that_looks_like_a_mark_is_itself(store: RedisStore):
    """It names no pieces, its own or others'."""
    key, other = new_key(), new_key()
    await store.put(other, LARGE, ttl_s=60)
    mark = await _raw(store, other)
    await store.put(key, mark, ttl_s=60)

    assert mark.startswith(redis_pieces.START)
    assert await store.get(key) == mark


async def _raw(store: RedisStore, key: str) -> bytes:
    (found,) = await store._server.get([key])
    assert isinstance(found, bytes)
    return found


async def test_a_key_of_another_kind_is_a_fault(store: RedisStore):
    """As for small values, which `put` writes whatever the key holds."""
    key = new_key()
    await store.append(key, b"entry", ttl_s=60)
    with pytest.raises(StoreError):
        await store.get(key)

    assert await store.put(key, LARGE, ttl_s=60)
    assert await store.get(key) == LARGE


async def test_a_large_write_without_an_answer_suspends_no_other_command():
    """It may take longer than others, so it says nothing about the server; one that is answered does."""
    breaker = StoreBreaker(max_faults=1)
    faults = RedisFaults(breaker, 0.001, lambda: None)

    async def stall() -> None:
        await asyncio.get_running_loop().create_future()

    for _ in range(3):
        with pytest.raises(StoreError):
            await faults.ask(stall, 1000)
    calm = breaker.is_calm
    with pytest.raises(StoreError):
        await faults.ask(stall)

    assert (calm, breaker.is_calm) == (True, False)
