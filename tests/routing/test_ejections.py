"""Ejections that processes share."""

import asyncio
import time
from pathlib import Path

import pytest

from proxy.routing.ejections import POLL_S, SharedEjections
from proxy.routing.targets import Target, Targets
from proxy.stores import StoreError
from proxy.stores.memory import MemoryStore
from proxy.stores.sqlite import SqliteStore
from tests.pipelines import ScriptedBackend
from tests.raw import no_tasks_left, until  # noqa: F401


def targets_of(store) -> tuple[Targets, SharedEjections, Target]:
    """Return what a process has that shares this store, and one target of it."""
    shared = SharedEjections(store)
    targets = Targets(shared)
    return targets, shared, targets.of(ScriptedBackend(name="a"))


async def test_an_ejection_reaches_another_process(tmp_path: Path):
    """Some time after it asks; it ends at the same time in both."""
    store = SqliteStore(path=tmp_path / "state.sqlite3")
    await store.start()
    _, mine, ejected = targets_of(store)
    _, theirs, other = targets_of(store)
    now = asyncio.get_running_loop().time()
    while ejected.breaker.allows(now):
        ejected._fail("upstream_unreachable", now)
    await until(lambda: not mine._tasks)
    theirs.poll([other], now)
    await until(lambda: not theirs._tasks)
    await store.close()

    assert not other.breaker.allows(now)
    assert abs(other.breaker.open_until - ejected.breaker.open_until) < 1


async def test_the_store_is_asked_now_and_then_only():
    """However many calls are made."""
    asked = []

    class Counting(MemoryStore):
        async def get(self, key: str) -> bytes | None:
            asked.append(key)
            return await super().get(key)

    _, shared, target = targets_of(Counting())
    now = asyncio.get_running_loop().time()
    for number in range(1000):
        shared.poll([target], now + number * POLL_S / 1000)
    await until(lambda: not shared._tasks)

    assert len(asked) == 1
    assert all(key.startswith("headgate:ejected:") and key[17:] != "a" for key in asked)


@pytest.mark.parametrize("value", [b"", b"soon", b"\xff", b"nan", b"0", b"1", b"1 2", b"nan nan"])
async def test_what_is_no_ejection_has_no_effect(value: bytes):
    """Nor has one that is over."""
    store = MemoryStore()
    _, shared, target = targets_of(store)
    shared.poll([target], 0)
    await until(lambda: not shared._tasks)
    (key,) = [f"headgate:ejected:{name}" for name in (_digest("a"),)]
    await store.put(key, value, ttl_s=60)
    shared.poll([target], 2 * POLL_S)
    await until(lambda: not shared._tasks)

    assert target.breaker.allows(asyncio.get_running_loop().time())


async def test_an_ejection_is_not_prolonged_by_a_clock_that_is_set_back(monkeypatch: pytest.MonkeyPatch):
    """It lasts as long as it did at its beginning."""
    store = MemoryStore()
    _, shared, target = targets_of(store)
    shared.publish(target, 10.0)
    await until(lambda: not shared._tasks)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    shared.poll([target], POLL_S)
    await until(lambda: not shared._tasks)
    now = asyncio.get_running_loop().time()

    assert not target.breaker.allows(now)
    assert target.breaker.open_until <= now + 10


async def test_a_store_that_fails_changes_nothing_else(logged):
    """The process goes on by what it knows itself."""

    class Failing(MemoryStore):
        async def get(self, _key: str) -> bytes | None:
            raise StoreError("away")

        async def put(self, *_: object, **__: object) -> bool:
            raise StoreError("away")

    _, shared, target = targets_of(Failing())
    now = asyncio.get_running_loop().time()
    while target.breaker.allows(now):
        target._fail("upstream_unreachable", now)
    shared.poll([target], now)
    await until(lambda: not shared._tasks)

    assert [line["event"] for line in logged] == ["backend.ejected", "ejection.share_failed"]


async def test_what_is_not_shared_yet_ends_with_the_process():
    """A store that does not answer must not delay it."""

    class Silent(MemoryStore):
        async def get(self, _key: str) -> bytes | None:
            await asyncio.Event().wait()
            return None

    targets, shared, target = targets_of(Silent())
    shared.poll([target], 0)
    await asyncio.sleep(0)
    await targets.close()

    assert not shared._tasks


def _digest(name: str) -> str:
    import hashlib

    return hashlib.sha256(name.encode()).hexdigest()
