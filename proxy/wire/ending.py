"""Ends a stream that does not end by itself: what must follow the events that were sent so far.

Open items are closed as they stand, cut short. Then a failure is told by the union-form `error` event and
`response.failed`, a stop by `response.incomplete`. Numbers go on from the last event sent; nothing is ever fabricated
as completed.
Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from proxy.wire.errors import HeadgateError, envelope
from proxy.wire.event import TERMINALS, Event, data_of, frame_of
from proxy.wire.items import JSON
from proxy.wire.sse import BLANK_LINE

# What an event tells of an open item. A delta adds to a text of the item itself ...
TEXTS = {
    "response.function_call_arguments.delta": "arguments",
    "response.mcp_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
    "response.code_interpreter_call_code.delta": "code",
}
# ... or to one of its parts: the list that the part stands in, the key of its text, and how a part begins.
PART_TEXTS: Mapping[str, tuple[str, str, JSON]] = {
    "response.output_text.delta": ("content", "text", {"type": "output_text", "annotations": [], "logprobs": []}),
    "response.refusal.delta": ("content", "refusal", {"type": "refusal"}),
    "response.reasoning_text.delta": ("content", "text", {"type": "reasoning_text"}),
    "response.reasoning_summary_text.delta": ("summary", "text", {"type": "summary_text"}),
}
# A part comes empty before its texts, and whole after them.
PARTS = {
    "response.content_part.added": "content",
    "response.content_part.done": "content",
    "response.reasoning_summary_part.added": "summary",
    "response.reasoning_summary_part.done": "summary",
}


class Progress:
    """How far a stream has come. Show it each batch before that is sent; deltas are parsed only if it must be ended."""

    def __init__(self) -> None:
        self.started = False  # whether anything was sent: before that an error is still an HTTP status
        self.terminal: Event | None = None
        self._created: Event | None = None
        self._told = False  # whether an error was already told, in the upstream's own words
        self._numbered = b""  # the last frames that carry a number
        self._open: dict[int, bytearray] = {}  # by output_index: all frames since the item was added
        self._done: dict[int, Mapping[str, Any]] = {}  # by output_index

    def see(self, batch: Sequence[Event]) -> None:
        for event in batch:
            if event.type == "response.output_item.added":
                self._open[_index(event.data)] = bytearray()
            for frames in self._open.values():
                frames.extend(event.frame)
            if event.type == "response.output_item.done":
                self._open.pop(_index(event.data), None)
                self._done[_index(event.data)] = event.data.get("item") or {}
            elif event.type == "response.created":
                self._created = event
            elif event.type in TERMINALS:
                self.terminal = event
            elif event.type == "error":
                self._told = True
            self.started = self.started or event.frame != b""
            if b'"sequence_number"' in event.frame:
                self._numbered = event.frame

    def failed(self, error: HeadgateError) -> list[Event]:
        """The events that tell of a failure in the middle of a stream; an error is told once.

        Open items are closed first: there are readers that hear nothing more once they have heard of an error.
        """
        closed = self._closed()
        number = self._next_number() + len(closed)
        response = self._response("failed") | {"error": {"code": "server_error", "message": error.message}}
        if self._told:
            return [*closed, self._end(number, response)]
        shape: JSON = envelope(error)["error"]  # type: ignore[assignment]
        flat = {"code": shape["code"], "message": shape["message"], "param": shape["param"]}
        told = {"type": "error", "sequence_number": number, **flat, "error": shape}
        return [*closed, _event("error", told), self._end(number + 1, response)]

    def stopped(self, reason: str) -> list[Event]:
        """The events that end a stream early and cleanly: open items cut short, then `response.incomplete`."""
        closed = self._closed()
        response = self._response("incomplete") | {"incomplete_details": {"reason": reason}}
        return [*closed, self._end(self._next_number() + len(closed), response)]

    def _closed(self) -> list[Event]:
        """The events that close what is open as it stands; its items are done with that."""
        events = []
        for number, (index, frames) in enumerate(sorted(self._open.items()), self._next_number()):
            item = _cut_short(bytes(frames), index)
            done = {"type": "response.output_item.done", "sequence_number": number, "output_index": index, "item": item}
            events.append(_event("response.output_item.done", done))
            self._done[index] = item
        return events

    def _response(self, status: str) -> JSON:
        begun = self._created.response if self._created else {}
        return {
            "object": "response",
            **begun,
            "status": status,
            "output": [item for _, item in sorted(self._done.items())],
        }

    @staticmethod
    def _end(number: int, response: JSON) -> Event:
        kind = f"response.{response['status']}"
        return _event(kind, {"type": kind, "sequence_number": number, "response": response})

    def _next_number(self) -> int:
        """One more than the number of the last event that has one."""
        for frame in reversed(BLANK_LINE.split(self._numbered)):
            number = _data(frame).get("sequence_number")
            if isinstance(number, int):
                return number + 1
        return 0


def stopped_body(batch: Sequence[Event], passed: Sequence[Event], reason: str) -> list[Event]:
    """The body of a reply that came whole and is cut short before the event at which a policy said stop."""
    items = [event.data.get("item") for event in passed if event.type == "response.output_item.done"]
    cut = {"status": "incomplete", "output": items, "incomplete_details": {"reason": reason}, "completed_at": None}
    response = {**batch[-1].response, **cut}
    kind = "response.incomplete"
    return [Event(kind, orjson.dumps(response), {"type": kind, "response": response})]


def _event(kind: str, data: JSON) -> Event:
    return Event(kind, frame_of(kind, data), data)


def _index(data: Mapping[str, Any], name: str = "output_index") -> int:
    index = data.get(name)
    return index if isinstance(index, int) else 0


def _data(frame: bytes) -> Mapping[str, Any]:
    """The data of a frame that nobody has looked at yet; of one that holds none, such as a comment, nothing."""
    try:
        return data_of(frame)
    except ValueError:
        return {}


def _cut_short(frames: bytes, index: int) -> JSON:
    """The open item of this index as it stands, from frames among which its own are: all that was told of it so far."""
    item: JSON = {}
    parts: dict[tuple[str, int], JSON] = {}
    for frame in BLANK_LINE.split(frames):
        data = _data(frame)
        if _index(data) != index:
            continue  # items may be open side by side
        kind, delta = str(data.get("type")), data.get("delta")
        if kind == "response.output_item.added" and isinstance(data.get("item"), dict):
            item = data["item"]
        elif kind in PARTS and isinstance(data.get("part"), dict):
            name = PARTS[kind]
            parts[name, _index(data, f"{name}_index")] = data["part"]
        elif kind in PART_TEXTS and isinstance(delta, str):
            name, key, empty = PART_TEXTS[kind]
            part = parts.setdefault((name, _index(data, f"{name}_index")), dict(empty))
            part[key] = str(part.get(key) or "") + delta
        elif kind in TEXTS and isinstance(delta, str):
            item[TEXTS[kind]] = str(item.get(TEXTS[kind]) or "") + delta
    for name in sorted({name for name, _ in parts}):
        item[name] = [parts[place] for place in sorted(parts) if place[0] == name]
    return item | {"status": "incomplete"}
