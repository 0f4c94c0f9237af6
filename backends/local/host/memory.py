"""What all local models of a gate may take together: who holds how much, and who goes when another needs it.

Nothing is measured here and nothing is loaded: tenants tell how much they need and give it back.
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary


class Tenant(Protocol):
    """A model that may be loaded."""

    @property
    def needs_bytes(self) -> int:
        """How much it takes when it is loaded."""

    @property
    def idle_since(self) -> float | None:
        """Since when, on one clock for all, nobody has used it; None while it is in use or not loaded."""

    async def unload(self) -> None:
        """Give back what it holds, unless somebody has begun to use it."""


class Memory:
    """One budget: the smallest limit that any tenant names. Without a limit everybody is let in."""

    def __init__(self) -> None:
        self._limits: dict[Tenant, int | None] = {}
        self._loaded: set[Tenant] = set()
        self._news = asyncio.Event()

    @property
    def limit_bytes(self) -> int | None:
        return min((limit for limit in self._limits.values() if limit is not None), default=None)

    def join(self, tenant: Tenant, limit_bytes: int | None) -> None:
        """Take part, from now on under this limit, too. Raises ValueError when one of them would never fit."""
        self._limits[tenant] = limit_bytes
        try:
            if (limit := self.limit_bytes) is not None:
                refuse_too_large(max(each.needs_bytes for each in self._limits), limit)
        except ValueError:
            self.leave(tenant)
            raise

    def leave(self, tenant: Tenant) -> None:
        self._limits.pop(tenant, None)
        self.release(tenant)

    def fits(self, tenant: Tenant) -> bool:
        """Whether it could be loaded as things are. One alone always fits: nobody else could make room for it."""
        others, limit = self._loaded - {tenant}, self.limit_bytes
        return limit is None or not others or sum(each.needs_bytes for each in {*others, tenant}) <= limit

    async def claim(self, tenant: Tenant) -> None:
        """Wait until there is room for it. Whoever has been idle for longest goes first."""
        while not self.fits(tenant):
            self._news.clear()
            longest = self._longest_idle()
            if longest is None:
                await self._news.wait()
            else:
                await longest.unload()
        self._loaded.add(tenant)

    def release(self, tenant: Tenant) -> None:
        """It is not loaded any more."""
        self._loaded.discard(tenant)
        self.tell()

    def tell(self) -> None:
        """Somebody has become idle: who waits for room looks again."""
        self._news.set()

    def _longest_idle(self) -> Tenant | None:
        idle = [(since, tenant) for tenant in self._loaded if (since := tenant.idle_since) is not None]
        return min(idle, key=lambda each: each[0])[1] if idle else None


def refuse_too_large(needs_bytes: int, limit_bytes: int) -> None:
    """Raises ValueError when a model would never fit."""
    if needs_bytes > limit_bytes:
        raise ValueError(f"memory_bytes is {limit_bytes}, but one model alone takes about {needs_bytes}.")


# Backends are built one by one and know nothing of each other; those that one gate starts share its loop. A budget is
# forgotten with its last tenant.
_OF_GATES: WeakValueDictionary[asyncio.AbstractEventLoop, Memory] = WeakValueDictionary()


def of_this_gate() -> Memory:
    """The one budget of all local models in the running loop."""
    return _OF_GATES.setdefault(asyncio.get_running_loop(), Memory())


MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """What may still be taken without pushing others out; of a system that does not tell, half of what it has."""
    found = [size for size in (_machine(meminfo), _container(cgroup)) if size is not None]
    return min(found, default=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def _machine(meminfo: Path) -> int | None:
    with suppress(OSError):
        for line in meminfo.read_text(encoding="ascii").splitlines():
            name, _, size = line.partition(":")
            if name == "MemAvailable":
                return int(size.split()[0]) * 1024
    return None


def _container(cgroup: Path) -> int | None:
    """None where there is no container, or one without a limit."""
    with suppress(OSError, ValueError):  # the limit may be the word "max"
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        return max(0, limit - int((cgroup / "memory.current").read_text(encoding="ascii")))
    return None
