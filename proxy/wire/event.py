"""What comes back: a reply is a status, headers and batches of events."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson

# Source: https://platform.openai.com/docs/api-reference/responses-streaming (the last event of a response)
TERMINALS = frozenset({"response.completed", "response.incomplete", "response.failed"})
# What Headgate itself follows in every stream: enough to end a broken one as the protocol asks.
TRACKED = TERMINALS | {"response.created", "response.output_item.added", "response.output_item.done", "error"}
DONE = "[DONE]"  # the type given to the sentinel that is no event


class Event:
    """One event, or (type "") a run of frames that nobody watches.

    `frame` is what is written to the caller; b"" writes nothing: an event that only policies see.
    """

    __slots__ = ("_data", "frame", "type")

    def __init__(self, type: str, frame: bytes, data: Mapping[str, Any] | None = None) -> None:  # noqa: A002
        self.type = type
        self.frame = frame
        self._data = data

    @property
    def data(self) -> Mapping[str, Any]:
        """The event's JSON object, parsed when somebody first looks. Raises ValueError when the frame holds none."""
        if self._data is None:
            self._data = data_of(self.frame)
        return self._data

    @property
    def response(self) -> Mapping[str, Any]:
        """The response object that a lifecycle event carries."""
        response = self.data.get("response")
        return response if isinstance(response, dict) else {}

    def __repr__(self) -> str:
        return f"Event({self.type!r}, {self.frame!r})"


@dataclass(frozen=True, slots=True)
class Reply:
    """The one kind of answer. Its batches are read once; who opened it closes what stands behind it.

    A reply that is not streamed carries the body's bytes in the frames of its events.
    """

    status: int
    headers: Mapping[str, str]
    batches: AsyncIterator[Sequence[Event]]
    streamed: bool


class Stop(Exception):  # it ends a reply, it is no error
    """Raised by a check of passing events: end this reply cleanly, here, before the event that was looked at."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def payload_of(frame: bytes) -> bytes:
    """What the data lines of one frame say."""
    return b"\n".join(line[5:].removeprefix(b" ") for line in frame.splitlines() if line.startswith(b"data:"))


def data_of(frame: bytes) -> Mapping[str, Any]:
    """The JSON object in the data lines of one frame. Raises ValueError when there is none."""
    data = orjson.loads(payload_of(frame))
    if not isinstance(data, dict):
        raise ValueError("an event's data is not an object")  # noqa: TRY004  one kind of error for one kind of fault
    return data


def frame_of(type: str, data: Mapping[str, Any]) -> bytes:  # noqa: A002
    """The frame of an event. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return b"event: %b\ndata: %b\n\n" % (type.encode(), orjson.dumps(data))


def terminal_type(status: object) -> str:
    """The type of the event that carries a response of this status."""
    return f"response.{status}" if f"response.{status}" in TERMINALS else "response.completed"


class Once:
    """The batches of a reply that came whole: one."""

    __slots__ = ("_given", "batch")

    def __init__(self, batch: Sequence[Event]) -> None:
        self.batch = batch
        self._given = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Event]:
        if self._given:
            raise StopAsyncIteration
        self._given = True
        return self.batch


def body_events(body: bytes) -> list[Event]:
    """A JSON body as events. Raises ValueError when it is not a JSON object."""
    response = orjson.loads(body)
    if not isinstance(response, dict):
        raise ValueError("a response is not an object")  # noqa: TRY004
    return response_events(response, body)


def response_events(response: Mapping[str, Any], body: bytes) -> list[Event]:
    """A response and its bytes as events, so that policies see one shape: the last has the body in its frame."""
    output = response.get("output")
    items = output if isinstance(output, list) else []
    events = [Event("response.created", b"", {"type": "response.created", "response": response})]
    events += [
        Event("response.output_item.done", b"", {"type": "response.output_item.done", "output_index": i, "item": item})
        for i, item in enumerate(items)
    ]
    last = terminal_type(response.get("status"))
    events.append(Event(last, body, {"type": last, "response": response}))
    return events
