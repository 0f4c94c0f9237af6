"""Calls of custom tools whose input is written verbatim: models write them only when a grammar makes them.

    <tool_call>
    {"name": "patch", "input":
    *** Begin Patch ...             the input, up to the end of the answer

The input may contain anything, tags included. Such a call is therefore the last thing in its answer and has no closing
tag. It is returned as it arrives, in segments of which only the last is `complete`.
"""

import re
from collections.abc import Mapping

from backends.local.speech.segments import CustomCall, Segment, Text
from backends.local.speech.tool_call_parser import ToolCallParser, partial_tag_length


class RawInputParser:
    """Delegates to another parser until a call with verbatim input begins. `openings`: what precedes it -> its tool."""

    def __init__(self, parser: ToolCallParser, openings: Mapping[str, str]) -> None:
        self._parser = parser
        self._openings = openings
        self._opening = re.compile("|".join(map(re.escape, openings)))
        self._pending = ""
        self._name = ""  # of the tool whose input is read

    def feed(self, text: str) -> list[Segment]:
        if self._name:
            return [CustomCall(self._name, text, complete=False)]
        self._pending += text
        found = self._opening.search(self._pending)
        if found is None:
            end = len(self._pending) - max(partial_tag_length(self._pending, opening) for opening in self._openings)
            decided, self._pending = self._pending[:end], self._pending[end:]
            return self._parser.feed(decided)
        self._name = self._openings[found[0]]
        segments = [*self._parser.feed(self._pending[: found.start()]), *self._parser.close()]
        kept = [segment for segment in segments if not isinstance(segment, Text) or segment.text.strip()]
        return [*kept, CustomCall(self._name, self._pending[found.end() :], complete=False)]

    def close(self, *, truncated: bool = False) -> list[Segment]:
        if self._name:
            return [] if truncated else [CustomCall(self._name, "")]
        return [*self._parser.feed(self._pending), *self._parser.close(truncated=truncated)]
