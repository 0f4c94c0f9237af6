"""Ends a stream that does not end by itself: what must follow the events that were sent so far.

Failures end in the union-form `error` event and `response.failed`; a stop closes open items and ends in
`response.incomplete`. Numbers go on from the last event sent; nothing is ever fabricated as completed.
Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Mapping, Sequence
from typing import Any

from proxy.wire.compose import JSON
from proxy.wire.errors import HeadgateError, envelope
from proxy.wire.event import TERMINALS, Event, data_of, frame_of


class Progress:
    """How far a stream has come. Show it each batch before that is sent; deltas are parsed only if it must be ended."""

    def __init__(self) -> None:
        self.terminal: Event | None = None
        self._created: Event | None = None
        self._last = b""
        self._open: dict[int, bytearray] = {}  # by output_index: the item's frames so far
        self._done: list[Mapping[str, Any]] = []

    @property
    def started(self) -> bool:
        """Whether anything was sent: before that an error is still an HTTP status."""
        return self._created is not None or self._last != b""

    def see(self, batch: Sequence[Event]) -> None:
        for event in batch:
            if event.type == "response.output_item.added":
                self._open[event.data.get("output_index", 0)] = bytearray()
            for frames in self._open.values():
                frames.extend(event.frame)
            if event.type == "response.output_item.done":
                self._open.pop(event.data.get("output_index", 0), None)
                self._done.append(event.data.get("item") or {})
            elif event.type == "response.created":
                self._created = event
            elif event.type in TERMINALS:
                self.terminal = event
            if event.frame:
                self._last = event.frame

    def failed(self, error: HeadgateError) -> list[Event]:
        """The events that tell of a failure in the middle of a stream."""
        number = self._next_number()
        shape: JSON = envelope(error)["error"]  # type: ignore[assignment]
        flat = {"code": shape["code"], "message": shape["message"], "param": shape["param"]}
        told = {"type": "error", "sequence_number": number, **flat, "error": shape}
        response = self._response("failed") | {"error": {"code": "server_error", "message": error.message}}
        return [_event("error", told), self._end(number + 1, response)]

    def stopped(self, reason: str) -> list[Event]:
        """The events that end a stream early and cleanly: open items cut short, then `response.incomplete`."""
        number = self._next_number()
        events = []
        for index, frames in sorted(self._open.items()):
            item = _cut_short(bytes(frames))
            done = {"type": "response.output_item.done", "sequence_number": number, "output_index": index, "item": item}
            events.append(_event("response.output_item.done", done))
            self._done.append(item)
            number += 1
        response = self._response("incomplete") | {"incomplete_details": {"reason": reason}}
        return [*events, self._end(number, response)]

    def _response(self, status: str) -> JSON:
        begun = self._created.response if self._created else {}
        return {"object": "response", **begun, "status": status, "output": list(self._done)}

    @staticmethod
    def _end(number: int, response: JSON) -> Event:
        kind = f"response.{response['status']}"
        return _event(kind, {"type": kind, "sequence_number": number, "response": response})

    def _next_number(self) -> int:
        """One more than the number of the last event that has one."""
        for frame in reversed(self._last.strip().split(b"\n\n")):
            try:
                number = data_of(frame).get("sequence_number")
            except ValueError:
                continue
            if isinstance(number, int):
                return number + 1
        return 0


def _event(kind: str, data: JSON) -> Event:
    return Event(kind, frame_of(kind, data), data)


def _cut_short(frames: bytes) -> JSON:
    """An open item as it stands, from the frames that built it: text and arguments as far as they came."""
    item: JSON = {}
    texts: dict[int, str] = {}
    for frame in frames.strip().split(b"\n\n"):
        data = data_of(frame) if b"data:" in frame else {}
        kind = data.get("type")
        if kind == "response.output_item.added":
            item = dict(data["item"])
        elif kind == "response.output_text.delta":
            texts[data["content_index"]] = texts.get(data["content_index"], "") + data["delta"]
        elif kind == "response.function_call_arguments.delta":
            item["arguments"] = item.get("arguments", "") + data["delta"]
        elif kind == "response.custom_tool_call_input.delta":
            item["input"] = item.get("input", "") + data["delta"]
    if texts:
        item["content"] = [
            {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            for _, text in sorted(texts.items())
        ]
    return item | {"status": "incomplete"}
