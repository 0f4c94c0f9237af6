"""Measures the operations of a store that is outside the process's memory."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

from proxy.stores import Store, StoreError
from proxy.telemetry.instruments import Buckets, Histogram

Verb = Callable[..., Any]


def _measured(operation: str) -> Verb:
    """Return an operation that does what the store's does, and adds how long it took to the histogram."""

    async def operate(self: "MeasuredStore", *arguments: Any, **options: Any) -> Any:
        started, succeeded = time.perf_counter(), self._succeeded
        if operation not in succeeded:
            system, name = self._labels
            succeeded[operation] = self._durations.of(system, operation, name, "")
        buckets = succeeded[operation]
        try:
            return await getattr(self._store, operation)(*arguments, **options)
        except StoreError:
            system, name = self._labels
            buckets = self._durations.of(system, operation, name, "store_failed")
            raise
        finally:
            buckets.add(time.perf_counter() - started)

    return operate


class MeasuredStore(Store):
    """Another store, each of whose operations is added to a histogram. `name` is what it is used for."""

    _store: Store
    _durations: Histogram
    _labels: tuple[str, str]
    _succeeded: dict[str, Buckets]
    """The series of operations that have succeeded, or may."""

    get: ClassVar[Verb] = _measured("get")
    get_many: ClassVar[Verb] = _measured("get_many")
    put: ClassVar[Verb] = _measured("put")
    put_many: ClassVar[Verb] = _measured("put_many")
    put_new: ClassVar[Verb] = _measured("put_new")
    delete: ClassVar[Verb] = _measured("delete")
    take: ClassVar[Verb] = _measured("take")
    give: ClassVar[Verb] = _measured("give")
    hold: ClassVar[Verb] = _measured("hold")
    append: ClassVar[Verb] = _measured("append")
    tail: ClassVar[Verb] = _measured("tail")
    add: ClassVar[Verb] = _measured("add")
    rows: ClassVar[Verb] = _measured("rows")
    claim: ClassVar[Verb] = _measured("claim")
    release: ClassVar[Verb] = _measured("release")

    @staticmethod
    def of(store: Store, system: str, name: str, durations: Histogram) -> "MeasuredStore":
        """Return a store of a system (redis, sqlite) as one that is measured."""
        own = MeasuredStore()
        # Not as private attributes: pydantic takes five calls of functions to read one.
        vars(own).update(_store=store, _durations=durations, _labels=(system, name), _succeeded={})
        return own

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

    async def check_writable(self) -> None:
        await self._store.check_writable()
