"""Logs to stderr, one line each. A line that cannot be written is dropped; logging never fails or delays a request.

A server writes its lines in a thread, as the pipe behind stderr may have no reader. The next line that can be written
says how many were lost.
"""

import fcntl
import logging
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePath
from select import select
from threading import RLock
from typing import Any, Literal, TextIO

import orjson
import structlog

from proxy.telemetry.console import render
from proxy.telemetry.files import LineQueue, count_lines
from proxy.wire.encoded import trimmed
from proxy.wire.key_patterns import has_key, redact_keys
from proxy.wire.loggable import describe_crash, printable

log = structlog.get_logger()

PART_BYTES = 98_304
"""How much is written at a time. A larger block would be new memory each time, with a page fault for each 4 KiB: see
`MAPPED_BYTES`.
"""


class LogTally:
    """What was logged, and what was lost of it, since the start."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()
        """How often something other than information was logged: by event and level."""
        self.losses: dict[str, Callable[[], int]] = {}
        """What returns how much of an output was lost, by its name."""
        self.put_lines: Callable[[bytes], None] | None = None
        """What takes lines of level info that are JSON already, as one text; None: lines are of another format."""

    def count(self, _logger: Any, level: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Count one line, as a processor of structlog."""
        if level != "info":
            self.events[str(fields.get("event")), level] += 1
        return fields


class Logs:
    """What the lines of this process pass through on their way to stderr."""

    def __init__(self, output: "_LineWriter", queue: LineQueue | None, tally: LogTally) -> None:
        self._output = output
        self._queue = queue
        self._tally = tally

    def choose_format(self, name: Literal["auto", "json", "text"]) -> None:
        """Write the lines from now on in this format. Call it before the first line of a server."""
        if name != "auto":
            config = structlog.get_config()
            if name == "text":
                self._tally.put_lines = None
            config["processors"] = _processors(self._tally, console=name == "text")
            structlog.configure(**config)

    def share_stderr(self) -> None:
        """Keep the lines of this process whole although others write to the same stderr."""
        self._output.is_shared = True

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Write what is queued; return False after `timeout_s`."""
        return self._queue is None or self._queue.flush(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, within `timeout_s`. Call it before the process exits."""
        if self._queue is not None:
            self._queue.close(timeout_s)


def configure_logs(
    *, console: bool | None = None, level: int = logging.INFO, final: bool = False, tally: LogTally | None = None
) -> Logs:
    """Send logs of this level and above to stderr: coloured on a terminal, else JSON, with libraries' warnings.

    `final`: the configuration of a server, which will not change again; its lines are written in a thread.
    """
    stderr: TextIO | None = sys.stderr  # None in a process without standard streams
    if console is None:
        console = stderr is not None and stderr.isatty()
    tally = LogTally() if tally is None else tally
    output = _LineWriter(stderr)
    queue = LineQueue(partial(_write_batch, output)) if final else None
    writer = output if queue is None else _QueuedWriter(queue)
    if queue is not None:
        tally.losses["log"] = lambda: queue.lost_lines
        tally.put_lines = queue.put_all if level <= logging.INFO and not console else None
    structlog.configure(
        processors=_processors(tally, console=console),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=final,
    )
    logging.basicConfig(handlers=[_LibraryHandler()], level=logging.WARNING, force=True)
    return Logs(output, queue, tally)


def _processors(tally: LogTally, *, console: bool) -> list[Any]:
    if not console:
        return [partial(_encode_json, tally)]
    return [
        _drop_unknown,
        tally.count,
        structlog.processors.add_log_level,
        _add_time,
        _describe_error,
        _redact,
        render,
        _encode_text,
    ]


