"""A real Redis that cannot be reached, dies, does not answer, or returns what Headgate did not write."""

import asyncio
import re
import secrets
import socket
from collections.abc import Iterator

import orjson
import pytest
import redis
from pydantic import ValidationError

from proxy.cache.vault_keys import ENTRIES
from proxy.stores import StoreError
from proxy.stores._redis_server import LARGE_BYTES
from proxy.stores.redis import RedisStore
from tests.conftest import tables_for
from tests.raw import RawAnswer, ask, no_tasks_left, post, until  # noqa: F401
from tests.redis_server import RedisServer
from tests.upstream import FakeUpstream

HIT, MISS = "headgate; hit", "headgate; fwd=uri-miss"
LONG_TIMEOUT_MS = 5000  # longer than any command of these tests


def tables(upstream: FakeUpstream, url: str, **more: object) -> dict[str, object]:
    return tables_for(upstream, cache={"use": "redis", "url": url, **more})


def question(**more: object) -> bytes:
    """Return a call that may be cached and equals no other."""
    return post(orjson.dumps({"model": "m", "prompt_cache_key": secrets.token_hex(8), **more}))


def failures(logged: list[dict[str, object]]) -> list[object]:
    return [line["event"] for line in logged if line["event"] in ("cache.read_failed", "cache.write_failed")]


def outcome(answer: RawAnswer) -> tuple[int, str]:
    return answer.status, answer.headers["cache-status"].partition("; ttl")[0]


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """The session's Redis, which is started again after a test that stops or pauses it."""
    yield redis_server
    redis_server.stop()
    redis_server.start()


async def test_an_answer_is_cached_for_every_process(redis_server: RedisServer, start_gateway, upstream: FakeUpstream):
    """An answer that one gateway cached is a hit at another."""
    first = await start_gateway(tables(upstream, redis_server.url, timeout_ms=LONG_TIMEOUT_MS))
    second = await start_gateway(tables(upstream, redis_server.url, timeout_ms=LONG_TIMEOUT_MS))
    data = question()

    assert [outcome(await ask(gateway, data)) for gateway in (first, second)] == [(200, MISS), (200, HIT)]
    assert len(upstream.requests) == 1


