"""Files of lines that the gateway appends to, written by a thread of their own: a slow disk delays no call."""

import errno
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import structlog

from proxy.wire.loggable import summarize_error

log = structlog.get_logger()

QUEUE_BYTES = 8_388_608
"""How much may wait to be written, in bytes; lines beyond it are lost and counted."""
BATCH_DELAY_S = 0.02  # lines that arrive meanwhile are written together
RETRY_S = 1.0
"""How often a report of lost lines is tried again while there are no lines, in seconds."""


def open_private(path: Path) -> BinaryIO:
    """Open a file for appending, unbuffered. A new one is readable by its owner only. Raises OSError."""
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))


def append_line(file: BinaryIO, line: bytes) -> None:
    """Append a line to an unbuffered file, or nothing of it. Raises OSError when there is no room."""
    line += b"\n"
    written = file.write(line)
    if written != len(line):  # a disk that is nearly full takes a part, and reports the error only on the next write
        file.truncate(file.tell() - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class LineQueue:
    """Passes lines to `write` in a thread. `put` never blocks; a line that does not fit into the queue is lost.

    `write` receives the lines of a batch in order and the number of lines lost before it. It returns how many of all
    these it could neither write nor report. While that is not 0, and while the queue is full, `is_healthy` is False.
    """

    def __init__(self, write: Callable[[list[bytes], int], int], *, max_bytes: int = QUEUE_BYTES) -> None:
        self._write = write
        self._max_bytes = max_bytes
        self._lines: list[bytes] = []
        self._size = 0  # of the lines queued and being written
        self._lost = 0
        self.lost_lines = 0
        """How many lines were lost since the start."""
        self._is_closing = self._is_busy = False
        self._lock = threading.Lock()
        self._has_work = threading.Event()
        self._is_idle = threading.Event()  # the opposite of `_is_busy`, for those who wait
        self._is_idle.set()
        self.is_healthy = True
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
            if self._is_busy:  # the thread looks again before it is idle
                return
            self._is_busy = True
            self._is_idle.clear()
        self._has_work.set()

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Wait until all queued lines were handed to `write`; return False after `timeout_s`."""
        return self._is_idle.wait(timeout_s)

    def close(self, timeout_s: float = 2.0) -> bool:
        """Write what is queued and end the thread; return False if it still writes after `timeout_s`."""
        self._is_closing = True
        self._has_work.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            has_work = self._has_work.wait(None if self.is_healthy else RETRY_S)
            if has_work and not self._is_closing:
                time.sleep(BATCH_DELAY_S)
            with self._lock:
                lines, self._lines = self._lines, []
                lost, self._lost = self._lost, 0
            unreported = self._write(lines, lost) if lines or lost else 0
            with self._lock:
                self._size -= sum(map(len, lines))
                self._lost += unreported
                self.lost_lines += min(unreported, len(lines))  # the others were counted before
                self.is_healthy = self._lost == 0
                must_report = self._is_closing and self._lost and lines  # in one more batch
                if self._lines or must_report:
                    continue
                self._has_work.clear()
                self._is_busy = False
                self._is_idle.set()
                if self._is_closing:
                    return


class QueuedFile(ABC):
    """A file that lines are appended to in a thread. A subclass opens it and says how a batch is appended."""

    def __init__(self) -> None:
        self.file: BinaryIO | None = None
        self._queue: LineQueue | None = None
        self._is_moved = False  # whether the file may have been renamed, so that it must be opened anew

    def start(self, file: BinaryIO) -> None:
        """Take over an open file; `put` does nothing before."""
        self.file = file
        self._queue = LineQueue(self._write)

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
        """False while lines are lost."""
        return self._queue is None or self._queue.is_healthy

    @abstractmethod
    def append(self, file: BinaryIO, lines: list[bytes], lost: int) -> int:
        """Append lines, after a report of those lost before. Return how many are lost now. Called in the thread."""

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
            try:
                self.file = self.reopen(self.file)
            except (OSError, ValueError) as error:
                log.error("file.reopen_failed", file=self.file.name, error=summarize_error(error))  # noqa: TRY400
        return self.append(self.file, lines, lost)
