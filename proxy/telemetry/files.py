"""Appends lines to files, in a thread: a slow disk delays no call."""

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import structlog

from proxy.wire.loggable import summarize_error

log = structlog.get_logger()

QUEUE_BYTES = 8_388_608
"""The most bytes that may wait to be written; further lines are lost and counted."""
DELAY_S, LONGEST_DELAY_S = 0.02, 0.1
"""How long lines are collected that are written together, in seconds: few lines, and many. For each batch the thread
takes the interpreter's lock from the event loop some times.
"""
MANY_LINES = 2
RETRY_S = 1.0
"""How often the report of lost lines is retried while no lines arrive, in seconds."""


def open_private(path: Path) -> BinaryIO:
    """Open a file for appending, unbuffered. A new one is readable by its owner only. Raises OSError."""
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))


def append_lines(file: BinaryIO, lines: Sequence[bytes]) -> int:
    """Append lines to an unbuffered file by one write, none of them in part, and return how many there was room for.

    Raises OSError when there is no room for the first.
    """
    text = b"\n".join([*lines, b""])
    written = file.write(text)
    if written == len(text):
        return len(lines)
    whole = text.rfind(b"\n", 0, written) + 1  # a full disk takes a part, and reports the error only on the next write
    file.truncate(file.tell() - (written - whole))
    if not whole:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return text.count(b"\n", 0, whole)


def count_lines(lines: Sequence[bytes]) -> int:
    """Return how many lines there are, of which some may be one text with line ends between them."""
    return len(lines) + sum(text.count(b"\n") for text in lines)


