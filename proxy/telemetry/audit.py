"""Every decision of a policy as one line of JSON, chained by hash: who changes or drops a line breaks the chain.

Each line holds the SHA-256 of the line before it (`previous`) and of itself (`hash`); the first has 64 zeros.
"""

import errno
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

from proxy.observe import request_id
from proxy.config.table import Table

log = structlog.get_logger()

START = "0" * 64


class AuditTable(Table):
    path: Path
    """The file that lines are added to; it is made when it is not there."""
    allowed: bool = True
    """Whether decisions that let a call pass unchanged are written too."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one policy decided of one call: allowed, changed, refused, reported or stopped."""

    policy: str
    version: str
    decision: str
    code: str | None
    param: str | None
    caller: str
    model: str


class Audit:
    """Writes decisions. A disk that is full costs lines and one log line each, never a call."""

    def __init__(self, settings: AuditTable) -> None:
        self._settings = settings
        self._file: BinaryIO | None = None
        self._previous = START

    def open(self) -> None:
        """Raises OSError when the file cannot be written, ValueError when its last line is not one of ours."""
        path = self._settings.path
        file = open_private(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two writers would break each other's chain
            if last := _last_line(path):
                self._previous = _told_by(last)
        except OSError as error:
            file.close()
            raise OSError(f"{path}: another gate writes to this audit file; give each its own") from error
        except ValueError as error:
            file.close()
            raise ValueError(f"{path}: {error}") from error
        self._file = file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, decision: Decision) -> None:
        if self._file is None or (decision.decision == "allowed" and not self._settings.allowed):
            return
        line = {"time": datetime.now(UTC).isoformat(), "request_id": request_id(), **asdict(decision)}
        line["previous"] = self._previous
        line["hash"] = _hash(line)
        try:
            append_whole(self._file, orjson.dumps(line) + b"\n")
            self._previous = line["hash"]
        except OSError as error:
            log.warning("audit.failed", error=error.strerror)


def open_private(path: Path) -> BinaryIO:
    """A file to add lines to, unbuffered. A new one is its owner's alone: it tells who asked. Raises OSError."""
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))


def append_whole(file: BinaryIO, line: bytes) -> None:
    """Write a line to the end of an unbuffered file, or nothing of it. Raises OSError when there is no room."""
    written = file.write(line)
    if written != len(line):  # a disk that is nearly full takes a part, and says so only when it is asked again
        file.truncate(file.tell() - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def first_altered(lines: Iterable[bytes]) -> tuple[int, int | None]:
    """How many lines are good, and the number, from 1, of the first that is not what was written, or None.

    A chain that was cut short at its end is whole as far as it goes: keep the last hash somewhere else to notice.
    """
    previous = START
    count = 0
    for text in lines:
        try:
            line = orjson.loads(text)
            as_written = orjson.dumps(line) == text.removesuffix(b"\n")
            told = line.pop("hash")
            good = as_written and line["previous"] == previous and _hash(line) == told
        except (ValueError, KeyError, TypeError, AttributeError):
            good = False
        if not good:
            return count, count + 1
        previous = told
        count += 1
    return count, None


def _hash(line: dict[str, Any]) -> str:
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


def _told_by(last: bytes) -> str:
    """The hash in a line that was read back. Raises ValueError when it is not a whole line of ours."""
    try:
        if last.endswith(b"\n"):
            return str(orjson.loads(last)["hash"])
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError("the last line of the audit file is not whole, or not one of ours; put the file aside")
