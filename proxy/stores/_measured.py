"""Measures the operations of a store that is outside the process's memory."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from pydantic import PrivateAttr

from proxy.stores import Grant, Store, StoreError
from proxy.telemetry.instruments import Histogram

T = TypeVar("T")


class MeasuredStore(Store):
    """Another store, each of whose operations is added to a histogram. `name` is what it is used for."""

    _store: Store = PrivateAttr()
    _durations: Histogram = PrivateAttr()
    _labels: tuple[str, str] = PrivateAttr()

    @staticmethod
    def of(store: Store, system: str, name: str, durations: Histogram) -> "MeasuredStore":
        """Return a store of a system (redis, sqlite) as one that is measured."""
        measured = MeasuredStore()
        measured._store, measured._durations, measured._labels = store, durations, (system, name)
        return measured

    async def _measure(self, operation: str, work: Awaitable[T]) -> T:
        started = time.perf_counter()
        error = ""
        system, name = self._labels
        try:
            return await work
        except StoreError:
            error = "store_failed"
            raise
        finally:
            self._durations.of(system, operation, name, error).add(time.perf_counter() - started)

    async def get(self, key: str) -> bytes | None:
        return await self._measure("get", self._store.get(key))

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        return await self._measure("get_many", self._store.get_many(keys))

    async def put(self, key: str, value: bytes, **options: Any) -> bool:
        return await self._measure("put", self._store.put(key, value, **options))

    async def put_many(self, values: Sequence[tuple[str, bytes]], **options: Any) -> None:
        return await self._measure("put_many", self._store.put_many(values, **options))

    async def put_new(self, keys: Sequence[str], value: bytes, **options: Any) -> Sequence[bool]:
        return await self._measure("put_new", self._store.put_new(keys, value, **options))

    async def delete(self, key: str) -> None:
        return await self._measure("delete", self._store.delete(key))

    async def take(self, key: str, amount: int, **options: Any) -> Grant:
        return await self._measure("take", self._store.take(key, amount, **options))

    async def give(self, key: str, amount: int, *, window: int) -> None:
        return await self._measure("give", self._store.give(key, amount, window=window))

    async def append(self, key: str, value: bytes, **options: Any) -> int:
        return await self._measure("append", self._store.append(key, value, **options))

    async def tail(self, key: str, *, after: int = 0, limit: int = 1000) -> Sequence[tuple[int, bytes]]:
        return await self._measure("tail", self._store.tail(key, after=after, limit=limit))

    async def claim(self, key: str, owner: str, *, lease_s: float) -> bool:
        return await self._measure("claim", self._store.claim(key, owner, lease_s=lease_s))

    async def release(self, key: str, owner: str) -> None:
        return await self._measure("release", self._store.release(key, owner))

    def scan(self, prefix: str) -> AsyncIterator[str]:
        return self._store.scan(prefix)

    def watch(self, changed: Callable[[str | None], None]) -> None:
        self._store.watch(changed)

    async def start(self) -> None:
        await self._store.start()

    async def close(self) -> None:
        await self._store.close()

    async def check_durable(self) -> None:
        await self._store.check_durable()

    async def ready(self) -> bool:
        return await self._store.ready()
