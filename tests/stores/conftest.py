"""Every kind of store, each with a way to let time pass without waiting for it."""

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

PATIENT_MS = 30_000  # longer than any command takes on a busy machine


class SteppedClock:
    """A clock that stands still until a test advances it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Subject:
    """A started store, and what makes its time pass."""

    store: Store
    advance: Callable[[float], None]


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    """One of each kind."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        with redis.Redis(port=server.port) as direct:
            direct.flushdb()  # `age` visits every key
        store: Store = RedisStore(url=server.url, timeout_ms=PATIENT_MS)
        made = Subject(store, lambda seconds: age(server, seconds))
    else:
        clock = SteppedClock()
        store = (
            MemoryStore() if request.param == "memory" else SqliteStore(path=tmp_path / "store", timeout_ms=PATIENT_MS)
        )
        vars(store)["_clock"] = clock
        made = Subject(store, clock.advance)
    await made.store.start()
    yield made
    await made.store.close()


@pytest.fixture
def store(subject: Subject) -> Store:
    return subject.store


@pytest.fixture
def advance(subject: Subject) -> Callable[[float], None]:
    """Let that many seconds pass for the store."""
    return subject.advance


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return secrets.token_hex(32)


def age(server: RedisServer, seconds: float) -> None:
    """Bring the end of every key of a Redis that many seconds nearer, which is all that the passing of time does."""
    with redis.Redis(port=server.port) as direct:
        for name in direct.scan_iter(count=1000):
            left_ms = direct.pttl(name)
            if left_ms >= 0:
                direct.pexpire(name, left_ms - int(seconds * 1000))
