"""A Redis Cluster of three nodes, and a primary with a replica that a Sentinel watches, all of them real."""

import asyncio
import itertools
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.cache.vault_keys import PREFIX
from proxy.stores import StoreError
from proxy.stores._redis_pieces import PIECE_BYTES
from proxy.stores.redis import RedisStore
from tests.certificates import make_certificate
from tests.raw import ask
from tests.redis_server import RedisServer, free_port, wait_until
from tests.stores.test_redis import HIT, outcome, question, tables
from tests.upstream import FakeUpstream

LONG_TIMEOUT_MS = 10_000  # longer than any command of these tests
SLOTS = 16_384


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that all servers with TLS use."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder, "redis", subject="IP:127.0.0.1")
    return folder / "redis.pem"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """Three nodes, each with a third of the slots."""
    with running_cluster(tmp_path_factory) as nodes:
        yield nodes


@contextmanager
def running_cluster(
    folders: pytest.TempPathFactory, certificate: Path | None = None
) -> Iterator[list[RedisServer]]:  # fmt: skip
    """Three nodes, each with a third of the slots; with a certificate they only speak TLS, also with one another."""
    ports = [free_port() for _ in range(3)]
    tls = [] if certificate is None else ["--tls-cluster", "yes"]
    nodes = [
        RedisServer(
            folders.mktemp("node"), "--cluster-enabled", "yes", "--cluster-port", str(port),
            "--cluster-node-timeout", "1000", "--cluster-announce-ip", "127.0.0.1",
            "--cluster-require-full-coverage", "no", *tls, certificate=certificate,
        )
        for port in ports
    ]  # fmt: skip
    for number, node in enumerate(nodes):
        node.start()
        with node.client() as direct:
            direct.execute_command("CLUSTER", "ADDSLOTSRANGE", number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1)
            direct.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    with nodes[0].client() as direct:
        for node, port in zip(nodes[1:], ports[1:], strict=True):
            direct.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, port)
    for node in nodes:
        with node.client() as direct:
            wait_until(partial(is_complete, direct))
    yield nodes
    for node in nodes:
        node.stop()


def is_complete(node: redis.Redis) -> bool:
    """Whether a node knows where each slot is, and answers."""
    facts = node.execute_command("CLUSTER", "INFO")
    return b"cluster_slots_ok:%d" % SLOTS in facts and b"cluster_state:ok" in facts


@pytest.fixture
async def store(cluster: list[RedisServer]) -> AsyncIterator[RedisStore]:
    store = RedisStore(
        url=cluster[0].url, cluster_nodes=[f"127.0.0.1:{node.port}" for node in cluster[1:]],
        timeout_ms=LONG_TIMEOUT_MS, max_connections=4,
    )  # fmt: skip
    await store.start()
    yield store
    await store.close()


async def test_every_verb_reaches_the_node_of_its_key(store: RedisStore, cluster: list[RedisServer]):
    """Keys that are read and written together are on all three nodes."""
    prefix = f"cluster:{secrets.token_hex(8)}:"
    keys = [f"{prefix}{number}" for number in range(30)]
    await store.put_many([(key, key.encode()) for key in keys], ttl_s=60)
    held = [len(list(redis.Redis(port=node.port).scan_iter(f"{prefix}*"))) for node in cluster]
    found = await store.get_many([*keys, f"{prefix}none"])
    new = await store.put_new([keys[0], f"{prefix}n1", f"{prefix}n2"], b"new", ttl_s=60)
    grant = await store.take(f"{prefix}counter", 3, limit=5, window_s=60)
    await store.give(f"{prefix}counter", 1, window=grant.window)
    positions = [await store.append(f"{prefix}journal", entry, ttl_s=60) for entry in (b"a", b"b")]
    tail = await store.tail(f"{prefix}journal", after=1)
    claims = [await store.claim(f"{prefix}lease", owner, lease_s=60) for owner in ("me", "you")]
    await store.release(f"{prefix}lease", "me")
    await store.delete(keys[1])

    assert min(held) > 0
    assert sum(held) == 30
    assert found == [*(key.encode() for key in keys), None]
    assert new == [False, True, True]
    assert (await store.take(f"{prefix}counter", 0, limit=5, window_s=60)).used == 2
    assert (positions, tail) == ([1, 2], [(2, b"b")])
    assert claims == [True, False]
    assert {key async for key in store.scan(prefix)} == {
        *keys, *(f"{prefix}{name}" for name in ("n1", "n2", "counter", "journal"))
    } - {keys[1]}  # fmt: skip
    assert await store.ready()
    await store.check_durable()


