"""Whether a call would find somebody there: for load balancers and for people."""

import asyncio
from collections.abc import Mapping

from cachetools import TTLCache

from backends import Backend
from proxy.stores import Store

TOLD_FOR_S = 1  # anybody may ask; backends and store are asked once a second at the most


class Health:
    def __init__(self, backends: Mapping[str, Backend], store: Store | None) -> None:
        self._backends = backends
        self._store = store
        self._told: TTLCache[str, tuple[int, dict[str, object]]] = TTLCache(1, TOLD_FOR_S)

    async def report(self) -> tuple[int, dict[str, object]]:
        """A status and what was found. 503 only when no backend can be reached: the rest is still served."""
        told = self._told.get("")
        if told is None:
            told = self._told[""] = await self._found()
        return told

    async def _found(self) -> tuple[int, dict[str, object]]:
        reached = await asyncio.gather(*(backend.ready() for backend in self._backends.values()))
        backends = dict(zip(self._backends, reached, strict=True))
        store = None if self._store is None else await self._store.ready()
        status = "ready" if all(reached) and store is not False else "degraded" if any(reached) else "unready"
        report: dict[str, object] = {"status": status, "backends": {name: _word(up) for name, up in backends.items()}}
        if store is not None:
            report["store"] = _word(store)
        return 503 if status == "unready" else 200, report


def _word(up: bool) -> str:  # noqa: FBT001  the one thing there is to say
    return "up" if up else "down"
