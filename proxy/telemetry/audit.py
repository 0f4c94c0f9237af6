"""Every decision of a policy as one line of JSON, chained by hash: a changed or missing line breaks the chain.

Each line contains the SHA-256 of the line before it (`previous`) and of itself (`hash`); the first has 64 zeros. When
decisions could not be written, the next line that can be says how many: `{"lost": 12, ...}`.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import structlog

from proxy.config.table import Table
from proxy.telemetry.files import QueuedFile, append_line, open_private

log = structlog.get_logger()

FIRST_PREVIOUS = "0" * 64


class AuditTable(Table):
    path: Path
    """The file that lines are appended to; it is created if it does not exist."""
    allowed: bool = True
    """Whether decisions that let a call pass unchanged are written too."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one policy decided about one call: allowed, changed, refused, reported, stopped or unavailable."""

    policy: str
    version: str
    decision: str
    code: str | None
    param: str | None
    caller: str
    model: str


class Audit(QueuedFile):
    """Appends decisions to a file, in a thread. A full or slow disk costs lines, which are counted, never a call."""

    def __init__(self, settings: AuditTable) -> None:
        super().__init__()
        self._settings = settings
        self._previous = FIRST_PREVIOUS

    def open(self) -> None:
        """Raises OSError if the file cannot be written, ValueError if its last line is not an audit line."""
        path = self._settings.path
        file = open_private(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two writers would break each other's chain
            if last := _last_line(path):
                self._previous = _hash_in(last)
        except OSError as error:
            file.close()
            raise OSError(f"{path}: another gateway writes to this audit file; give each its own") from error
        except ValueError as error:
            file.close()
            raise ValueError(f"{path}: {error}") from error
        self.start(file)

    def write(self, request_id: str, decision: Decision) -> None:
        """Queue a decision."""
        if decision.decision == "allowed" and not self._settings.allowed:
            return
        line = {"time": datetime.now(UTC).isoformat(), "request_id": request_id, **asdict(decision)}
        self.put(orjson.dumps(line))

    def append(self, file: BinaryIO, lines: list[bytes], lost: int) -> int:
        """Chain and append lines, after one about those lost before. Returns how many are lost now."""
        waiting = [orjson.dumps({"time": datetime.now(UTC).isoformat(), "lost": lost}), *lines] if lost else lines
        for position, line in enumerate(waiting):
            try:
                self._append_chained(file, orjson.loads(line))
            except OSError as error:
                log.warning("audit.write_failed", error=error.strerror)
                unwritten = len(waiting) - position
                return unwritten - 1 + lost if lost and position == 0 else unwritten
        return 0

    def _append_chained(self, file: BinaryIO, line: dict[str, Any]) -> None:
        line["previous"] = self._previous
        line["hash"] = _hash_of(line)
        append_line(file, orjson.dumps(line))
        self._previous = line["hash"]


def first_altered(lines: Iterable[bytes]) -> tuple[int, int | None]:
    """Return how many lines are unaltered, and the number, from 1, of the first that is altered, or None.

    A chain that was cut at its end is intact as far as it goes: keep its last hash elsewhere to notice.
    """
    previous = FIRST_PREVIOUS
    count = 0
    for text in lines:
        try:
            line = orjson.loads(text)
            is_canonical = orjson.dumps(line) == text.removesuffix(b"\n")
            stated = line.pop("hash")
            is_intact = is_canonical and line["previous"] == previous and _hash_of(line) == stated
        except (ValueError, KeyError, TypeError, AttributeError):
            is_intact = False
        if not is_intact:
            return count, count + 1
        previous = stated
        count += 1
    return count, None


def _hash_of(line: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(line)).hexdigest()


def _last_line(path: Path) -> bytes:
    """The last line with its end, however long it is."""
    part = 65_536
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while True:
            start = file.seek(max(0, end - part))
            lines = file.read(end - start).splitlines(keepends=True)
            if start == 0 or len(lines) > 1:
                return lines[-1] if lines else b""
            part *= 2


def _hash_in(last: bytes) -> str:
    """The hash in a line that was read back. Raises ValueError if it is not a complete audit line."""
    try:
        if last.endswith(b"\n"):
            return str(orjson.loads(last)["hash"])
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError("the last line of the audit file is incomplete, or not an audit line; move the file away")
