"""Logs to stderr, one line each. A line that cannot be written is dropped; logging never fails or delays a request.

A server writes its lines in a thread, as the pipe behind stderr may have no reader. The next line that can be written
says how many were lost.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from select import PIPE_BUF
from threading import RLock
from typing import Any, Literal, TextIO

import orjson
import structlog

from proxy.telemetry.console import render
from proxy.telemetry.files import LineQueue
from proxy.wire.loggable import describe_crash, printable

log = structlog.get_logger()


class LogTally:
    """What was logged, and what was lost of it, since the start."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()
        """How often something other than information was logged: by event and level."""
        self.losses: dict[str, Callable[[], int]] = {}
        """What returns how much of an output was lost, by its name."""

    def count(self, _logger: Any, level: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Count one line, as a processor of structlog."""
        if level != "info":
            self.events[str(fields.get("event")), level] += 1
        return fields


def configure_logs(
    *, console: bool | None = None, level: int = logging.INFO, final: bool = False, tally: LogTally | None = None
) -> Callable[..., object]:
    """Send logs of this level and above to stderr: coloured on a terminal, else JSON, with libraries' warnings.

    `final`: the configuration of a server, which will not change again; its lines are written in a thread. Returns the
    function that writes what is queued, within 2 seconds or those given; call it before the process exits.
    """
    stderr: TextIO | None = sys.stderr  # None in a process without standard streams
    if console is None:
        console = stderr is not None and stderr.isatty()
    tally = LogTally() if tally is None else tally
    writer: _QueuedWriter | _LineWriter = _LineWriter(stderr)
    if final:
        writer = _QueuedWriter(stderr)
        tally.losses["log"] = writer.count_lost
    logger = structlog.make_filtering_bound_logger(level)
    structlog.configure(
        processors=_processors(tally, console=console),
        wrapper_class=_with_direct_info(logger, tally) if final and not console and level <= logging.INFO else logger,
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=final,
    )
    logging.basicConfig(handlers=[_LibraryHandler()], level=logging.WARNING, force=True)
    return writer.close


def choose_format(name: Literal["auto", "json", "text"], tally: LogTally) -> None:
    """Write the lines from now on in this format. Call it before the first line of a server."""
    if name != "auto":
        config = structlog.get_config()
        if name == "text":
            config["wrapper_class"] = getattr(config["wrapper_class"], "plain", config["wrapper_class"])
        config["processors"] = _processors(tally, console=name == "text")
        structlog.configure(**config)


def _with_direct_info(logger: type[Any], tally: LogTally) -> type[Any]:
    """Return a class of loggers whose `info`, which every request calls, takes a third of the calls of structlog's own.

    It passes the one processor of JSON lines.
    """

    def info(self: Any, event: str, **fields: Any) -> Any:
        if "exc_info" in fields:
            return self._logger.msg(_encode_json(tally, None, "info", {**self._context, **fields, "event": event}))
        line = {"timestamp": datetime.now(UTC), "level": "info", **self._context, **fields, "event": event}
        return self._logger.msg(orjson.dumps(line, default=str))

    return type("ServerLogger", (logger,), {"info": info, "plain": logger})


def _processors(tally: LogTally, *, console: bool) -> list[Any]:
    if not console:
        return [partial(_encode_json, tally)]
    add_time = structlog.processors.TimeStamper(fmt="iso", utc=True)
    return [tally.count, structlog.processors.add_log_level, add_time, _describe_error, render, _encode_text]


def _encode_json(tally: LogTally, _logger: Any, level: str, fields: MutableMapping[str, Any]) -> bytes:
    """One JSON line, in a single processor because every request writes one."""
    if level != "info":
        tally.count(_logger, level, fields)
    if "exc_info" in fields:
        fields = _describe_error(_logger, level, fields)
    return orjson.dumps({"timestamp": datetime.now(UTC), "level": level, **fields}, default=str)


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
        self._is_torn = False  # whether the last line was written in part
        self._lock = RLock()  # a signal handler may log in the middle of a line

    def write(self, lines: bytes) -> bytes:
        """Write lines; return the rest that could not be written."""
        rest = lines
        with self._lock, suppress(OSError, ValueError):  # a full disk, a pipe without a reader, a closed stream
            rest = b"\n" + lines if self._is_torn else lines
            while self._file is not None and rest and (written := self._file.write(rest)):
                rest = rest[written:]
                self._is_torn = bool(rest)  # the next line must then begin with a line end
        return rest[-len(lines) :]  # without the line end before them

    def msg(self, line: bytes) -> None:
        self.write(line + b"\n")

    debug = info = warning = error = critical = exception = msg

    def close(self, _timeout_s: float = 2.0) -> None:
        """Nothing is queued."""


class _QueuedWriter:
    """Writes lines in a thread, through a bounded queue."""

    def __init__(self, stream: TextIO | None) -> None:
        self._writer = _LineWriter(stream)
        self._queue = LineQueue(self._write)
        self.msg = self._queue.put
        self.debug = self.info = self.warning = self.error = self.critical = self.exception = self.msg

    def close(self, timeout_s: float = 2.0) -> None:
        self._queue.close(timeout_s)

    def count_lost(self) -> int:
        return self._queue.lost_lines

    def _write(self, lines: list[bytes], lost: int) -> int:
        if lost:
            report = {"timestamp": datetime.now(UTC), "level": "warning", "event": "log.lines_lost", "count": lost}
            lost = lost if self._writer.write(orjson.dumps(report) + b"\n") else 0
        portions = list(_portions(lines))
        for number, portion in enumerate(portions):
            if rest := self._writer.write(portion):
                return lost + rest.count(b"\n") + sum(each.count(b"\n") for each in portions[number + 1 :])
        return lost


def _portions(lines: list[bytes]) -> Iterator[bytes]:
    """Yield lines with their ends, as many together as a pipe takes at once: other workers write to it as well."""
    portion: list[bytes] = []
    size = 0
    for line in lines:
        if portion and size + len(line) >= PIPE_BUF:
            yield b"\n".join([*portion, b""])
            portion, size = [], 0
        portion.append(line)
        size += len(line) + 1
    if portion:
        yield b"\n".join([*portion, b""])


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