class LineQueue:
    """Passes lines to `write` in a thread. `put` never blocks; a line that does not fit into the queue is lost.

    `write` receives the lines of a batch in order, of which some may be one text, and the number of lines lost before
    it. It returns how many of all these it could neither write nor report. While that is not 0, and while the queue is
    full, `is_healthy` is False.
    """

    def __init__(
        self,
        write: Callable[[list[bytes], int], int],
        *,
        max_bytes: int = QUEUE_BYTES,
        longest_delay_s: float = LONGEST_DELAY_S,
    ) -> None:
        self._write = write
        self._max_bytes = max_bytes
        self._longest_delay_s = longest_delay_s
        self._delay_s = DELAY_S
        self._lines: list[bytes] = []
        self._size = 0  # of the lines queued and being written
        self._lost = 0
        self.lost_lines = 0
        """How many lines were lost since the start."""
        self.is_healthy = True
        self._flushes: list[threading.Event] = []  # of those who wait for the lines so far
        self._is_closing = self._is_idle = False
        self._lock = threading.RLock()  # reentrant: a finalizer may log in the middle of anything
        self._wake = threading.Lock()  # unlocked to end a pause of the thread
        # A daemon: a write that blocks forever must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="line-writer", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Queue a line, or count it as lost."""
        size = len(line)
        with self._lock:
            if self._size + size > self._max_bytes:
                self._lost += 1
                self.lost_lines += 1
                self.is_healthy = False
            else:
                self._lines.append(line)
                self._size += size
            if self._is_idle:
                self._end_pause()

    def put_all(self, lines: bytes) -> None:
        """Queue lines, with line ends between them, or count as lost those that do not fit."""
        with self._lock:
            fits = self._size + len(lines) <= self._max_bytes
            for part in (lines,) if fits else lines.split(b"\n"):
                self.put(part)

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Wait until the lines so far were handed to `write`; return False after `timeout_s`."""
        is_written = threading.Event()
        with self._lock:
            self._flushes.append(is_written)
            self._end_pause()
        return not self._thread.is_alive() or is_written.wait(timeout_s)

    def close(self, timeout_s: float = 2.0) -> bool:
        """Write what is queued and end the thread; return False if it still writes after `timeout_s`."""
        with self._lock:
            self._is_closing = True
            self._end_pause()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def take_lost(self) -> int:
        """Return how many lines were lost that no report says."""
        with self._lock:
            lost, self._lost = self._lost, 0
        return lost

    def _end_pause(self) -> None:
        """Wake the thread. Call it with the lock."""
        self._is_idle = False
        if self._wake.locked():
            self._wake.release()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._pause(-1 if self.is_healthy else RETRY_S, until_line=True)
            self._pause(self._delay_s)
            with self._lock:
                lines, self._lines = self._lines, []
                flushes, self._flushes = self._flushes, []
                lost = self.take_lost()
            unreported = self._write(lines, lost) if lines or lost else 0
            with self._lock:
                self._note_batch(lines, unreported)
                must_report = self._lost > 0 and bool(lines)  # in one more batch
                is_last = self._is_closing and not self._lines and not must_report
            for flush in flushes:
                flush.set()

    def _pause(self, timeout_s: float, *, until_line: bool = False) -> None:
        """Wait for a line, or while more lines come; not when the queue is flushed or closed."""
        with self._lock:
            self._is_idle = until_line
            self._wake.acquire(blocking=False)
            if self._flushes or self._is_closing or (until_line and self._lines):
                return
        self._wake.acquire(timeout=timeout_s)

    def _note_batch(self, lines: list[bytes], unreported: int) -> None:
        """Note that a batch was written, but for so many lines. Call it with the lock."""
        size = sum(map(len, lines))
        self._size -= size
        self._lost += unreported
        if unreported:
            self.lost_lines += min(unreported, count_lines(lines))  # the others were counted before
        self.is_healthy = self._lost == 0
        has_many = len(lines) >= MANY_LINES or (bool(lines) and b"\n" in lines[0])
        is_busy = has_many and size < self._max_bytes // 16  # large ones would soon fill the queue
        self._delay_s = self._longest_delay_s if is_busy else DELAY_S


class QueuedFile(ABC):
    """A file that lines are appended to in a thread. A subclass opens it and says how a batch is appended."""

    def __init__(self) -> None:
        self.file: BinaryIO | None = None
        self._queue: LineQueue | None = None
        self._is_moved = False  # whether the file may have been renamed, so that it must be opened anew
        self.is_failing = False
        """Whether the line that was tried last could not be written."""

    def start(self, file: BinaryIO) -> None:
        """Take over an open file; `put` does nothing before."""
        self.file = file
        # What is required must be known soon not to be written: calls are refused then.
        self._queue = LineQueue(self._write, longest_delay_s=DELAY_S if self.is_required else LONGEST_DELAY_S)

    def put(self, line: bytes) -> None:
        """Queue a line."""
        if self._queue is not None:
            self._queue.put(line)

    def flush(self, timeout_s: float = 2.0) -> None:
        """Wait until the lines so far are written, for at most `timeout_s`."""
        if self._queue is not None:
            self._queue.flush(timeout_s)

    def close(self) -> None:
        is_written = self._queue is None or self._queue.close()
        if self._queue is not None and is_written and (lost := self._queue.take_lost()):
            self.note_lost(lost)
        if self.file is not None and is_written:  # a file that a thread still writes to must stay open
            self.file.close()

    def follow_rotation(self) -> None:
        """Write the next lines to the file that is at the path then: this one was renamed."""
        self._is_moved = True

    @property
    def is_required(self) -> bool:
        """Whether no call is answered while lines are lost."""
        return False

    @property
    def lost_lines(self) -> int:
        """How many lines were lost since the start."""
        return 0 if self._queue is None else self._queue.lost_lines

    @property
    def is_healthy(self) -> bool:
        """Whether no lines are being lost."""
        return self._queue is None or self._queue.is_healthy

    @abstractmethod
    def append(self, file: BinaryIO, lines: list[bytes], lost: int) -> int:
        """Append lines, after a report of those lost before. Return how many are lost now. Called in the thread."""

    @abstractmethod
    def note_lost(self, count: int) -> None:
        """Log how many lines were lost until one could be written again, or until the end."""

    def fails_anew(self) -> bool:
        """Note that a line could not be written; return whether the one before could be."""
        was_failing, self.is_failing = self.is_failing, True
        return not was_failing

    def note_success(self) -> None:
        """Note that a line was written."""
        self.is_failing = False

    @abstractmethod
    def reopen(self, file: BinaryIO) -> BinaryIO:
        """Return the file that is at the path now, in place of an open one. Raises OSError, ValueError; then the open
        one stays in use. Called in the thread.
        """

    def _write(self, lines: list[bytes], lost: int) -> int:
        if self.file is None:
            return lost + len(lines)
        if self._is_moved:
            self._is_moved = False
            self.file = self._reopened(self.file)
        return self.append(self.file, lines, lost)

    def _reopened(self, file: BinaryIO) -> BinaryIO:
        """Return the file that is at the path now. SIGHUP reads the config again too, without a rotation."""
        if _is_at_its_path(file):
            return file
        try:
            return self.reopen(file)
        except (OSError, ValueError) as error:
            log.error("file.reopen_failed", file=file.name, error=summarize_error(error))  # noqa: TRY400
            return file


def _is_at_its_path(file: BinaryIO) -> bool:
    """Return whether an open file is still at its path."""
    try:
        return os.path.samestat(Path(file.name).stat(), os.fstat(file.fileno()))
    except (OSError, ValueError):
        return False
