"""A store in memory that reads and writes several values one by one, for tests that change how one is read or written."""

from collections.abc import Sequence

from proxy.stores import Store
from proxy.stores.memory import MemoryStore


class OneByOneStore(MemoryStore):
    """Calls its `get` and `put` for each value, so that a subclass changes them for all verbs."""

    @property
    def peek(self) -> None:
        return None

    @property
    def put_new_now(self) -> None:
        return None

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        return await Store.get_many(self, keys)

    async def put_many(self, values: Sequence[tuple[str, bytes]], *, ttl_s: float, group: str = "") -> None:
        await Store.put_many(self, values, ttl_s=ttl_s, group=group)