def _drop_unknown(_logger: Any, _level: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the fields that are known."""
    return {name: value for name, value in fields.items() if value is not None}


def _add_time(_logger: Any, _level: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the time, if the line is not about an earlier one."""
    time = fields.get("timestamp") or datetime.now(UTC)
    fields["timestamp"] = time.isoformat().replace("+00:00", "Z")
    return fields


def _encode_json(tally: LogTally, _logger: Any, level: str, fields: MutableMapping[str, Any]) -> bytes:
    """One JSON line, in a single processor because every request writes one."""
    if level != "info":
        tally.count(_logger, level, fields)
    if "exc_info" in fields:
        fields = _describe_error(_logger, level, fields)
    fields = _drop_unknown(_logger, level, fields)
    line = orjson.dumps({"timestamp": datetime.now(UTC), "level": level, **fields}, default=str)
    if has_key(line.decode()):
        fields = _redact(_logger, level, fields)
        line = orjson.dumps({"timestamp": datetime.now(UTC), "level": level, **fields}, default=str)
    return trimmed(line)


def _redact(_logger: Any, _level: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the keys in the texts of a line, which may have come from outside."""
    return {name: _without_keys(value) for name, value in fields.items()}


def _without_keys(value: object) -> object:
    """Return a value of a line without keys in its texts."""
    if isinstance(value, dict):
        return {name: _without_keys(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_keys(inner) for inner in value]
    return redact_keys(str(value)) if isinstance(value, str | BaseException | PurePath) else value


def _describe_error(_logger: Any, _level: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace an exception by its type and frames: its message may quote a caller or an upstream."""
    error = fields.pop("exc_info", None)
    error = sys.exc_info()[1] if error is True else error
    if isinstance(error, BaseException):
        fields["exception"] = describe_crash(error)
    return fields


def _encode_text(_logger: Any, _level: str, line: Any) -> bytes:
    return str(line).encode(errors="backslashreplace")


class _LineWriter:
    """Writes lines at once or drops them. A line refused by a full disk is not tried again."""

    def __init__(self, stream: TextIO | None) -> None:
        file: Any = None if stream is None else stream.buffer
        self._file = getattr(file, "raw", file)
        self.is_shared = False
        """Whether other processes write lines to it too."""
        self._is_torn = False  # whether the last line was written in part
        self._lock = RLock()  # a signal handler may log in the middle of a line

    def write(self, lines: bytes, *, waits: bool = False) -> bytes:
        """Write lines; return the rest that could not be written. `waits`: for room, if the stream is non-blocking."""
        rest = lines
        with self._lock, suppress(OSError, ValueError):  # a full disk, a pipe without a reader, a closed stream
            rest = b"\n" + lines if self._is_torn else lines
            while self._file is not None and rest:
                written = self._file.write(rest)
                if written:
                    self._is_torn = rest[written - 1 : written] != b"\n"  # the next line then begins with a line end
                    rest = rest[written:]
                elif written == 0 or not waits:
                    break
                else:
                    select([], [self._file], [])
        return rest[-len(lines) :]  # without the line end before them

    def write_batch(self, lines: list[bytes]) -> int:
        """Write lines that no line of another process is in the middle of. Return how many could not be written."""
        batches: Iterable[list[bytes]] = _in_parts(lines)
        with ExitStack() as stack:
            if self.is_shared and not _takes_all(self._file):
                try:  # a pipe takes PIPE_BUF bytes at a time, which may be less than a line
                    fcntl.lockf(self._file, fcntl.LOCK_EX)
                    stack.callback(fcntl.lockf, self._file, fcntl.LOCK_UN)
                except OSError:  # there are no locks for this file
                    batches = [[line] for text in lines for line in text.split(b"\n")]
            rests = [self.write(b"\n".join([*each, b""]), waits=True) for each in batches]
        return sum(rest.count(b"\n") for rest in rests)

    def msg(self, line: bytes) -> None:
        self.write(line + b"\n")

    debug = info = warning = error = critical = exception = msg


def _in_parts(lines: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Yield lines that are written together: PART_BYTES at most, or one item, which may have several lines."""
    part, size = list[bytes](), 0
    for line in lines:
        size += len(line) + 1
        if part and size > PART_BYTES:
            yield part
            part, size = [], len(line) + 1
        part.append(line)
    if part:
        yield part


def _takes_all(file: Any) -> bool:
    """Whether what several processes write to a file at a time never mixes, however long it is."""
    try:
        return file.isatty() or stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # closed, not a file of the system, none
        return True


class _QueuedWriter:
    """Queues lines, as the logger of structlog."""

    def __init__(self, queue: LineQueue) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = self.exception = queue.put


def _write_batch(output: _LineWriter, lines: list[bytes], lost: int) -> int:
    """Write lines, after a report of those lost before; see `LineQueue`."""
    if lost:
        report = {"timestamp": datetime.now(UTC), "level": "warning", "event": "log.lines_lost", "count": lost}
        return lost + count_lines(lines) if output.write_batch([orjson.dumps(report)]) else output.write_batch(lines)
    return output.write_batch(lines)


class _LibraryHandler(logging.Handler):
    """Logs of libraries without tracebacks and messages of exceptions, which quote what callers sent, keys included."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        text = str(_without_message(record.msg))
        arguments = tuple(map(_without_message, record.args)) if isinstance(record.args, tuple) else record.args
        try:
            message = text % arguments if arguments else text
        except (TypeError, ValueError):  # the library's format string does not fit its arguments
            message = text
        first_line = message.partition("\n")[0]  # asyncio describes a task and its exception in the lines after it
        log.warning("library.warned", logger=record.name, message=printable(first_line, 200), error=error)


def _without_message(value: object) -> object:
    return type(value).__name__ if isinstance(value, BaseException) else value
