"""Where logs go: to stderr, one line each, and one that it does not take is dropped: no log ever breaks a call."""

import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from threading import RLock
from typing import Any, TextIO

import orjson
import structlog

log = structlog.get_logger()


def write_logs(*, console: bool | None = None, least: int = logging.INFO, for_good: bool = False) -> None:
    """Send logs of this level and above to stderr: coloured on a terminal, else JSON. Libraries' warnings join them.

    `for_good`: nothing changes this any more, which saves looking it up for every line.
    """
    stderr: TextIO | None = sys.stderr  # None in a process that was started without one
    if console is None:
        console = stderr is not None and stderr.isatty()
    for_people: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.dev.ConsoleRenderer(),
        _encoded,
    ]
    lines = _Lines(stderr)
    structlog.configure(
        processors=for_people if console else [_line],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=for_good,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)


def _line(_logger: Any, level: str, fields: MutableMapping[str, Any]) -> bytes:
    """One JSON line; one step, as every request writes one."""
    if fields.get("exc_info"):
        fields = structlog.processors.format_exc_info(_logger, level, fields)
    return orjson.dumps({"timestamp": datetime.now(UTC), "level": level, **fields}, default=str)


def _encoded(_logger: Any, _level: str, line: Any) -> bytes:
    return str(line).encode(errors="backslashreplace")


class _Lines:
    """Writes each line at once or drops it. Nothing is kept back: what a full disk did not take is not tried again."""

    def __init__(self, stream: TextIO | None) -> None:
        file: Any = None if stream is None else stream.buffer
        self._file = getattr(file, "raw", file)
        self._torn = False
        self._lock = RLock()  # what ends in the middle of a line may have something to say itself

    def msg(self, line: bytes) -> None:
        with self._lock, suppress(OSError, ValueError):  # no room, nobody who reads, closed
            rest = b"\n%b\n" % line if self._torn else b"%b\n" % line
            while self._file is not None and rest and (taken := self._file.write(rest)):
                rest = rest[taken:]
                self._torn = bool(rest)  # what comes next begins a line of its own

    debug = info = warning = error = critical = exception = msg


class _ToStructlog(logging.Handler):
    """Logs of libraries, without their tracebacks: those quote what callers sent, keys included."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a library's own slip between its words and what they speak of
            message = str(record.msg)
        log.warning("library.warned", logger=record.name, message=message[:200], error=error)
