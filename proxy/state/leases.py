"""Leases, which show other processes that this one is still working on something."""

import asyncio
import secrets
from collections.abc import Callable

import structlog

from proxy.stores import Store, StoreError
from proxy.wire.loggable import short_message

log = structlog.get_logger()

RETRY_S = 1.0
"""How soon leases are renewed again after the store failed, in seconds."""


class Leases:
    """The leases of one process: renewed until they are released, or until the process ends."""

    def __init__(self, store: Store, lease_s: float) -> None:
        self.owner = secrets.token_hex(16)
        self.lease_s = lease_s
        self._store = store
        self._held: dict[str, Callable[[], None]] = {}  # by key: what to call when another process has it
        self._renewals: asyncio.Task[None] | None = None

    async def claim(self, key: str, on_lost: Callable[[], None]) -> None:
        """Take a lease and keep it renewed. Raises StoreError, also while another process holds it."""
        if not await self._store.claim(key, self.owner, lease_s=self.lease_s):
            raise StoreError("another process holds the lease")
        self._held[key] = on_lost
        if self._renewals is None:
            self._renewals = asyncio.create_task(self._renew())

    async def confirm(self, key: str) -> bool:
        """Renew a lease now; False if it was lost. While the store fails, it counts as held."""
        return await self._claim(key) is not False

    async def release(self, key: str) -> None:
        """Release a lease. If the store fails, the lease expires."""
        self._held.pop(key, None)
        if not self._held and self._renewals is not None:
            self._renewals.cancel()
            self._renewals = None
        try:
            await self._store.release(key, self.owner)
        except StoreError as error:
            log.warning("lease.release_failed", error=short_message(error))

    async def take_over(self, key: str) -> str | None:
        """Take a free lease for a moment, and return its owner for `give_back`. Raises StoreError."""
        owner = secrets.token_hex(16)  # not this process: it may hold the lease itself
        return owner if await self._store.claim(key, owner, lease_s=self.lease_s) else None

    async def give_back(self, key: str, owner: str) -> None:
        """Raises StoreError."""
        await self._store.release(key, owner)

    async def is_held(self, key: str) -> bool:
        """Return whether any process holds a lease. Raises StoreError."""
        owner = await self.take_over(key)
        if owner is None:
            return True
        await self.give_back(key, owner)
        return False

    async def wait_until_free(self, key: str, poll_s: float) -> None:
        """Return when a lease is free. Raises StoreError."""
        while await self.is_held(key):  # noqa: ASYNC110  another process ends it
            await asyncio.sleep(poll_s)

    async def _claim(self, key: str) -> bool | None:
        """Renew a lease; return False if another process has it, None if the store fails."""
        try:
            return await self._store.claim(key, self.owner, lease_s=self.lease_s)
        except StoreError as error:
            log.warning("lease.renewal_failed", error=short_message(error))
            return None

    async def _renew(self) -> None:
        pause_s = self.lease_s / 3
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self.lease_s / 3
            for key, on_lost in [*self._held.items()]:
                is_held = await self._claim(key) if key in self._held else True
                if is_held is None:
                    pause_s = min(pause_s, RETRY_S)  # the others wait as well
                    break
                if not is_held:
                    log.warning("lease.lost")
                    on_lost()