async def test_a_redis_that_cannot_be_reached_at_the_start_is_a_miss(start_gateway, upstream: FakeUpstream, logged):
    """The gateway starts, answers, and logs each failed command once."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        gateway = await start_gateway(tables(upstream, f"redis://127.0.0.1:{reserved.getsockname()[1]}/0"))
        async with asyncio.timeout(2):
            answer = await ask(gateway, question())

    assert outcome(answer) == (200, MISS)
    assert failures(logged) == ["cache.read_failed", "cache.write_failed"]


async def test_a_redis_that_stops_is_a_miss_until_it_is_back(server, start_gateway, upstream, logged):
    """Broken connections are replaced."""
    gateway = await start_gateway(tables(upstream, server.url, timeout_ms=LONG_TIMEOUT_MS))
    data = question()
    outcomes = [outcome(await ask(gateway, data)) for _ in range(2)]
    server.stop()
    async with asyncio.timeout(2):
        outcomes.append(outcome(await ask(gateway, data)))
    failed = failures(logged)
    server.start()
    outcomes += [outcome(await ask(gateway, data)) for _ in range(2)]

    assert outcomes == [(200, MISS), (200, HIT), (200, MISS), (200, MISS), (200, HIT)]
    assert failed == failures(logged) == ["cache.read_failed", "cache.write_failed"]


async def test_a_redis_that_does_not_answer_is_a_miss_within_its_deadline(
    server: RedisServer, start_gateway, upstream, logged
):
    """Many parallel calls wait no longer than one, which waits for two commands of 50 ms each.

    The first of them is logged, and once Redis answers again how many there were.
    """
    gateway = await start_gateway(tables(upstream, server.url))
    await ask(gateway, question())
    before = len(failures(logged))  # none, unless the machine is busy
    server.pause()
    async with asyncio.timeout(4):  # redis-py's own defaults would take a minute
        answers = await asyncio.gather(*(ask(gateway, question()) for _ in range(20)))
    failed = failures(logged)[before:]
    server.resume()
    data = question()
    await until_hit(gateway, data)
    counts = {line["event"]: line["failures"] for line in logged if "failures" in line}

    assert {outcome(answer) for answer in answers} == {(200, MISS)}
    assert failed == ["cache.read_failed", "cache.write_failed"]
    assert counts.keys() == {"cache.read_resumed", "cache.write_resumed"}
    assert min(counts.values()) >= 20


async def until_hit(gateway: str, data: bytes) -> None:
    async with asyncio.timeout(5):
        while outcome(await ask(gateway, data)) != (200, HIT):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_redis_that_never_answers_is_a_miss(server: RedisServer, start_gateway, upstream, logged):
    """It only accepts connections; the deadline includes the handshake."""
    server.pause()
    gateway = await start_gateway(tables(upstream, server.url))
    async with asyncio.timeout(2):
        answer = await ask(gateway, question())
    server.resume()

    assert outcome(answer) == (200, MISS)
    assert failures(logged) == ["cache.read_failed", "cache.write_failed"]


def entries_in(direct: redis.Redis) -> list[bytes]:
    """Return the keys of answers."""
    return direct.keys(f"{ENTRIES}*")


GARBAGE = [b"", b"{", b"null", b"[]", b"7", b"{}", b"\xff\xfe", b'{"key":7}', b"[" * 100_000]


@pytest.mark.parametrize("garbage", [*GARBAGE, None], ids=[*(g[:8].decode("latin-1") for g in GARBAGE), "a list"])
async def test_garbage_under_a_key_is_a_miss(redis_server: RedisServer, start_gateway, upstream, garbage: bytes | None):
    """The upstream is called, and its answer replaces the garbage."""
    gateway = await start_gateway(tables(upstream, redis_server.url, timeout_ms=LONG_TIMEOUT_MS))
    data = question()
    with redis.Redis(port=redis_server.port) as direct:
        direct.flushdb()
        await ask(gateway, data)
        (key,) = entries_in(direct)
        direct.delete(key)
        if garbage is None:
            direct.rpush(key, "a", "b")
        else:
            direct.set(key, garbage)

    assert [outcome(await ask(gateway, data)) for _ in range(2)] == [(200, MISS), (200, HIT)]


async def test_an_entry_of_another_key_is_a_miss(redis_server: RedisServer, start_gateway, upstream: FakeUpstream):
    """If two entries are swapped, neither caller gets the other's answer."""
    gateway = await start_gateway(tables(upstream, redis_server.url, timeout_ms=LONG_TIMEOUT_MS))
    mine, yours = question(input="mine"), question(input="yours")
    with redis.Redis(port=redis_server.port) as direct:
        direct.flushdb()
        for data in (mine, yours):
            await ask(gateway, data)
        one, other = entries_in(direct)
        kept = direct.mget(one, other)
        direct.mset({one: kept[1], other: kept[0]})

    assert [outcome(await ask(gateway, data)) for data in (mine, yours)] == [(200, MISS)] * 2
    assert [request.body["input"] for request in upstream.requests] == ["mine", "yours"] * 2


async def test_keys_in_redis_hold_no_text_of_callers(redis_server: RedisServer, start_gateway, upstream: FakeUpstream):
    """Keys are hashes, so that no text can form another key, a glob, or a command."""
    gateway = await start_gateway(tables(upstream, redis_server.url, timeout_ms=LONG_TIMEOUT_MS))
    with redis.Redis(port=redis_server.port) as direct:
        direct.flushdb()
        await ask(gateway, question(input="a", prompt_cache_key="tenant:*\r\nFLUSHALL"))
        keys = direct.keys()

    assert len(keys) == 4
    assert [key for key in keys if not re.fullmatch(rb"headgate:cache:([gip]:|e:[0-9a-f]{64})[0-9a-f]{64}", key)] == []


async def test_a_full_redis_is_logged(redis_server: RedisServer, start_gateway, upstream, logged):
    """It rejects writes and still answers reads."""
    gateway = await start_gateway(tables(upstream, redis_server.url, timeout_ms=LONG_TIMEOUT_MS))
    with redis.Redis(port=redis_server.port) as direct:
        direct.flushdb()
        direct.config_set("maxmemory", "1")
        try:
            answer = await ask(gateway, question())
        finally:
            direct.config_set("maxmemory", "0")

    assert outcome(answer) == (200, MISS)
    assert failures(logged) == ["cache.write_failed"]


async def test_a_wrong_password_is_a_miss_and_is_not_logged(redis_server, start_gateway, upstream, logged, monkeypatch):
    """The log has the error of Redis without the password."""
    monkeypatch.setenv("REDIS_KEY", "hush-hush")
    gateway = await start_gateway(
        tables(upstream, redis_server.url, password="env:REDIS_KEY", timeout_ms=LONG_TIMEOUT_MS)
    )

    assert outcome(await ask(gateway, question())) == (200, MISS)
    assert failures(logged) == ["cache.read_failed", "cache.write_failed"]
    assert "hush-hush" not in str(logged)