@pytest.mark.parametrize("number", range(3))
async def test_state_is_not_kept_where_any_node_may_evict_it(cluster: list[RedisServer], number: int, logged):
    """Each node has a policy of its own, and some of the keys. A node that is away is named, and hides no other."""
    nodes = [f"127.0.0.1:{node.port}" for node in cluster[1:]]
    store, silent = RedisStore(url=cluster[0].url, cluster_nodes=nodes, timeout_ms=2000), cluster[(number + 1) % 3]
    await store.start()
    await until(partial(put_on_all_nodes, store))
    await store.check_durable()
    silent.pause()
    with cluster[number].client() as direct:
        direct.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(ValueError, match="maxmemory-policy allkeys-lru"):
                await store.check_durable()
            direct.config_set("maxmemory-policy", "noeviction")
            await store.check_durable()
        finally:
            direct.config_set("maxmemory-policy", "noeviction")
            silent.resume()
    unknown = [line["event"] for line in logged]
    await until(partial(put_on_all_nodes, store))
    await store.close()

    assert set(unknown) == {"store.eviction_unknown"}


async def put_on_all_nodes(store: RedisStore) -> None:
    """Raises StoreError while a node is away."""
    await store.put_many([(f"cluster:{number}", b"1") for number in range(30)], ttl_s=60)


async def test_a_large_value_and_its_pieces_are_on_one_node(store: RedisStore, cluster: list[RedisServer]):
    """Whichever node that is."""
    keys = [f"cluster:{secrets.token_hex(8)}" for _ in range(6)] + [f"cluster:{{{secrets.token_hex(8)}}}:tagged"]
    values = [bytes([number]) * (PIECE_BYTES + 1) for number, _ in enumerate(keys)]
    await store.put_many([*zip(keys, values, strict=True)], ttl_s=60)
    found = await store.get_many(keys)
    held = [len(list(redis.Redis(port=node.port).scan_iter("*:pieces"))) for node in cluster]
    for key in keys:
        await store.delete(key)
    left = [len(list(redis.Redis(port=node.port).scan_iter("*:pieces"))) for node in cluster]

    assert found == values
    assert (sum(held), sum(left)) == (len(keys), 0)


async def test_more_calls_than_connections_wait_for_one(store: RedisStore):
    """None of them fails."""
    keys = [f"cluster:{secrets.token_hex(8)}" for _ in range(50)]
    await asyncio.gather(*(store.put(key, b"1", ttl_s=60) for key in keys))

    assert await asyncio.gather(*(store.get(key) for key in keys)) == [b"1"] * 50


