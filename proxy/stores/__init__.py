"""What a store is: bytes under a key, for a while."""

from abc import ABC, abstractmethod
from collections.abc import Set as AbstractSet

from proxy.config.table import Table


class Store(Table, ABC):
    """Keeps bytes under a key until they expire. Its fields are TOML keys of the table that uses it.

    Keys are hashes made by us: no text of a caller's becomes part of one. Any fault is a StoreError.
    """

    @property
    def possible_keys(self) -> AbstractSet[str] | None:
        """Every key that may be kept, one and the same set for as long as the store lives; None: only asking tells."""
        return None

    @abstractmethod
    async def get(self, key: str) -> bytes | None:
        """The bytes under `key`, or None. Raises StoreError."""

    @abstractmethod
    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False) -> bool:
        """Keep `value` for `ttl_s` seconds; True when it is kept. Raises StoreError."""

    @abstractmethod
    async def add(self, key: str, amount: int, *, ttl_s: float) -> int:
        """Add to the number under `key` (0 when there is none) in one step, and give the sum. Raises StoreError."""

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Forget what is under `key`. Raises StoreError."""

    async def start(self) -> None:
        """Take what lives as long as the process."""

    async def close(self) -> None:
        """Give it back."""

    async def ready(self) -> bool:
        """Whether it can be reached now."""
        return True


class StoreError(Exception):
    """The store did not do what was asked, or not in time. Whoever asked decides what that means."""
