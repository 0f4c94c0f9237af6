"""A call: who asks, what for, and the JSON object that was checked and is sent."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.wire.errors import RequestError
from proxy.wire.event import TRACKED
from proxy.wire.names import refuse_lookalikes

# The caller's headers that a backend may see: what tells upstreams of sessions, SDKs and betas, never who asks.
SEEN_BY_BACKENDS = frozenset({
    "openai-beta", "originator", "session-id", "session_id", "thread-id", "user-agent", "x-client-request-id",
    "x-initiator", "x-interaction-type", "x-session-affinity", "x-session-id",
})  # fmt: skip
SEEN_PREFIXES = ("x-codex-", "x-stainless-")
ANSWERED = "answered"  # the note that says that a backend began to answer a call
TOO_DEEP = "The body is nested too deeply; the limit is 254 levels."


Ending = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Callers of one `team` share budgets and cached answers."""

    name: str
    team: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request for a response. A change makes a new Call; the body of an old one is never touched."""

    caller: Caller
    body: Mapping[str, Any]  # the whole JSON object, unknown fields included
    headers: Mapping[str, str]  # those that a backend may see, names in lower case
    query: str = ""  # as received, without the question mark
    cache_control: str = ""  # the request's own Cache-Control
    received: Mapping[str, str] = field(default_factory=dict)  # all headers of the request, for policies' eyes
    notes: dict[str, Any] = field(default_factory=dict)  # what policies remember of it until it ends
    endings: list[Ending] = field(default_factory=list)  # what is done then: who reserved something gives it back
    watched: frozenset[str] = TRACKED  # the types of events that somebody on the way back looks at
    _encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def model(self) -> str:
        model: str = self.body["model"]
        return model

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    def with_fields(self, **fields: Any) -> "Call":
        """The same call with top-level fields of the body set, in the place where they stood."""
        return self._with_body({**self.body, **fields})

    def without_fields(self, *names: str) -> "Call":
        return self._with_body({name: value for name, value in self.body.items() if name not in names})

    def _with_body(self, body: Mapping[str, Any]) -> "Call":
        """What `dataclasses.replace` makes, in half the time: some policies change every call."""
        return Call(
            self.caller, body, self.headers, self.query, self.cache_control, self.received, self.notes, self.endings,
            self.watched,
        )  # fmt: skip

    @property
    def encoded(self) -> bytes:
        """The body as a backend receives it: what the policies saw, never bytes that could be read differently."""
        encoded = self._encoded
        if encoded is None:
            encoded = orjson.dumps(self.body)
            object.__setattr__(self, "_encoded", encoded)
        return encoded


def parse_call(  # noqa: PLR0913  what comes with a request, by name
    caller: Caller,
    raw: bytes,
    *,
    headers: Mapping[str, str],
    query: str = "",
    cache_control: str = "",
    received: Mapping[str, str] | None = None,
    watched: frozenset[str] = TRACKED,
) -> Call:
    """Read the body of a request once, strictly.

    Raises RequestError for anything but one JSON object in UTF-8 whose every value survives the way to a backend:
    no NaN, no number a double cannot hold, no lone surrogate, no name twice in one object, at most 254 levels deep;
    and none whose names only look like the protocol's.
    An integer beyond 64 bits is read as a double, by policies and backends alike.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not JSON that can be read: {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise RequestError("The body is JSON, but not an object.", code="invalid_json")
    call = Call(caller, body, headers, query, cache_control, received or {}, watched=watched)
    try:
        sent = call.encoded
    except orjson.JSONEncodeError as error:
        raise RequestError(TOO_DEEP, code="invalid_json") from error
    # A name given twice leaves one colon less than was read. Colons inside strings count alike on both sides, as
    # nothing encodes a colon, unless the caller itself wrote one as \u003a: then a slower reader decides.
    if raw.count(b":") != sent.count(b":") or b"\\u003" in raw:
        _refuse_repeated_names(raw)
    refuse_lookalikes(body)
    _require_model(body)
    if not isinstance(body.get("stream"), bool | None):
        raise RequestError("stream must be a boolean.", code="invalid_type", param="stream")
    return call


def _refuse_repeated_names(raw: bytes) -> None:
    def once(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise RequestError(f"The body names '{name[:64]}' twice in one object.", code="duplicate_key")
            seen.add(name)

    try:
        json.loads(raw, object_pairs_hook=once)
    except RecursionError as error:  # a value that its own second name hides may be deeper than what is sent
        raise RequestError(TOO_DEEP, code="invalid_json") from error


def _require_model(body: Mapping[str, Any]) -> None:
    model = body.get("model")
    if model is None:
        raise RequestError("Missing required parameter: 'model'.", code="missing_required_parameter", param="model")
    if not isinstance(model, str) or not model:
        raise RequestError("model must be a string that is not empty.", code="invalid_type", param="model")


def seen_by_backends(headers: Mapping[str, str]) -> dict[str, str]:
    """Of a caller's headers those that a backend may see, with names in lower case."""
    return {
        name: value
        for name, value in ((name.lower(), value) for name, value in headers.items())
        if name in SEEN_BY_BACKENDS or name.startswith(SEEN_PREFIXES)
    }