async def test_a_slot_that_moves_is_found_again(store: RedisStore, cluster: list[RedisServer]):
    """The node that had it says where it is."""
    key = "cluster:{moving}"
    await store.get(key)
    at = redis.Redis(port=cluster[0].port).execute_command("CLUSTER", "KEYSLOT", key)
    source, target, other = (cluster[(at * 3 // SLOTS + step) % 3] for step in range(3))
    ids = {node: redis.Redis(port=node.port).execute_command("CLUSTER", "MYID") for node in cluster}
    for node, *how in (
        (target, "IMPORTING", ids[source]), (source, "MIGRATING", ids[target]),
        *((node, "NODE", ids[target]) for node in (target, source, other)),
    ):  # fmt: skip
        redis.Redis(port=node.port).execute_command("CLUSTER", "SETSLOT", at, *how)
    await store.put(key, b"2", ttl_s=60)

    assert redis.Redis(port=target.port).get(key) == b"2"
    assert (await store.get(key), await store.append("{moving}:journal", b"a", ttl_s=60)) == (b"2", 1)


async def test_a_node_that_dies_fails_its_own_keys_only(store: RedisStore, cluster: list[RedisServer]):
    """And they are reached again when it is back."""
    keys = [f"cluster:{secrets.token_hex(8)}" for _ in range(30)]
    await store.put_many([(key, b"1") for key in keys], ttl_s=60)
    before = await store.ready()
    cluster[2].stop()
    outcomes, without = [await outcome_of(store.get(key)) for key in keys], await store.ready()
    cluster[2].start()
    await until(lambda: store.put_many([(key, b"2") for key in keys], ttl_s=60))

    assert {b"1", StoreError} == set(outcomes)
    assert (before, without, await store.ready()) == (True, False, True)
    assert set(await store.get_many(keys)) == {b"2"}


async def test_a_silent_node_costs_its_timeout_once_in_a_while(cluster: list[RedisServer], logged):
    """Although the others answer in between: each node has a breaker of its own, and theirs stay closed."""
    nodes = [f"127.0.0.1:{node.port}" for node in cluster[1:]]
    store = RedisStore(url=cluster[0].url, cluster_nodes=nodes, timeout_ms=300)
    await store.start()
    keys = [f"cluster:{number}" for number in range(60)]
    await until(partial(store.put_many, [(key, b"1") for key in keys], ttl_s=60))
    of_node = set(map(bytes.decode, cluster[2].client().scan_iter("cluster:*")))
    cluster[2].pause()
    found = [await outcome_of(store.get(key)) for _ in range(5) for key in keys]
    pairs = [await outcome_of(store.get_many([one, other])) for one, other in itertools.pairwise(keys)]
    timed_out = [line for line in logged if line["event"] == "store.suspended"]
    cluster[2].resume()
    await until(partial(store.get_many, keys))
    await store.close()

    assert [each == b"1" for each in found] == [key not in of_node for _ in range(5) for key in keys]
    assert [each == [b"1", b"1"] for each in pairs] == [not {*pair} & of_node for pair in itertools.pairwise(keys)]
    assert [line["address"] for line in timed_out] == [f"127.0.0.1:{cluster[2].port}"]
    assert [line["event"] for line in logged] == ["store.suspended", "store.resumed"]


@contextmanager
def at_fault(node: RedisServer, fault: str) -> Iterator[None]:
    """Let a node be at fault inside the block."""
    match fault:
        case "stopped":
            node.stop()
            yield
            node.start()
        case "paused":
            node.pause()
            yield
            node.resume()
        case "full":
            node.client().config_set("maxmemory", "1")
            yield
            node.client().config_set("maxmemory", "0")
        case "garbage":
            for key in node.client().scan_iter(f"{PREFIX}*"):
                node.client().set(key, b"garbage")
            yield


@pytest.mark.parametrize("fault", ["stopped", "paused", "full", "garbage"])
async def test_every_call_is_answered_whatever_a_node_does(
    fault: str, cluster: list[RedisServer], start_gateway, upstream: FakeUpstream
):
    """Those whose entries are there ask the backend; they are found again when it is well."""
    nodes = [f"127.0.0.1:{node.port}" for node in cluster[1:]]
    gateway = await start_gateway(tables(upstream, cluster[0].url, cluster_nodes=nodes, timeout_ms=300))
    calls = [question() for _ in range(12)]
    await asyncio.gather(*(ask(gateway, call) for call in calls))
    with at_fault(cluster[2], fault):
        during = [(await ask(gateway, call)).status for call in (*calls, *(question() for _ in range(6)))]

    assert during == [200] * 18
    async with asyncio.timeout(30):
        for call in calls:
            while outcome(await ask(gateway, call)) != (200, HIT):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def outcome_of(answer: Any) -> Any:
    try:
        return await answer
    except StoreError:
        return StoreError


async def until(work: Callable[[], Any]) -> None:
    """Do it again until it succeeds."""
    async with asyncio.timeout(20):
        while True:
            with suppress(StoreError):
                await work()
                return
            await asyncio.sleep(0.05)


async def fail_over(sentinel: RedisServer, port: int) -> None:
    """Let a Sentinel make the server at a port the primary; one that gives up, on a busy machine, is asked again."""

    def is_done() -> bool:
        if direct.sentinel_master("kept")["port"] == port:
            return True
        with suppress(redis.ResponseError):  # it is about to
            direct.execute_command("SENTINEL", "FAILOVER", "kept")
        return False

    with sentinel.client() as direct:
        await asyncio.to_thread(wait_until, is_done)


@contextmanager
def running_sentinel(folder: Path, certificate: Path | None = None) -> Iterator[tuple[list[RedisServer], RedisServer]]:
    """A primary, its replica, and the Sentinel that watches them; with a certificate they only speak TLS."""
    tls = [] if certificate is None else ["--tls-replication", "yes"]
    servers = [RedisServer(folder, "--repl-diskless-sync-delay", "0", *tls, certificate=certificate) for _ in range(2)]
    for server in servers:
        server.start()
    with servers[1].client() as replica:
        replica.execute_command("REPLICAOF", "127.0.0.1", servers[0].port)
        wait_until(lambda: replica.info("replication")["master_link_status"] == "up")
    config = folder / "sentinel.conf"
    more = "" if certificate is None else "tls-replication yes\n"
    config.write_text(
        f"{more}sentinel monitor kept 127.0.0.1 {servers[0].port} 1\nsentinel failover-timeout kept 3000\n"
    )
    sentinel = RedisServer(folder, str(config), "--sentinel", certificate=certificate)
    sentinel.start()
    with sentinel.client() as direct:
        # On a busy machine a Sentinel that was not run for two seconds would do nothing for thirty.
        periods = {"INFO-PERIOD": 100, "PING-PERIOD": 100, "TILT-TRIGGER": 60_000, "TILT-PERIOD": 100}
        direct.execute_command("SENTINEL", "DEBUG", *(part for period in periods.items() for part in period))
        wait_until(lambda: [each["master-link-status"] for each in direct.sentinel_slaves("kept")] == ["ok"])
    yield servers, sentinel
    for server in (*servers, sentinel):
        server.stop()


@pytest.mark.parametrize("has_tls", [False, True])
async def test_the_primary_that_sentinels_name_is_used(tmp_path: Path, certificate: Path, has_tls: bool):
    """After a failover it is another one; a Sentinel that does not answer delays nothing. With TLS all use it."""
    tls = certificate if has_tls else None
    url = f"rediss://kept/0?ssl_ca_certs={tls}" if tls else "redis://kept/0"
    with running_sentinel(tmp_path, tls) as (servers, sentinel), socket.create_server(("127.0.0.1", 0)) as silent:
        sentinels = [f"127.0.0.1:{port}" for port in (silent.getsockname()[1], sentinel.port)]
        store = RedisStore(url=url, sentinels=sentinels, timeout_ms=2000)
        await store.start()
        await store.put("sentinel", b"1", ttl_s=60)
        before, old = servers[0].client().get("sentinel"), servers[0].client()
        await fail_over(sentinel, servers[1].port)
        old.execute_command("REPLICAOF", "127.0.0.1", servers[1].port)  # as the Sentinel does some seconds later
        await until(lambda: store.put("sentinel", b"2", ttl_s=60))
        after = servers[1].client().get("sentinel")
        servers[0].stop()
        found = await store.get("sentinel")
        await store.close()

    assert (before, after, found) == (b"1", b"2", b"2")


async def test_every_call_is_answered_while_a_primary_fails_over(tmp_path: Path, start_gateway, upstream: FakeUpstream):
    """First to a replica, then because the primary dies; entries are kept again at the new one."""
    with running_sentinel(tmp_path) as (servers, sentinel):
        sentinels = [f"127.0.0.1:{sentinel.port}"]
        gateway = await start_gateway(tables(upstream, "redis://kept/0", sentinels=sentinels, timeout_ms=300))
        calls = [question() for _ in range(6)]
        await asyncio.gather(*(ask(gateway, call) for call in calls))
        failing_over = asyncio.create_task(fail_over(sentinel, servers[1].port))
        during = []
        while not failing_over.done():
            during.append((await ask(gateway, calls[len(during) % 6])).status)
        await failing_over
        servers[0].stop()
        during += [(await ask(gateway, call)).status for call in calls]
        async with asyncio.timeout(30):
            for call in calls:
                while outcome(await ask(gateway, call)) != (200, HIT):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        kept = len(list(servers[1].client().scan_iter(f"{PREFIX}e:*")))

    assert set(during) == {200}
    assert kept == 6


async def test_a_cluster_over_tls(tmp_path_factory: pytest.TempPathFactory, certificate: Path):
    """Every node is asked over TLS, and one whose certificate is not trusted is not asked."""
    prefix = f"cluster:{secrets.token_hex(8)}:"
    keys = [f"{prefix}{number}" for number in range(30)]
    with running_cluster(tmp_path_factory, certificate) as nodes:
        others = [f"127.0.0.1:{node.port}" for node in nodes[1:]]
        store = RedisStore(url=nodes[0].url, cluster_nodes=others, timeout_ms=LONG_TIMEOUT_MS)
        untrusting = RedisStore(url=nodes[0].url.partition("?")[0], cluster_nodes=others, timeout_ms=LONG_TIMEOUT_MS)
        for each in (store, untrusting):
            await each.start()
        await store.put_many([(key, key.encode()) for key in keys], ttl_s=60)
        found = await store.get_many(keys)
        positions = [await store.append(key, b"a", ttl_s=60) for key in (f"{prefix}{name}" for name in "abc")]
        listed = {key async for key in store.scan(prefix)}
        held = [len(list(node.client().scan_iter(f"{prefix}*"))) for node in nodes]
        with pytest.raises(StoreError):
            await untrusting.get(keys[0])
        for each in (store, untrusting):
            await each.close()

    assert (found, positions, len(listed)) == ([key.encode() for key in keys], [1, 1, 1], 33)
    assert min(held) > 0


async def test_a_server_over_tls(tmp_path: Path, certificate: Path):
    """With the names of its URL; one whose certificate is not trusted is not asked."""
    server = RedisServer(tmp_path, certificate=certificate)
    server.start()
    stores = [RedisStore(url=url, timeout_ms=LONG_TIMEOUT_MS) for url in (server.url, server.url.partition("?")[0])]
    for store in stores:
        await store.start()
    value = b"v" * 1_000_000  # more than one record of TLS
    await stores[0].put("k", value, ttl_s=60)
    found, small = await stores[0].get("k"), await stores[0].put_new(["n", "k"], b"1", ttl_s=60)
    with pytest.raises(StoreError):
        await stores[1].get("k")
    for store in stores:
        await store.close()
    server.stop()

    assert (found, small) == (value, [True, False])
