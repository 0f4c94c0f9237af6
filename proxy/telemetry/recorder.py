"""Shapes of requests and what became of them, so that new policies can be tried on yesterday's calls.

Every text is replaced by its length. Kept as they are: numbers, booleans, names of fields, the protocol's own words (a
type, a role, the model ...), and the scheme and host of MCP servers and of what `input_urls` judges. What callers fill
as they like (metadata ...) keeps no words. Of the query only `include` is kept, which a policy judges, and of its
values those that the protocol knows. Switched on by [record] only.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import parse_qsl, urlencode

import orjson
import structlog
from pydantic import Field, NonNegativeInt, PositiveInt

from policies.input_urls import HOST, LONGEST_NAME, PLACE, SCHEME, UNSAFE, Step, is_reference, may_refer, references
from proxy.telemetry.audit import append_whole, open_private
from proxy.config.table import Table
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation

log = structlog.get_logger()

CHARS = "$chars"
# Fields whose values are words of the protocol, as far as they look like one.
WORDS = frozenset({"effort", "include", "model", "role", "service_tier", "status", "tool_choice", "truncation", "type"})
SERVER = "server_url"
INCLUDE = "include"
# What may be included, as the protocol knows it: in a query everything else is a text.
# Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-include
INCLUDED = frozenset({
    "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
    "message.input_image.image_url", "message.output_text.logprobs", "reasoning.encrypted_content",
    "web_search_call.action.sources", "web_search_call.results",
})  # fmt: skip
# Schemes that are kept where no host follows: any other word before a colon may be somebody's own.
SCHEMES = frozenset({"blob", "data", "file", "ftp", "http", "https"})
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
        self._file = open_private(self._settings.path)

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
            "request": request_shape(call),
        }
        if queried := list(_included(call.query)):
            line["query"] = {INCLUDE: queried}
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


def request_shape(call: Call) -> Any:
    """The shape of a request, with the scheme and the host of every URL that `input_urls` judges."""
    shape = shape_of(call.body)
    try:
        for path, name, text in references(call.body) if may_refer(call.encoded) else ():
            if is_reference(path, name) and (kept := _address(text)):
                _put(shape, path, kept)
    except PolicyViolation:  # it has more values than the policy looks at, and is refused for that
        pass
    return shape


def _put(shape: Any, path: list[Step], address: str) -> None:
    """Note the address at a place, unless a name on the way to it was replaced."""
    for step in path:
        if isinstance(step, str) and not _WORD.fullmatch(step):
            return
        shape = shape[step]
    shape["address"] = address


def shape_of(value: Any, field: str = "") -> Any:
    """A JSON value with every text in it replaced by {"$chars": its length}, and those of MCP servers by their host."""
    if isinstance(value, dict):
        return {
            _name(name, number): shape_of(inner, field if field in FREE else name)
            for number, (name, inner) in enumerate(value.items())
        }
    if isinstance(value, list):
        return [shape_of(inner, field) for inner in value]
    if not isinstance(value, str) or (field in WORDS and _WORD.fullmatch(value)):
        return value
    if field == SERVER and (kept := _address(value)):
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


def query_of(shape: Any) -> str:
    """A query string of what was recorded of one."""
    return urlencode([(f"{INCLUDE}[]", value) for value in value_of(shape.get(INCLUDE, []))])


def _included(query: str) -> Iterator[Any]:
    """The shapes of the values that `include` has in a query, in whatever way it writes a list."""
    for name, values in parse_qsl(query):
        if name.partition("[")[0] == INCLUDE:
            yield from (value if value in INCLUDED else {CHARS: len(value)} for value in values.split(",") if value)


def _address(text: str) -> str:
    """Of a text nothing but a scheme, a host and a port, and the same fault that policies find with it, if any."""
    match = SCHEME.match(text)
    if match is None:
        return ":" if ":" in text else ""
    scheme = match[1].lower()
    if scheme == "data":
        return "data:,"
    place = None if UNSAFE.search(text) else PLACE.match(text, match.end())
    if place is not None and "@" in place[1]:
        return f"{scheme}://@/"
    host = HOST.fullmatch(re.split("[?#]", place[1], maxsplit=1)[0]) if place else None
    if host is None or len(host[0]) > LONGEST_NAME:
        return f"{scheme}:" if scheme in SCHEMES else ":"
    return f"{scheme}://{host[0].lower()}/"
