"""Shapes of requests and what became of them, so that new policies can be tried on yesterday's calls.

Every text is replaced by its length. Kept as they are: numbers, booleans, names of fields, the protocol's own words (a
type, a role, the model ...), and of addresses the scheme and the host. What callers fill as they like (metadata ...)
keeps no words and no addresses. Switched on by [record] only.
"""

import random
import re
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import urlsplit

import orjson
import structlog
from pydantic import Field, NonNegativeInt, PositiveInt

from proxy.audit import append_whole
from proxy.settings import Table
from proxy.wire.call import Call

log = structlog.get_logger()

CHARS = "$chars"
# Fields whose values are words of the protocol, as far as they look like one.
WORDS = frozenset({"effort", "include", "model", "role", "service_tier", "status", "tool_choice", "truncation", "type"})
ADDRESSES = frozenset({"file_url", "image_url", "server_url"})
# Objects whose names are the caller's own: a `role` in there is no word of the protocol.
FREE = frozenset({
    "arguments", "attributes", "headers", "metadata", "output_schema", "parameters", "schema", "variables",
})  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9_.:/-]{1,64}", re.ASCII)


class RecordTable(Table):
    path: Path
    """The file that lines of JSON are added to."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of requests that is recorded, chosen by chance."""
    max_bytes: PositiveInt = 67_108_864
    """How large the file may grow, in bytes, before it is put aside as path.1."""
    keep: NonNegativeInt = 3
    """How many files that were put aside are kept."""


class Recorder:
    """Writes one line for a request. A disk that is full costs lines, never a call."""

    def __init__(self, settings: RecordTable) -> None:
        self._settings = settings
        self._file: BinaryIO | None = None

    def open(self) -> None:
        """Raises OSError when the file cannot be written."""
        self._file = self._settings.path.open("ab", buffering=0)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, call: Call, code: str | None) -> None:
        """Record a request and the code of its refusal, None when it was let pass."""
        if self._file is None or random.random() >= self._settings.share:  # noqa: S311  a sample, no secret
            return
        line = {
            "caller": call.caller.name,
            "team": call.caller.team,
            "decision": "allowed" if code is None else "denied",
            "code": code,
            "request": shape_of(call.body),
        }
        try:
            append_whole(self._file, orjson.dumps(line) + b"\n")
            if self._file.tell() >= self._settings.max_bytes:
                self._rotate()
        except OSError as error:
            log.warning("record.failed", error=error.strerror)
        except orjson.JSONEncodeError as error:  # a shape is one level deeper than its request
            log.warning("record.failed", error=str(error))

    def _rotate(self) -> None:
        self.close()
        path = self._settings.path
        aside = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, self._settings.keep + 1))]
        try:
            for older, newer in zip(reversed(aside), reversed(aside[:-1]), strict=False):
                if newer.exists():
                    newer.replace(older)
            if self._settings.keep == 0:
                path.unlink()
        finally:
            self.open()


def shape_of(value: Any, field: str = "") -> Any:
    """A JSON value with every text in it replaced by {"$chars": its length}."""
    if isinstance(value, dict):
        return {
            _name(name, number): shape_of(inner, field if field in FREE else name)
            for number, (name, inner) in enumerate(value.items())
        }
    if isinstance(value, list):
        return [shape_of(inner, field) for inner in value]
    if not isinstance(value, str) or (field in WORDS and _WORD.fullmatch(value)):
        return value
    if field in ADDRESSES and (kept := _address(value)):
        return {CHARS: len(value), "address": kept}
    return {CHARS: len(value)}


def value_of(shape: Any) -> Any:
    """A JSON value of this shape: texts of the recorded length, made of the letter x."""
    if isinstance(shape, dict):
        if CHARS in shape:
            chars = int(shape[CHARS])
            return str(shape.get("address", "")).ljust(chars, "x")[:chars]
        return {name: value_of(inner) for name, inner in shape.items()}
    if isinstance(shape, list):
        return [value_of(inner) for inner in shape]
    return shape


def _name(name: str, number: int) -> str:
    """A name that is no word becomes one of its length; a character of private use keeps two of them apart."""
    return name if _WORD.fullmatch(name) else f"{chr(0xF0000 + number % 0x1FFFE)}{'x' * len(name)}"[: len(name)]


def _address(value: str) -> str:
    try:
        parts = urlsplit(value)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    except ValueError:
        return ""
    return f"{parts.scheme}:," if parts.scheme == "data" else f"{parts.scheme}://{host}/" if parts.scheme else ""
