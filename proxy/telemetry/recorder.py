"""Records the structure of requests and their decisions, so that new policies can be tried on past requests.

Every text is replaced by its length. Unchanged are numbers, booleans, names of fields, the protocol's own words (a
type, a role, the model ...), and scheme and host of MCP servers and of references that `input_urls` checks. Free-form
objects (metadata ...) keep no words. Of the query only `include` is recorded, and of its values those of the protocol.
Enabled by [record] only.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import urlencode

import orjson
import structlog
from pydantic import Field, NonNegativeInt, PositiveInt

from policies.support.urls import (
    AUTHORITY,
    HOST,
    MAX_HOST_CHARS,
    SCHEME,
    UNSAFE,
    Step,
    is_reference,
    may_have_references,
    references,
)
from proxy.config.table import Table
from proxy.context import Caller
from proxy.telemetry.files import QueuedFile, append_lines, open_private
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from proxy.wire.large_json import dumps
from proxy.wire.loggable import summarize_error
from proxy.wire.query import INCLUDE, query_pairs

log = structlog.get_logger()

CHARS = "$chars"
# Fields whose values are words of the protocol, as far as they look like one.
WORDS = frozenset({"effort", "include", "model", "role", "service_tier", "status", "tool_choice", "truncation", "type"})
SERVER = "server_url"
# The values of `include` in the protocol; any other value in a query is a text.
# Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-include
INCLUDED = frozenset({
    "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
    "message.input_image.image_url", "message.output_text.logprobs", "reasoning.encrypted_content",
    "web_search_call.action.sources", "web_search_call.results",
})  # fmt: skip
# Schemes that are recorded where no host follows; another word before a colon may be personal.
SCHEMES = frozenset({"blob", "data", "file", "ftp", "http", "https"})
# Objects whose names are the caller's own: a `role` in them is not a word of the protocol.
FREE_FORM = frozenset({
    "arguments", "attributes", "headers", "metadata", "output_schema", "parameters", "schema", "variables",
})  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9_.:/-]{1,64}", re.ASCII)


class RecordTable(Table):
    path: Path
    """The file that lines of JSON are appended to."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of requests that is recorded, sampled at random."""
    max_bytes: PositiveInt = 67_108_864
    """The size at which the file is rotated to path.1, in bytes."""
    keep: NonNegativeInt = 3
    """How many rotated files are kept."""


class Recorder(QueuedFile):
    """Appends one line for a request, in a thread. A full or slow disk costs lines, never a call."""

    def __init__(self, settings: RecordTable) -> None:
        super().__init__()
        self._settings = settings

    def open(self) -> None:
        """Raises OSError if the file cannot be written."""
        self.start(open_private(self._settings.path))

    def write(self, call: Call, caller: Caller, code: str | None) -> None:
        """Queue a request and the code of its refusal, None if it passed."""
        if random.random() >= self._settings.share:  # noqa: S311  a sample, not a secret
            return
        line = {
            "caller": caller.name,
            "team": caller.team,
            "decision": "allowed" if code is None else "denied",
            "code": code,
            "request": redact_request(call),
        }
        if included := list(_included(call.query)):
            line["query"] = {INCLUDE: included}
        try:
            self.put(dumps(line, 2 * call.size_bytes))  # each text becomes an object
        except orjson.JSONEncodeError as error:  # a redacted request is one level deeper than the request
            log.warning("record.write_failed", error=summarize_error(error))

    def reopen(self, file: BinaryIO) -> BinaryIO:
        """Return the file that is at the path now. Raises OSError."""
        new = open_private(self._settings.path)
        file.close()
        return new

    def append(self, file: BinaryIO, lines: list[bytes], lost: int) -> int:
        """Append lines and rotate the file. A sample needs no account of lost lines beyond the log."""
        written = 0
        try:
            while written < len(lines):
                if file.closed:
                    file = self.file = open_private(self._settings.path)
                until = self._last_that_fits(lines, written, file.tell())
                written += append_lines(file, lines[written:until])
                self.note_success()
                if file.tell() >= self._settings.max_bytes:
                    self._rotate(file)
        except OSError as error:
            if self.fails_anew():
                log.warning("record.write_failed", path=str(self._settings.path), error=error.strerror)
        if lost and not self.is_failing:
            self.note_lost(lost)
            lost = 0
        return len(lines) - written + lost

    def note_lost(self, count: int) -> None:
        """Log how many lines are missing."""
        log.warning("record.lines_lost", path=str(self._settings.path), count=count)

    def _last_that_fits(self, lines: list[bytes], first: int, size: int) -> int:
        """Return the end of the lines, from `first` on, with which a file of this size is full; all if it is not."""
        for number in range(first, len(lines)):
            size += len(lines[number]) + 1
            if size >= self._settings.max_bytes:
                return number + 1
        return len(lines)

    def _rotate(self, file: BinaryIO) -> None:
        """Rename the files; the next line opens a new one. A file that cannot be renamed grows."""
        path = self._settings.path
        files = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, self._settings.keep + 1))]
        try:
            file.close()
            for older, newer in zip(reversed(files), reversed(files[:-1]), strict=False):
                if newer.exists():
                    newer.replace(older)
            if self._settings.keep == 0:
                path.unlink()
        except OSError as error:
            log.warning("record.rotation_failed", path=str(self._settings.path), error=error.strerror)