async def test_a_take_that_timed_out_is_applied_at_most_once(server: RedisServer):
    """A command without an answer is not sent again; redis-py by default would send it eleven times."""
    store = RedisStore(url=server.url)
    await store.start()
    server.pause()
    with pytest.raises(StoreError):
        await store.take("sum", 1, limit=100, window_s=60)
    server.resume()
    used = (await store.take("sum", 0, limit=100, window_s=60)).used
    await store.close()

    assert used <= 1


async def test_values_put_at_once_are_sent_together_even_if_one_caller_leaves(redis_server: RedisServer):
    """A caller that is cancelled takes no other caller's value with it; closing waits for those on their way."""
    store = RedisStore(url=redis_server.url, timeout_ms=LONG_TIMEOUT_MS)
    await store.start()
    with redis.Redis(port=redis_server.port) as direct:
        direct.flushdb()
        connections = direct.info("stats")["total_connections_received"]
        puts = [asyncio.create_task(store.put(f"k{number}", b"1", ttl_s=60)) for number in range(200)]
        await asyncio.sleep(0)
        puts[0].cancel()
        results = await asyncio.gather(*puts, return_exceptions=True)
        late = asyncio.create_task(store.put("late", b"1", ttl_s=60))
        await asyncio.sleep(0)
        await store.close()

        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [True] * 199
        assert await late
        assert direct.exists(*[f"k{number}" for number in range(1, 200)], "late") == 200
        assert direct.info("stats")["total_connections_received"] - connections == 1


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pass-1@h:1/0", "rediss://u:pass-1@h/0", "unix:///s.sock?password=pass-1", "redis://:pass/-1@h:1/0",
        "redis://u:pass?-1@h:1/0", "redis://:pass#-1@h:1/0", "redis://pass/-1@h", "unix://u:pass-1@/s.sock",
    ],
)  # fmt: skip
def test_a_password_in_the_address_is_refused(url: str):
    """Secrets are never in a config. A user is none."""
    with pytest.raises(ValidationError, match=r'set password = "env:NAME" instead'):
        RedisStore(url=url)
    assert RedisStore(url="redis://user@h:1/0").url == "redis://user@h:1/0"


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:1/0?family=0", "redis://h:1/0?ssl_cert_reqs=none", "redis://h:1/0?db=x", "redis://h:x/0", "redis://h:0/0",
        "redis://h:99999/0", "redis://h:1/x", "redis://h:1/0/1", "redis://h:1/0#x", "redis://h:1/0?retry=1", "unix:///s?db=-1",
    ],
)  # fmt: skip
def test_an_address_that_cannot_work_is_refused(url: str):
    """By check, and not by each call; the message does not repeat it."""
    with pytest.raises(ValidationError) as caught:
        RedisStore(url=url)
    assert url not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://h:1", "redis://h:1/", "redis://[::1]:1/15", "redis://h:1?db=3", "rediss://h:1/0?ssl_ca_certs=/a.pem",
     "unix:///run/redis.sock?db=2", "unix:///run/redis@1.sock"],
)  # fmt: skip
def test_addresses_of_every_form_are_allowed(url: str):
    """With the parameters that the client knows."""
    assert RedisStore(url=url).url == url


async def test_a_user_and_a_password_come_from_the_environment(redis_server: RedisServer, monkeypatch):
    """As Redis has them since its version 6."""
    monkeypatch.setenv("REDIS_NAME", "headgate")
    monkeypatch.setenv("REDIS_KEY", "hush-hush")
    with redis.Redis(port=redis_server.port) as direct:
        direct.acl_setuser("headgate", enabled=True, passwords=["+hush-hush"], keys=["*"], commands=["+@all"])
        try:
            for user, works in (("env:REDIS_NAME", True), ("env:REDIS_KEY", False)):
                options = {"user": user, "password": "env:REDIS_KEY", "timeout_ms": LONG_TIMEOUT_MS}
                store = RedisStore.model_validate({"url": redis_server.url, **options})
                await store.start()

                assert await store.ready() is works
                await store.close()
        finally:
            direct.acl_deluser("headgate")


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru", "volatile-ttl"])
async def test_state_is_not_kept_where_it_may_be_evicted(
    redis_server: RedisServer, start_gateway, upstream, policy: str
):
    """A budget that is evicted is reset; the cache may be evicted."""
    with redis.Redis(port=redis_server.port) as direct:
        direct.config_set("maxmemory-policy", policy)
        try:
            await start_gateway(tables(upstream, redis_server.url, timeout_ms=LONG_TIMEOUT_MS))
            state = {"use": "redis", "url": redis_server.url, "timeout_ms": LONG_TIMEOUT_MS}
            starting = start_gateway(tables_for(upstream, state=state))
            if policy == "noeviction":
                await starting
            else:
                with pytest.raises(ValueError, match=rf"^{redis_server.url}: .*maxmemory-policy {policy}"):
                    await starting
        finally:
            direct.config_set("maxmemory-policy", "noeviction")


