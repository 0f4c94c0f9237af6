"""Opens clients for the three forms of Redis: one server, the primary that Sentinels name, or a cluster.

Source: https://redis.io/docs/latest/develop/reference/sentinel-clients/, https://redis.readthedocs.io/en/stable/clustering.html
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, Redis, RedisCluster, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import NoScriptError, RedisClusterException, RedisError
from redis.maint_notifications import MaintNotificationsConfig

from proxy.stores._redis_address import host_and_port
from proxy.stores._redis_scripts import DIGESTS

Options = Mapping[str, Any]


def connection_options(seconds: float, user: str | None, password: str | None) -> dict[str, Any]:
    """Return the options of every connection: a timeout for everything, and no retries."""
    return {
        "username": user, "password": password, "socket_timeout": seconds, "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 0), "protocol": 2,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }  # fmt: skip


def server_client(url: str, max_connections: int, options: Options) -> Redis:
    """Return a client of one server."""
    pool = BlockingConnectionPool.from_url(
        url, max_connections=max_connections, timeout=options["socket_timeout"], **options
    )
    return Redis(connection_pool=pool)


def sentinel_client(
    url: str, sentinels: Sequence[str], max_connections: int, options: Options, sentinel_password: str | None
) -> Redis:
    """Return a client of the primary that Sentinels know by the name in the URL."""
    own = {**options, **tls_options(url), "username": None, "password": sentinel_password}
    asked = [Redis(host=host, port=port, **own) for host, port in map(host_and_port, sentinels)]
    client = server_client(url, max_connections, options)
    pool = client.connection_pool
    pool.connection_kwargs["primary"] = NamedPrimary(urlsplit(url).hostname or "", asked)
    pool.connection_class = SecurePrimaryConnection if own["ssl"] else PrimaryConnection
    return client


def cluster_client(url: str, nodes: Sequence[str], max_connections: int, options: Options) -> RedisCluster:
    """Return a client of the cluster that these are some nodes of."""
    parts = urlsplit(url)
    first = f"{parts.hostname}:{parts.port or 6379}"
    return RedisCluster(
        startup_nodes=[ClusterNode(*host_and_port(node)) for node in (first, *nodes)],
        max_connections=max_connections,
        require_full_coverage=False,
        **tls_options(url),
        **options,
    )


def tls_options(url: str) -> dict[str, Any]:
    """Return whether connections have TLS, and its parameters in the URL."""
    found = BlockingConnectionPool.from_url(url).connection_kwargs
    parameters = {name: value for name, value in found.items() if name.startswith("ssl_")}
    return {**parameters, "ssl": urlsplit(url).scheme == "rediss"}


async def open_connection(client: Redis) -> Any:
    """Return a connection of a client that its pool does not know. Raises RedisError, OSError."""
    connection: Any = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    await connection.connect()
    return connection


async def drop_idle(client: Redis | RedisCluster) -> None:
    """Close the connections that no command uses: their server takes no writes. A cluster finds others itself."""
    if isinstance(client, Redis):
        await client.connection_pool.disconnect(inuse_connections=False)


async def scans_of(client: Redis | RedisCluster, **options: Any) -> list[Callable[[int], Awaitable[Any]]]:
    """Return for each server a step of a scan over its keys, which returns the next cursor and some keys."""
    if isinstance(client, Redis):
        return [partial(client.scan, **options)]
    await client.initialize()
    return [partial(_scan_node, node, **options) for node in client.get_primaries()]


async def memory_of(client: Redis | RedisCluster) -> list[Callable[[], Awaitable[Mapping[str, Any]]]]:
    """Return for each server, replicas included, a function that asks for its memory settings."""
    if isinstance(client, Redis):
        return [partial(client.info, "memory")]
    await client.initialize()
    return [partial(client.info, "memory", target_nodes=node) for node in client.get_nodes()]


async def spread_key(client: Redis | RedisCluster, key: str) -> Sequence[str]:
    """Return keys that begin with this one, one on each server that takes writes."""
    if isinstance(client, Redis):
        return [key]
    await client.initialize()
    missing = {node.name for node in client.get_primaries()}
    keys = []
    for number in range(REDIS_CLUSTER_HASH_SLOTS):
        numbered = f"{key}:{number}"
        if (node := node_of(client, numbered)) in missing:
            keys.append(numbered)
            missing.remove(node)
        if not missing:
            break
    return keys


async def _scan_node(node: Any, cursor: int, *, match: str, count: int) -> Any:
    return await node.execute_command("SCAN", cursor, "MATCH", match, "COUNT", count)


def node_of(client: Any, key: str | bytes) -> str:
    """Return the address of the node of a cluster that has a key; "" if there is no key, or that is not known."""
    try:
        return "" if not key else str(client.get_node_from_key(key).name)
    except RedisClusterException:
        return ""


async def run_script(client: Any, script: str, key: str, *arguments: bytes) -> Any:
    """Return the answer of a script, whose text is sent only to a server that does not have it."""
    try:
        return await client.evalsha(DIGESTS[script], 1, key, *arguments)
    except NoScriptError:
        return await client.eval(script, 1, key, *arguments)


async def close_client(client: Redis | RedisCluster) -> None:
    await client.aclose()
    if isinstance(client, Redis):
        await client.connection_pool.disconnect()
        if (primary := client.connection_pool.connection_kwargs.get("primary")) is not None:
            await primary.close()


class NamedPrimary:
    """The server that Sentinels know by a name, which is another one after a failover."""

    def __init__(self, name: str, sentinels: Sequence[Redis]) -> None:
        self._name = name
        self._sentinels = sentinels
        self._late: set[asyncio.Task[Any]] = set()

    async def find(self) -> tuple[str, int]:
        """Return its address from the first Sentinel that answers. Raises NotConnected if none does."""
        asking = [asyncio.create_task(self._ask(sentinel)) for sentinel in self._sentinels]
        try:
            for answer in asyncio.as_completed(asking):
                with suppress(RedisError, OSError, ValueError, TypeError):
                    host, port = await answer
                    return host.decode(), int(port)
        finally:
            for task in asking:  # one that is opening a connection may end only after its own timeout
                task.cancel()
            self._late = {task for task in (*self._late, *asking) if not task.done()}
        raise NotConnected("no Sentinel names the primary")

    async def _ask(self, sentinel: Any) -> Any:
        return await sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)

    async def close(self) -> None:
        await asyncio.gather(*self._late, return_exceptions=True)
        for sentinel in self._sentinels:
            await sentinel.aclose()


class PrimaryConnection(Connection):
    """A connection to the server that is the primary when it is opened."""

    def __init__(self, *, primary: NamedPrimary, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary

    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        if not self.is_connected:
            self.host, self.port = await self._primary.find()
        await super().connect_check_health(*args, **options)


class SecurePrimaryConnection(PrimaryConnection, SSLConnection):
    """The same with TLS."""
