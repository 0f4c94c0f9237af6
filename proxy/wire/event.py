"""What a backend sends back: a reply, which is one JSON body or batches of events.

An event knows its JSON and its server-sent form; which of the two is written is decided by the sender. Bytes that were
received, as frames of a stream or as messages of a WebSocket, are kept as they are and forwarded untouched.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import orjson
from msgspec import Struct
from msgspec.structs import replace

from proxy.wire.bounds import NARROW_BYTES, SEPARATORS, VALUE_BYTES, parsed_size
from proxy.wire.encoded import encode
from proxy.wire.large_json import DENSE_BYTES, dumps, loads, loads_in_thread, loads_leniently
from proxy.wire.sse_frame import frame_of, payload_of

# Source: https://platform.openai.com/docs/api-reference/responses-streaming (the last event of a response)
TERMINALS = frozenset({"response.completed", "response.incomplete", "response.failed"})
# The types that the gateway follows in every stream: what it needs to end a broken one as the protocol requires.
FOLLOWED = TERMINALS | {
    "response.created", "response.queued", "response.in_progress", "response.output_item.added",
    "response.output_item.done", "error",
}  # fmt: skip


MAX_VALUES = 10_000_000
"""The most values of an event that are counted for its memory; parsers accept fewer."""
SMALL_BYTES = 4096
"""The largest payload, in bytes, that is parsed to find a type that is not its first key."""
_TYPE_FIRST = re.compile(rb'\s*+\{\s*+"type"\s*+:\s*+"([A-Za-z0-9_.:/-]{1,128})"\s*+[,}]')


class Event:
    """One event of a type that is followed, received as a frame (`sse`) or a message (`payload`), or composed here
    (`data`).
    """

    __slots__ = ("_data", "_payload", "_sse", "parsed_bytes", "received_bytes", "type")

    def __init__(
        self, type: str, sse: bytes | None = None, data: Mapping[str, Any] | None = None,  # noqa: A002
        *, payload: bytes | None = None,
    ) -> None:  # fmt: skip
        self.type = type
        self._sse = sse
        self._data = data
        self._payload = payload
        self.received_bytes = len(sse or payload or b"")
        """How long the frame or message is; 0 for an event that was composed here and is not encoded yet."""
        self.parsed_bytes = 0  # what `count_parsed` has returned

    def count_parsed(self) -> int:
        """Return about how many bytes of memory `data` takes; 0 for an event that was composed and is not encoded.

        Only the first time takes long, for a large event.
        """
        if not self.parsed_bytes and (raw := self._sse or self._payload):
            size = len(raw)
            if size <= NARROW_BYTES:  # as `parsed_size`, without three calls for each of these events
                self.parsed_bytes = size + VALUE_BYTES * (1 + size - len(raw.translate(None, SEPARATORS)))
            else:
                self.parsed_bytes = parsed_size(raw, MAX_VALUES)[1] - size
        return self.parsed_bytes

    @property
    def data(self) -> Mapping[str, Any]:
        """The event's JSON object, parsed at the first access. Raises ValueError when the frame holds none."""
        if self._data is None:
            self._data = parse_leniently(self.json)
        return self._data

    def without_data(self) -> "Event":
        """Return the event as it was received, to be parsed again when it is read.

        What a response object is parsed to takes many times as much memory as its frame. One that was composed stays as
        it is, and so does a long one, which would take long to parse.
        """
        if self._data is None or not 0 < self.received_bytes < DENSE_BYTES:
            return self
        return Event(self.type, self._sse, payload=self._payload)

    @property
    def json(self) -> bytes:
        """The event's JSON object as bytes: those received, or the encoding of `data`."""
        if self._payload is not None:
            return self._payload
        return orjson.dumps(self._data) if self._sse is None else payload_of(self._sse)

    @property
    def raw(self) -> bytes:
        """The event as it was received; one that was composed here as a frame."""
        return self._sse or self._payload or self.sse

    @property
    def sse(self) -> bytes:
        """The event as one server-sent frame, its blank line included."""
        return self.encode(0) if self._sse is None else self._sse

    def encode(self, size_bytes: int) -> bytes:
        """Return the same, encoded now if it is not yet; `size_bytes` is about how long it is."""
        if self._payload is not None:
            self._sse, self._payload = frame_of(self.type, self._payload), None  # a large one is kept once
        elif self._sse is None:
            self._sse = b"".join((b"event: ", self.type.encode(), b"\ndata: ", dumps(self._data, size_bytes), b"\n\n"))
        self.received_bytes = len(self._sse)
        return self._sse

    def payloads(self) -> Iterator[bytes]:
        """The JSON of this one event; a Run has many."""
        yield self.json

    @property
    def response(self) -> Mapping[str, Any]:
        """The response object that a lifecycle event carries; empty for any other event."""
        data = self.data if self._data is None else self._data
        response = data.get("response")
        return response if isinstance(response, dict) else {}

    def __repr__(self) -> str:
        return f"Event({self.type!r}, {self.json!r})"


