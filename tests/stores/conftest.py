"""Fixtures with every kind of store, each with a simulated passing of time."""

import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.stores.redis import RedisStore
from proxy.stores.sqlite import SqliteStore
from tests.redis_server import RedisServer

LONG_TIMEOUT_MS = 30_000  # longer than any command takes on a busy machine


class SteppedClock:
    """A clock that does not move until a test advances it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Subject:
    """A started store, and the function that makes its time pass."""

    store: Store
    advance: Callable[[float], None]


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    """A store of each kind."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        with redis.Redis(port=server.port) as direct:
            direct.flushdb()  # because `age` changes every key
        store: Store = RedisStore(url=server.url, timeout_ms=LONG_TIMEOUT_MS)
        subject = Subject(store, lambda seconds: age(server, seconds))
    else:
        clock = SteppedClock()
        store = (
            MemoryStore()
            if request.param == "memory"
            else SqliteStore(path=tmp_path / "store", timeout_ms=LONG_TIMEOUT_MS)
        )
        vars(store)["_clock"] = clock
        subject = Subject(store, clock.advance)
    await subject.store.start()
    yield subject
    await subject.store.close()


@pytest.fixture
def store(subject: Subject) -> Store:
    return subject.store


@pytest.fixture
def advance(subject: Subject) -> Callable[[float], None]:
    """A function that lets a number of seconds pass for the store."""
    return subject.advance


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return secrets.token_hex(32)


def age(server: RedisServer, seconds: float) -> None:
    """Shorten the time to live of every key of a Redis, which is the only effect of the passing of time."""
    with redis.Redis(port=server.port) as direct:
        for name in direct.scan_iter(count=1000):
            left_ms = direct.pttl(name)
            if left_ms >= 0:
                direct.pexpire(name, left_ms - int(seconds * 1000))
