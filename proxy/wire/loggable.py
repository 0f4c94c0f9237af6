"""Prepares texts and exceptions from outside for the log: bounded, printable, without foreign messages.

The message of an exception may quote what a caller or an upstream sent, so only its type and place are logged.
"""

import errno
import re
from collections.abc import Iterator
from itertools import islice
from traceback import walk_tb
from typing import TypeVar

from proxy.wire.key_patterns import LONGEST_CHARS as LONGEST_KEY_CHARS
from proxy.wire.key_patterns import redact_keys

LONGEST_CHARS = 128
MAX_MESSAGE_CHARS = 200
MAX_ERRORS = 8
"""How many errors that caused one another are named."""
_SERVER_CODE = re.compile("(?:WRONGTYPE|READONLY|NOAUTH|WRONGPASS|NOPERM|OOM|LOADING|MISCONF|MOVED|CLUSTERDOWN)(?= )")
"""What begins an error of Redis; other words could be a secret."""
MAX_FRAMES = 32
"""How many frames of each error are named, from where it was raised."""
_PLACES = "headgate_places"
"""The attribute of an error that has the places of a traceback that was dropped."""

E = TypeVar("E", bound=BaseException)


def printable(text: str, max_chars: int = LONGEST_CHARS) -> str:
    """Return the beginning of a text without keys, with control characters and what else is not printable escaped."""
    text = clip(text, max_chars)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)[:max_chars]


def in_ascii(text: str, max_chars: int = LONGEST_CHARS) -> str:
    """Return the beginning of a text without keys, with all that is not ASCII escaped, so that characters that look
    alike differ.
    """
    return clip(text, max_chars).encode("ascii", "backslashreplace").decode()


def clip(text: str, max_chars: int) -> str:
    """Return the beginning of a text without keys. Every text from outside that is shown passes through this."""
    return redact_keys(text[: max_chars + LONGEST_KEY_CHARS])[:max_chars]


def short_message(error: Exception) -> str:
    """Return the beginning of the message of an error whose words are the gateway's own, such as a StoreError."""
    return printable(str(error), MAX_MESSAGE_CHARS)


def summarize_error(error: BaseException) -> str:
    """Return the type of an error and where it was raised: "OSError ENOSPC at wire/a.py:12 in read"."""
    places = _places(error)
    return f"{_name(error)} at {places[-1]}" if places else _name(error)


def without_frames(error: E) -> E:
    """Return an error without its traceback, whose frames keep what they worked on. Its places can still be named.

    What keeps an error that is raised later is often in these frames itself: a cycle.
    """
    error.__dict__[_PLACES] = _places(error)
    return error.with_traceback(None)


def name_failure(error: BaseException) -> str:
    """Return what a library says of a failure, without its text: its type and its code.

    "OSError ENOSPC", "OperationalError SQLITE_FULL", "ResponseError WRONGTYPE", "ConnectionError (OSError EPIPE)".
    """
    cause = error.__cause__ or error.__context__
    behind = f" ({_name(cause)})" if isinstance(cause, OSError) and not isinstance(error, OSError) else ""
    return f"{_name(error)}{behind}"


def describe_crash(error: BaseException) -> str:
    """Return the type of an error, the frames it passed, and the same of what caused it; no message and no value."""
    return "\n".join(_lines(error))


def _lines(error: BaseException) -> Iterator[str]:
    for number, cause in enumerate(islice(_causes(error), MAX_ERRORS)):
        yield f"{'caused by ' if number else ''}{_name(cause)}"
        yield from (f"  {place}" for place in _places(cause)[-MAX_FRAMES:])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it groups, and what caused it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
        waiting.append(cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__))


def _name(error: BaseException) -> str:
    """The type of an error, with the code of the system, of SQLite or of a server if it has one."""
    code: object = getattr(error, "sqlite_errorname", None)
    if isinstance(error, OSError) and error.errno is not None:
        code = errno.errorcode.get(error.errno)
    elif code is None and error.args and (found := _SERVER_CODE.match(str(error.args[0])[:32])):
        code = found[0]
    return type(error).__name__ if code is None else f"{type(error).__name__} {code}"


def _places(error: BaseException) -> list[str]:
    """File, line and function of the frames; the end of a path names the module, wherever it is installed."""
    frames = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)]
    places = [f"{'/'.join(code.co_filename.split('/')[-3:])}:{line} in {code.co_name}" for code, line in frames]
    return [*error.__dict__.get(_PLACES, ()), *places]
