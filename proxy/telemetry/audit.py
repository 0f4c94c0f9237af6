"""Every decision of a policy as one line of JSON, chained by hash: a changed or missing line breaks the chain.

When decisions could not be written, the next line that can be says how many: `{"lost": 12, ...}`. A file that was
renamed is continued in a new one, by the same chain, once `reopen` is called.
"""

import fcntl
import getpass
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import orjson
import structlog
from pydantic import PositiveInt

from proxy.config.secrets import LongSecret
from proxy.config.table import Table
from proxy.telemetry.audit_chain import START, Chain, Head, head_in
from proxy.telemetry.files import QueuedFile, append_lines, open_private
from proxy.wire.encoded import encode
from proxy.wire.errors import Unavailable
from proxy.wire.loggable import printable

log = structlog.get_logger()

LOCK_TIMEOUT_S = 5.0
"""How long a command waits for another one to finish writing the file, in seconds."""


class AuditTable(Table):
    path: Path
    """The file that lines are appended to; it is created if it does not exist."""
    allowed: bool = True
    """Whether decisions that let a call pass unchanged are written too."""
    secret: LongSecret | None = None
    """The secret of the chain: a valid line can be computed with it only."""
    anchor_every: PositiveInt = 1_000
    """After how many lines the head of the chain is logged, so that it is kept in another place than the file."""
    on_failure: Literal["continue", "refuse"] = "continue"
    """What happens to calls while decisions cannot be written: they are lost and counted, or calls are refused."""

    @property
    def key(self) -> bytes | None:
        """The key of the chain."""
        return None if self.secret is None else self.secret.get_secret_value().encode()

    @property
    def operator_path(self) -> Path:
        """The file of what operators do by the command line, with a chain of its own: the gateway has locked `path`."""
        return self.path.with_suffix(f".operator{self.path.suffix}")


class Decision(msgspec.Struct, frozen=True):
    """What one policy decided about one call: allowed, changed, refused, reported, stopped or unavailable."""

    policy: str
    version: str
    decision: str
    code: str | None
    param: str | None
    caller: str
    model: str


class Audit(QueuedFile):
    """Appends decisions to a file, in a thread. A full or slow disk costs lines, which are counted, never a call:
    unless the config says that calls are to be refused then.
    """

    def __init__(self, settings: AuditTable) -> None:
        super().__init__()
        self._settings = settings
        self._chain = Chain(settings.key)
        self._anchored = 0

    @property
    def is_required(self) -> bool:
        """Whether calls are refused while lines are lost."""
        return self._settings.on_failure == "refuse"

    def check(self) -> None:
        """Raises Unavailable while decisions cannot be written, and calls are to be refused then."""
        if self.is_required and not self.is_healthy:
            message = "The gateway cannot record what it decides at the moment."
            raise Unavailable(message, code="audit_unavailable")

    def open(self) -> None:
        """Raises OSError if the file cannot be written, ValueError if its last line is not an audit line."""
        file, head = _open_locked(self._settings.path)
        self._chain = Chain(self._settings.key, head)
        self._anchored = head.seq
        self.start(file)

    def reopen(self, file: BinaryIO) -> BinaryIO:
        """Return the file that is at the path now; the chain continues in it. Raises OSError, ValueError."""
        new, head = _open_locked(self._settings.path)
        if head not in (START, self._chain.head):
            new.close()
            raise ValueError(f"{self._settings.path}: another chain is in the file")
        file.close()
        return new

    def close(self) -> None:
        super().close()
        self._anchor()

    def write(self, request_id: str, decision: Decision) -> None:
        """Queue a decision."""
        if decision.decision == "allowed" and not self._settings.allowed:
            return
        line = {"time": _now(), "request_id": request_id, **msgspec.structs.asdict(decision)}
        self.put(encode(line))

    def write_event(self, event: str, fields: Mapping[str, str]) -> None:
        """Queue what happened to the gateway itself."""
        self.put(encode({"time": _now(), "event": event, **fields}))

    def append(self, file: BinaryIO, lines: list[bytes], lost: int) -> int:
        """Chain and append lines, after one about those lost before. Returns how many are lost now."""
        waiting = [orjson.dumps({"time": _now(), "lost": lost}), *lines] if lost else lines
        written = self._append(file, waiting)
        if written and lost:
            self.note_lost(lost)
        if self._chain.head.seq >= self._anchored + self._settings.anchor_every:
            self._anchor()
        unwritten = len(waiting) - written
        return unwritten - 1 + lost if lost and not written else unwritten

    def _append(self, file: BinaryIO, waiting: list[bytes]) -> int:
        """Append lines to file and chain, and return how many there was room for."""
        linked = self._chain.link(waiting)
        written = 0
        try:
            while written < len(linked):
                written += append_lines(file, [text for text, _ in linked[written:]])
                self.note_success()
        except OSError as error:
            if self.fails_anew():
                log.warning("audit.write_failed", path=str(self._settings.path), error=error.strerror)
        if written:
            self._chain.head = linked[written - 1][1]
        return written

    def note_lost(self, count: int) -> None:
        """Log how many lines are missing; the file says so as well as soon as there is room."""
        log.warning("audit.lines_lost", path=str(self._settings.path), count=count)

    def _anchor(self) -> None:
        """Log the head of the chain."""
        head = self._chain.head
        if head.seq != self._anchored:
            log.info("audit.anchored", path=str(self._settings.path), head=str(head))
        self._anchored = head.seq


def write_operation(settings: AuditTable, event: str, fields: Mapping[str, str], operator: str = "") -> None:
    """Write what an operator does, by default the user of this process, to a file beside that of the decisions.

    Raises OSError if it cannot be written, ValueError if its last line is not an audit line.
    """
    file, head = _open_locked(settings.operator_path, LOCK_TIMEOUT_S)
    with file:
        named = {name: printable(value) for name, value in fields.items()}
        who = printable(operator) or getpass.getuser()
        line = encode({"time": _now(), "event": event, "operator": who, **named})
        ((text, _),) = Chain(settings.key, head).link([line])
        append_lines(file, [text])


def head_of(path: Path) -> Head:
    """Return the head of the chain in a file. Raises OSError, and ValueError for one that is not an audit file."""
    last = _last_line(path)
    return head_in(last) if last else START


def _open_locked(path: Path, timeout_s: float = 0.0) -> tuple[BinaryIO, Head]:
    """Open a file for one writer, and return its head: two writers would break each other's chain.

    Raises OSError, and ValueError if its last line is not an audit line.
    """
    file = open_private(path)
    try:
        _lock(file, path, time.monotonic() + timeout_s)
        return file, head_of(path)
    except OSError:
        file.close()
        raise
    except ValueError as error:
        file.close()
        raise ValueError(f"{path}: {error}") from error


def _lock(file: BinaryIO, path: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() >= until:
                raise OSError(f"{path}: another gateway writes to this audit file; give each its own") from error
            time.sleep(0.05)
        else:
            return


def _now() -> str:
    return datetime.now(UTC).isoformat()


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
