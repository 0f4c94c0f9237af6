"""A call: a request to a model, and the JSON object that the policies check and a backend receives."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.wire.bounds import count_values
from proxy.wire.errors import RequestError
from proxy.wire.fields import refuse_lookalikes
from proxy.wire.query import refuse_body_fields

MAX_MODEL_CHARS = 256
LARGEST_PARSED_AGAIN = 262_144  # bytes: the second parser is slow
TOO_DEEP = "The body is nested too deeply; the limit is 254 levels."


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a model. A change makes a new Call; the body of an existing one is never modified."""

    body: Mapping[str, Any]  # the whole JSON object, unknown fields included
    headers: Mapping[str, str] = field(default_factory=dict)  # those that some backend may see, names in lower case
    query: str = ""  # as received, without the question mark
    operation: str = "create"
    _encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def model(self) -> str:
        model: str = self.body["model"]
        return model

    @property
    def is_stream(self) -> bool:
        return self.body.get("stream") is True

    def with_fields(self, **fields: Any) -> "Call":
        """Return the call with top-level fields of the body set; a field keeps its place among the others."""
        return Call({**self.body, **fields}, self.headers, self.query, self.operation)

    def without_fields(self, *names: str) -> "Call":
        body = {name: value for name, value in self.body.items() if name not in names}
        return Call(body, self.headers, self.query, self.operation)

    @property
    def encoded(self) -> bytes:
        """The body as a backend receives it, encoded once: the object that was checked, not the bytes received."""
        encoded = self._encoded
        if encoded is None:
            encoded = orjson.dumps(self.body)
            object.__setattr__(self, "_encoded", encoded)
        return encoded


def parse_call(
    raw: bytes, *, headers: Mapping[str, str] | None = None, query: str = "", max_values: int = 1_000_000
) -> Call:
    """Parse the body of a request strictly.

    Raises RequestError for anything but one JSON object in UTF-8 whose every value survives the way to a backend: no
    NaN, no number that exceeds a double, no lone surrogate, no duplicate name in an object, at most 254 levels and
    `max_values` values, and no field whose name only resembles one of the protocol's; and for a query that has a field
    of the body. An integer beyond 64 bits is read as a double, by policies and backends alike.
    """
    if count_values(raw, max_values) > max_values:
        raise RequestError(f"The body has too many values; the limit is {max_values}.", code="too_many_values")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise RequestError("The body is JSON, but not an object.", code="invalid_json")
    call = Call(body, headers or {}, query)
    try:
        encoded = call.encoded
    except orjson.JSONEncodeError as error:
        raise RequestError(TOO_DEEP, code="invalid_json") from error
    # A duplicate name leaves at least one colon less after encoding. Colons inside strings count alike on both sides:
    # no encoder escapes a colon, and those that the caller escaped are counted.
    if raw.count(b":") + _escaped_colons(raw) != encoded.count(b":"):
        _refuse_duplicate_names(raw)
    refuse_lookalikes(body)
    if query:
        refuse_body_fields(query)
    _require_model(body)
    _check_references(body)
    if not isinstance(body.get("stream"), bool | None):
        raise RequestError("stream must be a boolean.", code="invalid_type", param="stream")
    return call


def _escaped_colons(raw: bytes) -> int:
    r"""How many colons are written as \u003a. An escaped backslash before u003a is not a colon."""
    count = raw.count(b"\\u003a") + raw.count(b"\\u003A")
    found = raw.find(b"\\\\u003") if count else -1
    while found >= 0:
        before = found
        while raw[before - 1] == 0x5C:
            before -= 1
        if (found - before) % 2 == 0 and raw[found + 6] in b"aA":
            count -= 1
        found = raw.find(b"\\\\u003", found + 6)
    return count


def _refuse_duplicate_names(raw: bytes) -> None:
    """Raises RequestError. A text of moderate size is parsed again to find the name."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise RequestError(f"The body has '{name[:64]}' twice in one object.", code="duplicate_key")
            seen.add(name)

    try:
        if len(raw) <= LARGEST_PARSED_AGAIN:
            json.loads(raw, object_pairs_hook=check)
    except RecursionError as error:  # a value that its duplicate overwrites may be deeper than what is sent
        raise RequestError(TOO_DEEP, code="invalid_json") from error
    raise RequestError("The body has a name twice in one object.", code="duplicate_key")


def _require_model(body: Mapping[str, Any]) -> None:
    model = body.get("model")
    if model is None:
        raise RequestError("Missing required parameter: 'model'.", code="missing_required_parameter", param="model")
    if not isinstance(model, str) or not model:
        raise RequestError("model must be a non-empty string.", code="invalid_type", param="model")
    if len(model) > MAX_MODEL_CHARS:
        message = f"model has {len(model)} characters; the limit is {MAX_MODEL_CHARS}."
        raise RequestError(message, code="invalid_value", param="model")


def _check_references(body: Mapping[str, Any]) -> None:
    """Raises RequestError for ids in a form that the protocol does not have: no owner could be found for them."""
    previous, conversation = body.get("previous_response_id"), body.get("conversation")
    if not isinstance(previous, str | None):
        message = "previous_response_id must be a string."
        raise RequestError(message, code="invalid_type", param="previous_response_id")
    named = conversation.get("id") if isinstance(conversation, dict) else conversation
    if not isinstance(conversation, str | dict | None) or not isinstance(named, str | None):
        message = "conversation must be a string, or an object whose id is a string."
        raise RequestError(message, code="invalid_type", param="conversation")
