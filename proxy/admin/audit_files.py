"""The audit files of a gateway, for operators: what they do is written to one, and all are searched and verified."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import orjson
import structlog

from proxy.admin.problem import Problem
from proxy.admin.roles import Operator
from proxy.telemetry.audit import AuditTable, write_operation
from proxy.telemetry.audit_chain import START, Head, verify

log = structlog.get_logger()

MOST_LINES = 200_000
"""How many lines of each file a search reads at most, the newest first."""
PART_BYTES = 1_048_576

Line = Mapping[str, Any]


class AuditFiles:
    """The files of one gateway; without `[audit]` none."""

    def __init__(self, settings: AuditTable | None, workers: int) -> None:
        self._settings = settings
        self._workers = workers
        self._lock = asyncio.Lock()

    @property
    def paths(self) -> list[Path]:
        """Return the files as they are now: of each process, and of operators. One may not exist yet."""
        if self._settings is None:
            return []
        path = self._settings.path
        numbers = range(1, self._workers + 1) if self._workers > 1 else ()
        decided = [path.with_suffix(f".{number}{path.suffix}") for number in numbers] or [path]
        return [*decided, self._settings.operator_path]

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

    async def search(self, is_wanted: Callable[[Line], bool], limit: int) -> list[tuple[str, Line]]:
        """Return the newest lines of all files that are wanted, each with the name of its file."""
        found = []
        for path in self.paths:
            lines = await asyncio.to_thread(_newest, path, is_wanted, limit)
            found += [(path.name, line) for line in lines]
        found.sort(key=lambda pair: str(pair[1].get("time", "")), reverse=True)
        return found[:limit]

    async def verify(self) -> list[dict[str, Any]]:
        """Return for each file how many of its lines are unaltered, and the first that is not."""
        key = None if self._settings is None else self._settings.key
        found = [await asyncio.to_thread(_verify, path, key) for path in self.paths]
        return [each for each in found if each is not None]


def _newest(path: Path, is_wanted: Callable[[Line], bool], limit: int) -> list[Line]:
    found: list[Line] = []
    for text in islice(_lines_backwards(path), MOST_LINES):
        try:
            line = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        if isinstance(line, dict) and is_wanted(line):
            found.append(line)
            if len(found) >= limit:
                break
    return found


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file from its end; none for a file that does not exist."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        start, rest = file.seek(0, 2), b""
        while start > 0:
            size = min(PART_BYTES, start)
            start = file.seek(start - size)
            first, *lines = (file.read(size) + rest).split(b"\n")
            yield from (line for line in reversed(lines) if line)
            rest = first
        if rest:
            yield rest


def _verify(path: Path, key: bytes | None) -> dict[str, Any] | None:
    """Return what became of the chain of a file; None for one that does not exist yet."""
    nothing = {"file": path.name, "lines": 0, "altered_line": None, "head": None}
    try:
        with path.open("rb") as lines:
            first = next(lines, b"")
            found = verify(chain([first] if first else [], lines), key=key, after=_before(first))
    except FileNotFoundError:
        return None
    except OSError as error:
        return {**nothing, "is_intact": False, "detail": error.strerror}
    read = {"lines": found.count, "altered_line": found.altered, "head": str(found.head)}
    return {**nothing, **read, "is_intact": found.altered is None, "detail": None}


def _before(first: bytes) -> Head:
    """Return the head that the first line of a file follows: after a rotation it is in an older file."""
    try:
        line = orjson.loads(first)
        return Head.parse(f"{line['seq'] - 1}:{line['previous']}")
    except (ValueError, KeyError, TypeError):
        return START