async def test_state_in_a_redis_that_cannot_be_reached_is_not_checked(logged):
    """The gateway starts, and says so; the store is asked again by the calls that need it."""
    store = RedisStore(url="unix:///nowhere")
    await store.start()
    await store.check_durable()
    await store.close()

    assert [line["event"] for line in logged] == ["store.eviction_unknown"]


async def test_a_user_who_may_not_ask_whether_values_are_evicted_is_named_in_the_log(redis_server, monkeypatch, logged):
    """The store works; what it does when it is full is not known."""
    monkeypatch.setenv("REDIS_KEY", "hush-hush")
    with redis.Redis(port=redis_server.port) as direct:
        direct.acl_setuser(
            "headgate", enabled=True, passwords=["+hush-hush"], keys=["*"], commands=["+@all", "-info"]
        )  # fmt: skip
        options = {"user": "env:REDIS_NAME", "password": "env:REDIS_KEY", "timeout_ms": LONG_TIMEOUT_MS}
        monkeypatch.setenv("REDIS_NAME", "headgate")
        store = RedisStore.model_validate({"url": redis_server.url, **options})
        await store.start()
        try:
            await store.check_durable()
        finally:
            await store.close()
            direct.acl_deluser("headgate")

    assert [(line["event"], "NoPermission" in line["error"]) for line in logged] == [("store.eviction_unknown", True)]


async def test_a_redis_that_is_silent_costs_its_timeout_once_in_a_while(server: RedisServer, logged):
    """After five commands in a row nothing is sent; it is tried again, and used once it answers."""
    store = RedisStore(url=server.url)
    await store.start()
    server.pause()
    loop = asyncio.get_running_loop()
    started = loop.time()
    for _ in range(1000):
        with pytest.raises(StoreError):
            await store.get("k")
    passed_s = loop.time() - started
    server.resume()
    async with asyncio.timeout(20):
        while not await store.ready():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await store.close()

    assert passed_s < 1000 * 0.05 / 4
    assert [line["event"] for line in logged] == ["store.suspended", "store.resumed"]


async def test_values_that_are_put_at_the_same_time_are_one_round_trip(redis_server: RedisServer):
    """In the order of their calls."""
    store = RedisStore(url=redis_server.url, timeout_ms=30_000)
    await store.start()
    names = [f"together:{secrets.token_hex(8)}" for _ in range(3)]
    await store.put(names[0], b"before", ttl_s=60)
    answers = await asyncio.gather(
        store.put(names[0], b"v", ttl_s=60, if_absent=True),
        store.put_new(names, b"v", ttl_s=60),
        store.put(names[2], b"last", ttl_s=60),
        store.put(names[1], b"v", ttl_s=60, if_absent=True),
    )
    found = [await store.get(name) for name in names]
    await store.close()

    assert answers == [False, [False, True, True], True, False]
    assert found == [b"before", b"v", b"last"]


@pytest.mark.parametrize("size", [10, LARGE_BYTES])
async def test_each_call_gets_the_answers_to_its_own_values(redis_server: RedisServer, size: int):
    """On the link that all share, or on a connection of its own for large ones."""
    store = RedisStore(url=redis_server.url, timeout_ms=30_000)
    await store.start()
    names = [f"together:{secrets.token_hex(8)}" for _ in range(5)]
    await store.put(names[0], b"before", ttl_s=60)
    answers = await asyncio.gather(
        store.put(names[0], b"v" * size, ttl_s=60, if_absent=True),
        store.put_new(names[:3], b"v" * size, ttl_s=60),
        store.put_many([(name, b"w" * size) for name in names[3:]], ttl_s=60),
    )
    found = await store.get_many(names)
    await store.close()

    assert answers == [False, [False, True, True], None]
    assert found == [b"before", *[b"v" * size] * 2, *[b"w" * size] * 2]


async def test_large_entries_have_a_connection_of_their_own(redis_server: RedisServer):
    """No other command waits for them; they are added by a script that the server may not have."""
    store, large = RedisStore(url=redis_server.url, timeout_ms=30_000), b"v" * (LARGE_BYTES + 1)
    await store.start()
    name = f"large:{secrets.token_hex(8)}"
    with redis.Redis(port=redis_server.port) as direct:
        direct.script_flush()
    positions = [await store.append(name, large, ttl_s=60) for _ in range(2)]
    found, linked = await store.tail(name), vars(store._server)["link"]
    await store.close()

    assert (positions, found, linked) == ([1, 2], [(1, large), (2, large)], None)
