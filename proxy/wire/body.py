"""Parses the body of a request strictly, so that every reader sees the same object."""

import json
from typing import Any

import orjson

from proxy.wire.bounds import has_more_values
from proxy.wire.errors import RequestError
from proxy.wire.fields import refuse_lookalikes
from proxy.wire.json_parser import TooMuchText
from proxy.wire.large_bytes import WINDOW_BYTES, count_text, find_text
from proxy.wire.large_json import dumps_again, loads_in_thread
from proxy.wire.loggable import clip
from proxy.wire.query import refuse_body_fields

LARGEST_PARSED_AGAIN = 262_144  # bytes: the second parser is slow
TOO_DEEP = "The body is nested too deeply; the limit is 254 levels."


def parse_object(raw: bytes, *, query: str = "", max_values: int = 1_000_000) -> tuple[dict[str, Any], bytes]:
    """Return the JSON object in a body, and its encoding.

    Raises RequestError for anything but one JSON object in UTF-8 whose every value survives the way to a backend: no
    NaN, no number that exceeds a double, no lone surrogate, no duplicate name in an object, at most 254 levels and
    `max_values` values, and no field whose name only resembles one of the protocol's; and for a query that has a field
    of the body. An integer beyond 64 bits is read as a double, by policies and backends alike.
    """
    if has_more_values(raw, max_values):
        raise RequestError(f"The body has too many values; the limit is {max_values}.", code="too_many_values")
    try:
        body = loads_in_thread(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    except TooMuchText as error:
        raise RequestError(f"The body has {error}.", status=413) from error
    if not isinstance(body, dict):
        raise RequestError("The body is JSON, but not an object.", code="invalid_json")
    try:
        encoded = dumps_again(body, raw)
    except orjson.JSONEncodeError as error:
        raise RequestError(TOO_DEEP, code="invalid_json") from error
    # A duplicate name leaves at least one colon less after encoding. Colons inside strings count alike on both sides:
    # no encoder escapes a colon, and those that the caller escaped are counted.
    if encoded != raw and count_text(raw, b":") + _escaped_colons(raw) != count_text(encoded, b":"):
        _refuse_duplicate_names(raw)
    refuse_lookalikes(body)
    if query:
        refuse_body_fields(query)
    return body, encoded


def parse_optional_object(raw: bytes, *, query: str = "", max_values: int = 1_000_000) -> dict[str, Any]:
    """Return the JSON object in a body, an empty one if there is no body. Raises RequestError."""
    return parse_object(raw or b"{}", query=query, max_values=max_values)[0]


def _escaped_colons(raw: bytes) -> int:
    r"""Return how many colons are written as \u003a. An escaped backslash before u003a is not a colon."""
    if (raw.find(b"\\u003") if len(raw) <= WINDOW_BYTES else find_text(raw, b"\\")) < 0:  # almost always
        return 0
    count = count_text(raw, b"\\u003a") + count_text(raw, b"\\u003A")
    found = find_text(raw, b"\\\\u003") if count else -1
    while found >= 0:
        before = found
        while raw[before - 1] == 0x5C:
            before -= 1
        if (found - before) % 2 == 0 and raw[found + 6] in b"aA":
            count -= 1
        found = find_text(raw, b"\\\\u003", found + 6)
    return count


def _refuse_duplicate_names(raw: bytes) -> None:
    """Raises RequestError. A text of moderate size is parsed again to find the name."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise RequestError(f"The body has '{clip(name, 64)}' twice in one object.", code="duplicate_key")
            seen.add(name)

    try:
        if len(raw) <= LARGEST_PARSED_AGAIN:
            json.loads(raw, object_pairs_hook=check)
    except RecursionError as error:  # a value that its duplicate overwrites may be deeper than what is sent
        raise RequestError(TOO_DEEP, code="invalid_json") from error
    raise RequestError("The body has a name twice in one object.", code="duplicate_key")
