"""GET /healthz: the process is up. GET /readyz: whether calls can be answered."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from aiohttp import web

from backends import Backend
from proxy.cached_result import CachedResult
from proxy.http.exchange import Exchange
from proxy.routing.targets import FORBIDDEN, Targets
from proxy.stores import Store

REPORT_TTL_S = 1  # anyone may request it; backends and store are probed once a second at most
PROBE_TIMEOUT_S = 3

SERVING = frozenset({"up", FORBIDDEN})

Report = tuple[int, dict[str, object]]
IdentityReport = tuple[Mapping[str, object], bool]
"""The condition of keys and issuers, and whether any caller can be identified."""


class FileWriter(Protocol):
    """A file that the gateway appends to."""

    @property
    def is_healthy(self) -> bool: ...

    @property
    def is_required(self) -> bool:
        """Whether no call is answered while it is not healthy."""


class Health:
    """Reports liveness and readiness, to load balancers and to people."""

    def __init__(  # noqa: PLR0913  each a part of its own
        self,
        backends: Mapping[str, Backend],
        stores: Mapping[str, Store],
        files: Mapping[str, FileWriter],
        targets: Targets,
        ending: asyncio.Event,
        *,
        identities: Callable[[], IdentityReport] = lambda: ({}, True),
        required: Collection[str] = (),
    ) -> None:
        """Stores and files have the names that they get in the report. `ending` is set when the gateway shuts down.

        `identities` returns the condition of keys and issuers, `required` names the stores that every call needs.
        """
        self._identities = identities
        self._required = required
        self._targets = targets
        self._ending = ending
        self._backends = backends
        self._stores = stores
        self._files = files
        self._report = CachedResult(self._probe, REPORT_TTL_S)

    async def alive(self, exchange: Exchange) -> web.StreamResponse:
        return exchange.json_response({"status": "up"})

    async def ready(self, exchange: Exchange) -> web.StreamResponse:
        status, report = await self.report()
        return exchange.json_response(report, status=status)

    async def report(self) -> Report:
        """Return a status and the report: 503 only if calls would fail, or the gateway shuts down."""
        if self._ending.is_set():
            return 503, {"status": "draining"}
        return await self._report.get()

    async def _word(self, backend: Backend) -> str:
        """Return the condition of a backend. One with recent calls is not probed."""
        known = self._targets.report(backend)
        return known or self._targets.note_probe(backend, is_ready=await _is_ready(backend))

    async def _probe(self) -> Report:
        words = await asyncio.gather(*map(self._word, self._backends.values()))
        reached = [word == "up" for word in words]
        stored = await asyncio.gather(*map(_is_ready, self._stores.values()))
        files = {name: file.is_healthy for name, file in self._files.items()}
        identities, knows_callers = self._identities()
        is_whole = all((*reached, *stored, *files.values())) and _are_up(identities)
        is_stuck = any(file.is_required and not files[name] for name, file in self._files.items()) or not knows_callers
        is_stuck |= any(not up for name, up in zip(self._stores, stored, strict=True) if name in self._required)
        is_served = any(word in SERVING for word in words) and not is_stuck
        status = "ready" if is_whole else "degraded" if is_served else "unready"
        report: dict[str, object] = {"status": status, "backends": dict(zip(self._backends, words, strict=True))}
        up_or_down = {True: "up", False: "down"}
        report |= {name: up_or_down[up] for name, up in zip(self._stores, stored, strict=True)}
        report |= identities
        report |= {name: "up" if healthy else "degraded" for name, healthy in files.items()}
        return 503 if status == "unready" else 200, report


def _are_up(words: Mapping[str, object]) -> bool:
    """Return whether every value of a report is "up", nested ones included."""
    return all(_are_up(word) if isinstance(word, Mapping) else word == "up" for word in words.values())


async def _is_ready(part: Backend | Store) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await part.ready()
    except TimeoutError:
        return False
