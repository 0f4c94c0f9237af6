"""Finds tool calls in model output while it is generated: what the parsers of all formats have in common."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from backends.local.speech.segments import (
    CustomCall,
    FunctionCall,
    Segment,
    Text,
    ToolCall,
    ToolKinds,
    parse_call,
    parse_partial_call,
)

IN_STRING = re.compile(r'["\\\x00-\x1f]')
# What changes the depth, begins a string, or is not allowed outside of one.
OUTSIDE_STRING = re.compile(r'["{}\[\]]|[^\s0-9truefalsnE+.,:\-]')


class ToolCallParser(ABC):
    """Splits output into text and calls of `tools`. Output may be fed in chunks of any size.

    Output in place of an expected call that is not a valid call is returned as text. White space around a call
    is dropped, so the end of a text is held back until it is known whether a call follows.

    A call is returned once it is complete. When `constrained` is set, a grammar guarantees that every call becomes
    valid, and arguments are returned as they arrive, in segments of which only the last is `complete`.
    """

    def __init__(self, tools: ToolKinds, tag: str) -> None:
        self.tools = tools
        self.constrained = False
        self.pending = ""  # output that was fed and neither returned nor scanned
        self.opening: str | None = None  # the tag of the open call, with the space before it; None outside of calls
        self.scanner = JsonObjectScanner()  # of the open call
        self.after_call = False
        self._streamed: str | None = None  # the function whose arguments are being streamed; "" when they cannot be
        self._streamed_chars = 0
        self._tag = tag
        self._offset = 0  # of the first character that was not returned

    def feed(self, text: str) -> list[Segment]:
        self.pending += text
        segments: list[Segment] = []
        while True:
            found = self.read_text() if self.opening is None else self.read_call()
            if found is None:
                return segments
            segments += found

    def close(self, *, truncated: bool = False) -> list[Segment]:
        """Return the remaining segments. A call that lacks only its closing tag counts as complete.

        With `truncated` the model was stopped early: a call whose name is known is returned as far as it goes.
        """
        if self.opening is None:
            return [] if self.after_call and self.is_droppable(self.pending) else self.emit_text(self.pending)
        scanned = self.scanner.text + self.pending
        partial = self.parse_truncated(scanned) if truncated else None
        if self._streamed:
            return [] if partial is None or not partial.complete else [FunctionCall(self._streamed, "")]
        return self.emit_text(self.opening + scanned) if partial is None else [partial]

    @abstractmethod
    def read_call(self) -> Sequence[Segment] | None:
        """Continue in the open call. Returns None when more output is needed."""

    def read_text(self) -> Sequence[Segment] | None:
        """Continue up to the next tag that opens a call. Returns None when more output is needed."""
        if self.after_call:
            self.skip(len(self.pending) - len(self.pending.lstrip()))
        before, tag, rest = self.pending.partition(self._tag)
        end = len(before.rstrip()) if tag else self._end_of_text()
        text, self.pending = self.pending[:end], self.pending[end:]
        self.after_call = self.after_call and end == 0
        segments = self.emit_text(text)
        if not tag:
            return segments or None
        self.open_call(self.pending[: len(self.pending) - len(rest)], rest)
        return segments

    def open_call(self, opening: str, pending: str) -> None:
        self.opening, self.pending, self.scanner = opening, pending, JsonObjectScanner()
        self._streamed, self._streamed_chars = None, 0

    def continue_call(self) -> Sequence[Segment] | None:
        """Return the arguments that can be streamed while the object of the open call is incomplete."""
        text, self.pending = self.pending, ""
        if not self.constrained or not text or self._streamed == "":
            return None
        if self._streamed is None:
            partial = self.parse_truncated(self.scanner.text)
            if not isinstance(partial, FunctionCall):
                self._streamed = "" if isinstance(partial, CustomCall) else None
                return None
            self._streamed, text = partial.name, partial.arguments
        self._streamed_chars += len(text)
        return [FunctionCall(self._streamed, text, complete=False)]

    def parse_object(self) -> ToolCall | None:
        """Return the call in the object that has ended, or None."""
        return parse_call(self.scanner.text, self.tools) if self.scanner.complete else None

    def parse_truncated(self, text: str) -> ToolCall | None:
        """Return the call in an object that was cut off; `text` excludes the opening."""
        return parse_partial_call(text, self.tools)

    def close_call(self, call: ToolCall | None, rest: str) -> list[Segment]:
        """End the open call before `rest`. Without a valid call it becomes text, in which another call may begin."""
        opening, scanned, complete = self.opening or "", self.scanner.text, self.scanner.complete
        self.opening, self.scanner, self.after_call = None, JsonObjectScanner(), call is not None
        if self._streamed and isinstance(call, FunctionCall):
            call = FunctionCall(call.name, call.arguments[self._streamed_chars :])
        if call is not None:
            self._offset += len(opening) + len(scanned)
            self.pending = rest
            return [call]
        self.pending = rest if complete else scanned + rest
        return self.emit_text(opening + scanned if complete else opening)

    def emit_text(self, text: str) -> list[Segment]:
        offset = self._offset
        self._offset += len(text)
        return [Text(text, offset)] if text else []

    def is_droppable(self, text: str) -> bool:
        """Whether what remains after a call may be dropped."""
        return not text.strip()

    def skip(self, count: int) -> None:
        """Drop that many pending characters."""
        self._offset += count
        self.pending = self.pending[count:]

    def _end_of_text(self) -> int:
        """Return the position from which the pending output may belong to a call."""
        end = len(self.pending) - partial_tag_length(self.pending, self._tag)
        return len(self.pending[:end].rstrip())


class JsonObjectScanner:
    """Finds the end of the JSON object that a text begins with; `complete` says whether the end was reached.

    It counts brackets and strings and does not check the grammar of JSON: the object may still be invalid.
    """

    def __init__(self) -> None:
        self.complete = False
        self._parts: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def text(self) -> str:
        """Everything that was scanned as part of the object."""
        return "".join(self._parts)

    def scan(self, text: str) -> str | None:
        """Continue. Returns None inside the object; else the text after it, or from where it ceases to be an object."""
        position = 0
        if self._depth == 0:
            position = len(text) - len(text.lstrip())
            if position < len(text) and text[position] != "{":
                return self._end_at(text, position)
        while position < len(text):
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            found = (IN_STRING if self._in_string else OUTSIDE_STRING).search(text, position)
            if found is None:
                break
            position = found.end()
            if not self._accept(found[0]):
                self.complete = self._depth == 0
                return self._end_at(text, position if self.complete else found.start())
        self._parts.append(text)
        return None

    def _accept(self, character: str) -> bool:
        """Whether the object continues after this character."""
        if self._in_string:
            self._in_string = character != '"'
            self._escaped = character == "\\"
            return character in '"\\'
        self._in_string = character == '"'
        self._depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(character, 0)
        return self._depth > 0 and character in '"{}[]'

    def _end_at(self, text: str, position: int) -> str:
        self._parts.append(text[:position])
        return text[position:]


def partial_tag_length(text: str, tag: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a tag."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