class Run:
    """Consecutive frames of types that are not followed, kept as one slice of the bytes received."""

    __slots__ = ("raw", "sse")

    SEPARATOR = b""  # between the parts of one run
    type = ""

    def __init__(self, sse: bytes) -> None:
        self.sse = self.raw = sse

    @property
    def received_bytes(self) -> int:
        """How long the frames are together."""
        return len(self.sse)

    def payloads(self) -> Iterator[bytes]:
        """The payload of each frame that has one; comments have none."""
        lines: list[bytes] = []
        for line in (*self.sse.splitlines(), b""):
            if line.startswith(b"data:"):
                lines.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif not line and lines:
                if payload := lines[0] if len(lines) == 1 else b"\n".join(lines):
                    yield payload
                lines = []

    def __repr__(self) -> str:
        return f"Run({self.sse!r})"


class MessageRun(Run):
    """Consecutive messages of a WebSocket of types that are not followed: `raw` has the JSON text of each in a line."""

    __slots__ = ("_frames",)

    SEPARATOR = b"\n"

    def __init__(self, lines: bytes) -> None:
        self.raw = lines
        self._frames: bytes | None = None

    @property
    def sse(self) -> bytes:  # type: ignore[override]  # it is only read, and few senders need it
        """The messages as frames, composed at the first access."""
        if self._frames is None:
            self._frames = b"".join([frame_of(event_type(line), line) for line in self.raw.split(b"\n")])
        return self._frames

    @property
    def received_bytes(self) -> int:
        return len(self.raw)

    def payloads(self) -> Iterator[bytes]:
        yield from self.raw.split(b"\n")

    def __repr__(self) -> str:
        return f"MessageRun({self.raw!r})"


Batch = Sequence[Event | Run]
"""The events and runs of one read from the network, in order."""
type_of: Callable[[Event | Run], str] = attrgetter("type")
"""Returns the type of an event; "" for a run."""


class Reply(Struct):
    """The one kind of answer: a status, headers, and either a JSON body or batches of events.

    Batches are read once; the code that opened the reply also ends the work behind it. `response` is the object that a
    successful body holds.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | None = None
    batches: AsyncIterator[Batch] | None = None
    response: Mapping[str, Any] | None = None

    def with_fields(self, **fields: Any) -> "Reply":
        """Return the reply with other fields."""
        return replace(self, **fields)


class Stop(Exception):  # it ends a reply and is not an error
    """Raised by a reply check: end this reply cleanly before the event that was checked."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def response_reply(response: Mapping[str, Any], headers: Mapping[str, str], body: bytes | None = None) -> Reply:
    """Return the successful reply with a response object; `body` is its encoding as received."""
    return Reply(200, headers, body=encode(response) if body is None else body, response=response)


def event_type(payload: bytes) -> str:
    """Return the type of an event; "" for one that is not JSON, or is large and has another key before its type."""
    if (first := _TYPE_FIRST.match(payload)) is not None:
        return first[1].decode()
    if len(payload) > SMALL_BYTES:
        return ""
    try:
        kind = parse_leniently(payload).get("type")
    except ValueError:
        return ""
    return kind if isinstance(kind, str) and kind.isprintable() else ""


def parse_payload(payload: bytes) -> Mapping[str, Any]:
    """The JSON object in a payload. Raises ValueError when it is not an object."""
    data = loads(payload) if len(payload) < DENSE_BYTES else loads_in_thread(payload)
    if not isinstance(data, dict):
        raise ValueError("an event's data is not an object")  # noqa: TRY004  one kind of error for one kind of fault
    return data


def parse_leniently(payload: bytes) -> Mapping[str, Any]:
    """Return the JSON object in a payload, also of JSON that clients read although it is not strictly valid.

    Raises ValueError for what is not an object even so.
    """
    try:
        data = orjson.loads(payload) if len(payload) < DENSE_BYTES else loads_in_thread(payload)
    except orjson.JSONDecodeError:
        data = loads_leniently(payload)
    if not isinstance(data, dict):
        raise ValueError("an event's data is not an object")  # noqa: TRY004  as in parse_payload
    return data


def data_of(unit: Event | Run) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON object of each event of a unit; frames without one are skipped."""
    if isinstance(unit, Event):
        yield unit.data
        return
    for payload in unit.payloads():
        try:
            yield parse_leniently(payload)
        except ValueError:
            continue


def has_terminal(batch: Batch) -> bool:
    """Return whether a batch ends the stream."""
    return not TERMINALS.isdisjoint(map(type_of, batch))


def ends_with_output(batch: Batch) -> bool:
    """Return whether a batch ends the stream, and its last event has the items of the response."""
    last = batch[-1] if batch else None
    return isinstance(last, Event) and last.type in TERMINALS and bool(last.response.get("output"))


def terminal_type(status: object) -> str:
    """Return the type of the terminal event of a response with this status."""
    kind = f"response.{status}"
    return kind if kind in TERMINALS else "response.completed"
