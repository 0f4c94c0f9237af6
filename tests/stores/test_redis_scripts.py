"""The scripts of the Redis store: each is one atomic command, and all data expires."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from proxy.stores import Holder, HoldRequest, StoreError
from proxy.stores.redis import RedisStore
from tests.raw import no_tasks_left  # noqa: F401
from tests.redis_server import RedisServer

LONG_TIMEOUT_MS = 5000  # longer than any command of these tests


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """The session's Redis, which is started again after a test that stops or pauses it."""
    yield redis_server
    redis_server.stop()
    redis_server.start()


async def test_a_command_that_timed_out_is_applied_at_most_once(server: RedisServer):
    """Neither a take nor an append is sent again."""
    store = RedisStore(url=server.url)
    await store.start()
    server.pause()
    with pytest.raises(StoreError):
        await store.take("taken", 1, limit=100, window_s=60)
    with pytest.raises(StoreError):
        await store.append("appended", b"a", ttl_s=60)
    server.resume()
    with redis.Redis(port=server.port) as direct:
        taken, appended = int(direct.hget("taken", "used") or 0), direct.llen("appended")
    await store.close()

    assert (taken <= 1, appended <= 1) == (True, True)


@pytest.fixture
async def redis_store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    """A started store in an empty Redis."""
    with redis.Redis(port=redis_server.port) as direct:
        direct.flushdb()
    store = RedisStore(url=redis_server.url, timeout_ms=LONG_TIMEOUT_MS)
    await store.start()
    yield store
    await store.close()


async def use_every_script(store: RedisStore) -> None:
    grant = await store.take("counter", 2, limit=10, window_s=60)
    await store.give("counter", 1, window=grant.window)
    await store.hold("counter", HoldRequest(1), limit=10, window_s=60, holder=Holder("h", 60))
    await store.append("journal", b"a", ttl_s=60)
    await store.add("tally", {"row": [1]}, ttl_s=60, source="s", number=1)
    await store.claim("lease", "a", lease_s=60)
    await store.release("lease", "a")
    await store.put_new(["new", "value"], b"a", ttl_s=60)


async def test_every_script_is_one_command(redis_store: RedisStore, redis_server: RedisServer):
    """It is called by its digest; its text is sent only to a server that does not have it, for example after a restart."""
    with redis.Redis(port=redis_server.port) as direct:
        counts = []
        for prepare in (direct.script_flush, lambda: None, direct.script_flush):
            prepare()
            direct.config_resetstat()
            await use_every_script(redis_store)
            stats = direct.info("commandstats")
            counts.append([stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval")])

    assert counts == [[7, 7], [7, 0], [7, 7]]
    assert (await redis_store.take("counter", 0, limit=10, window_s=60)).used == 3
    assert await redis_store.tail("journal") == [(1, b"a"), (2, b"a"), (3, b"a")]


async def test_everything_in_redis_expires(redis_store: RedisStore, redis_server: RedisServer):
    """A key without a time to live would stay for ever."""
    await use_every_script(redis_store)
    await redis_store.claim("lease", "a", lease_s=60)
    await redis_store.put("value", b"a", ttl_s=60)
    with redis.Redis(port=redis_server.port) as direct:
        left_ms = {name: direct.pttl(name) for name in direct.scan_iter()}

    assert sorted(left_ms) == [b"counter", b"journal", b"lease", b"new", b"tally", b"value"]
    assert all(0 < left <= 60_000 for left in left_ms.values())


async def test_a_full_redis_grants_nothing(redis_store: RedisStore, redis_server: RedisServer):
    """A take is then an error; the budget does not start anew."""
    await redis_store.take("counter", 2, limit=10, window_s=60)
    with redis.Redis(port=redis_server.port) as direct:
        direct.config_set("maxmemory", "1")
        try:
            for command in (
                redis_store.take("counter", 1, limit=10, window_s=60),
                redis_store.append("journal", b"a", ttl_s=60),
                redis_store.claim("lease", "a", lease_s=60),
            ):
                with pytest.raises(StoreError):
                    await command
        finally:
            direct.config_set("maxmemory", "0")

    assert (await redis_store.take("counter", 0, limit=10, window_s=60)).used == 2
