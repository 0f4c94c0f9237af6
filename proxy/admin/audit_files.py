"""The audit files of a gateway, for operators: what they do is written to one, and all are searched and verified."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from proxy.admin.audit_filter import LineFilter
from proxy.admin.audit_reading import LineSearch, files_of, search_chain, verify_chain
from proxy.admin.problem import Problem
from proxy.admin.roles import Operator
from proxy.telemetry.audit import AuditTable, write_operation

log = structlog.get_logger()

MOST_LINES = 500_000
"""How many lines a search reads at most, the newest of each chain; every chain has an equal part."""


class AuditFiles:
    """The files of one gateway; without `[audit]` none."""

    def __init__(self, settings: AuditTable | None, workers: int) -> None:
        self._settings = settings
        self._workers = workers
        self._lock = asyncio.Lock()
        self._searching = asyncio.Lock()

    @property
    def paths(self) -> list[Path]:
        """Return the files that are written: of each process, and of operators. One may not exist yet."""
        return audit_paths(self._settings, self._workers)

    async def record(self, operator: Operator, event: str, **fields: str) -> None:
        """Write what an operator is about to do. Raises Problem if that is required and fails."""
        log.info("admin.changed", operator=operator.name, change=event, **fields)
        if self._settings is None:
            return
        try:
            async with self._lock:
                await asyncio.to_thread(write_operation, self._settings, event, fields, operator.name)
        except (OSError, ValueError) as error:
            log.warning("audit.write_failed", error=getattr(error, "strerror", None) or str(error))
            if self._settings.on_failure == "refuse":
                raise Problem(503, "audit_unavailable", "This cannot be recorded, so it is not done.") from error

    async def search(self, wanted: LineFilter, limit: int) -> LineSearch:
        """Return a search that is done: the newest lines of all files that are wanted, rotated ones included.

        One search runs at a time, in a thread.
        """
        async with self._searching:
            return await asyncio.to_thread(search_files, self.paths, wanted, limit)

    async def verify(self) -> list[dict[str, Any]]:
        """Return for each file how many of its lines are unaltered, and the first that is not."""
        key = None if self._settings is None else self._settings.key
        async with self._searching:
            return await asyncio.to_thread(_verify_files, self.paths, key)


def audit_paths(settings: AuditTable | None, workers: int) -> list[Path]:
    """Return the files that the processes of a gateway write, and that of operators; without `[audit]` none."""
    if settings is None:
        return []
    path = settings.path
    numbers = range(1, workers + 1) if workers > 1 else ()
    decided = [path.with_suffix(f".{number}{path.suffix}") for number in numbers] or [path]
    return [*decided, settings.operator_path]


def search_files(paths: Sequence[Path], wanted: LineFilter, limit: int) -> LineSearch:
    """LineSearch the chains of these files, the newest lines first."""
    whole = LineSearch(wanted, limit, 0)
    for path in paths:
        one = LineSearch(wanted, limit, MOST_LINES // len(paths))
        search_chain(files_of(path, paths), one)
        whole.found += one.found
        whole.is_complete = whole.is_complete and one.is_complete
    whole.found.sort(key=lambda pair: str(pair[1].get("time", "")), reverse=True)
    del whole.found[limit:]
    return whole


def _verify_files(paths: Sequence[Path], key: bytes | None) -> list[dict[str, Any]]:
    return [found for path in paths for found in verify_chain(files_of(path, paths), key)]
