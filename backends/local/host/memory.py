"""Memory of local models: one budget for all models of a gateway, and how much memory the system has free.

The budget neither measures nor loads anything: its tenants report how much they need, and unload themselves.
Source: https://docs.kernel.org/filesystems/proc.html#meminfo, https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class MemoryTenant(Protocol):
    """A model that can be loaded and unloaded."""

    @property
    def required_bytes(self) -> int:
        """The memory that it uses when it is loaded."""

    @property
    def idle_since(self) -> float | None:
        """Since when it is idle, on a clock that all tenants share; None while it is used or not loaded."""

    async def unload(self) -> None:
        """Release its memory unless it has been used again."""


class ModelMemoryBudget:
    """One budget for several tenants: the smallest limit that any of them has. Without a limit all of them fit."""

    def __init__(self) -> None:
        self._limits: dict[MemoryTenant, int | None] = {}
        self._loaded: set[MemoryTenant] = set()
        self._changed = asyncio.Event()

    @property
    def limit_bytes(self) -> int | None:
        """The budget; None: no limit."""
        return min((limit for limit in self._limits.values() if limit is not None), default=None)

    def join(self, tenant: MemoryTenant, limit_bytes: int | None) -> None:
        """Add a tenant and its limit. Raises ValueError when one of the tenants could never be loaded."""
        self._limits[tenant] = limit_bytes
        try:
            if (limit := self.limit_bytes) is not None:
                check_model_fits(max(each.required_bytes for each in self._limits), limit)
        except ValueError:
            self.leave(tenant)
            raise

    def leave(self, tenant: MemoryTenant) -> None:
        """Remove a tenant and its limit."""
        self._limits.pop(tenant, None)
        self.release(tenant)

    def has_room_for(self, tenant: MemoryTenant) -> bool:
        """Return whether the tenant can be loaded now. A single one always can: no other could make room for it."""
        others, limit = self._loaded - {tenant}, self.limit_bytes
        return limit is None or not others or sum(each.required_bytes for each in {*others, tenant}) <= limit

    async def acquire(self, tenant: MemoryTenant) -> None:
        """Wait until the tenant can be loaded; unload the others that have been idle longest."""
        while not self.has_room_for(tenant):
            self._changed.clear()
            idle = self._longest_idle()
            if idle is None:
                await self._changed.wait()
            else:
                await idle.unload()
        self._loaded.add(tenant)

    def release(self, tenant: MemoryTenant) -> None:
        """Record that the tenant is not loaded any more."""
        self._loaded.discard(tenant)
        self.notify()

    def notify(self) -> None:
        """Let waiting tenants check again, because one has become idle."""
        self._changed.set()

    def _longest_idle(self) -> MemoryTenant | None:
        idle = [(since, tenant) for tenant in self._loaded if (since := tenant.idle_since) is not None]
        return min(idle, key=lambda each: each[0])[1] if idle else None


def check_model_fits(required_bytes: int, limit_bytes: int) -> None:
    """Raise ValueError when a model would never fit."""
    if required_bytes > limit_bytes:
        raise ValueError(f"memory_bytes is {limit_bytes}, but one model alone takes about {required_bytes}.")


# Backends are built separately, and those of one gateway run in one loop. A budget is dropped with its last tenant.
_BUDGETS: WeakValueDictionary[asyncio.AbstractEventLoop, ModelMemoryBudget] = WeakValueDictionary()


def shared_budget() -> ModelMemoryBudget:
    """Return the budget of all local models in the running loop."""
    return _BUDGETS.setdefault(asyncio.get_running_loop(), ModelMemoryBudget())


def free_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Return how much memory is free on the machine or in this container; half of all where that is unknown."""
    found = [size for size in (_machine_free(meminfo), _container_free(cgroup)) if size is not None]
    return min(found, default=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def _machine_free(meminfo: Path) -> int | None:
    with suppress(OSError):
        for line in meminfo.read_text(encoding="ascii").splitlines():
            name, _, size = line.partition(":")
            if name == "MemAvailable":
                return int(size.split()[0]) * 1024
    return None


def _container_free(cgroup: Path) -> int | None:
    """Return None without a container, or for one without a limit."""
    with suppress(OSError, ValueError):  # the limit may be the word "max"
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        return max(0, limit - int((cgroup / "memory.current").read_text(encoding="ascii")))
    return None