def redact_request(call: Call) -> Any:
    """Return a request without its texts, with scheme and host of every URL that `input_urls` checks."""
    redacted = redact(call.body)
    try:
        for path, name, text in references(call.body) if may_have_references(call.encoded) else ():
            if is_reference(path, name) and (kept := _address(text)):
                _set_address(redacted, path, kept)
    except PolicyViolation:  # it has more values than the policy walks, and is refused for that
        pass
    return redacted


def _set_address(redacted: Any, path: list[Step], address: str) -> None:
    """Add the address at a path, unless a name on the path was replaced."""
    for step in path:
        if isinstance(step, str) and not _WORD.fullmatch(step):
            return
        redacted = redacted[step]
    redacted["address"] = address


def redact(value: Any, field: str = "") -> Any:
    """Return a JSON value with each text replaced by {"$chars": its length}; MCP servers keep their host."""
    if isinstance(value, dict):
        return {
            _name(name, number): redact(inner, field if field in FREE_FORM else name)
            for number, (name, inner) in enumerate(value.items())
        }
    if isinstance(value, list):
        return [redact(inner, field) for inner in value]
    if not isinstance(value, str) or (field in WORDS and _WORD.fullmatch(value)):
        return value
    if field == SERVER and (kept := _address(value)):
        return {CHARS: len(value), "address": kept}
    return {CHARS: len(value)}


def restore(redacted: Any) -> Any:
    """Return a JSON value with the structure of a redacted one: texts of the same length, made of the letter x."""
    if isinstance(redacted, dict):
        if CHARS in redacted:
            chars = int(redacted[CHARS])
            return str(redacted.get("address", "")).ljust(chars, "x")[:chars]
        return {name: restore(inner) for name, inner in redacted.items()}
    if isinstance(redacted, list):
        return [restore(inner) for inner in redacted]
    return redacted


def _name(name: str, number: int) -> str:
    """A name that is not a plain word becomes one of its length; a private-use character keeps two of them distinct."""
    return name if _WORD.fullmatch(name) else f"{chr(0xF0000 + number % 0x1FFFE)}{'x' * len(name)}"[: len(name)]


def restore_query(redacted: Any) -> str:
    """Return a query string with the values that were recorded."""
    return urlencode([(f"{INCLUDE}[]", value) for value in restore(redacted.get(INCLUDE, []))])


def _included(query: str) -> Iterator[Any]:
    """The redacted values of `include` in a query, in each of the ways in which clients write a list."""
    for name, values in query_pairs(query):
        if name == INCLUDE:
            yield from (value if value in INCLUDED else {CHARS: len(value)} for value in values.split(",") if value)


def _address(text: str) -> str:
    """Scheme, host and port of a text, with the same fault that policies find in it, if any."""
    match = SCHEME.match(text)
    if match is None:
        return ":" if ":" in text else ""
    scheme = match[1].lower()
    if scheme == "data":
        return "data:,"
    place = None if UNSAFE.search(text) else AUTHORITY.match(text, match.end())
    if place is not None and "@" in place[1]:
        return f"{scheme}://@/"
    host = HOST.fullmatch(re.split("[?#]", place[1], maxsplit=1)[0]) if place else None
    if host is None or len(host[0]) > MAX_HOST_CHARS:
        return f"{scheme}:" if scheme in SCHEMES else ":"
    return f"{scheme}://{host[0].lower()}/"
