"""Parses the output of one answer: reasoning first, then text and tool calls, up to the first stop sequence."""

from collections.abc import Sequence
from typing import Protocol

from backends.local.speech.reasoning import ReasoningParser
from backends.local.speech.segments import Reasoning, Segment, Text
from backends.local.speech.tool_call_parser import partial_tag_length


class AnswerParser(Protocol):
    """Splits the part of the output that follows the reasoning into text and tool calls."""

    def feed(self, text: str) -> list[Segment]: ...
    def close(self, *, truncated: bool = False) -> list[Segment]: ...


class PlainTextParser:
    """An AnswerParser for a model that may call no tools."""

    def __init__(self) -> None:
        self._offset = 0

    def feed(self, text: str) -> list[Segment]:
        offset, self._offset = self._offset, self._offset + len(text)
        return [Text(text, offset)] if text else []

    def close(self, *, truncated: bool = False) -> list[Segment]:
        return []


class StopSequences:
    """Ends a text where a stop sequence begins, and holds back text that may begin one. `found`: one has occurred."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self.found = False
        self._sequences = sequences
        self._held = Text("", 0)

    def feed(self, segment: Text) -> list[Text]:
        """Return the part of the held and the new text that certainly precedes any stop sequence."""
        text = self._held.text + segment.text
        offset = self._held.offset if self._held.text else segment.offset
        positions = [text.find(sequence) for sequence in self._sequences]
        first = min((position for position in positions if position >= 0), default=-1)
        self.found = first >= 0
        partial = max((partial_tag_length(text, sequence) for sequence in self._sequences), default=0)
        end = first if self.found else len(text) - partial
        self._held = Text("" if self.found else text[end:], offset + end)
        return [Text(text[:end], offset)] if end else []

    def release(self) -> list[Text]:
        """Return the held text, once something other than text follows it, or nothing."""
        held, self._held = self._held, Text("", 0)
        return [held] if held.text else []


class OutputParser:
    """Parses one answer. Output may be fed in chunks of any size; `stopped` says that a stop sequence ended it."""

    def __init__(
        self, parser: AnswerParser, *, reasoning: ReasoningParser | None = None, stop_sequences: tuple[str, ...] = ()
    ) -> None:
        self._parser = parser
        self._reasoning = reasoning
        self._stop = StopSequences(stop_sequences)
        if reasoning is None and not stop_sequences:  # every segment passes as it is
            self.feed = parser.feed  # type: ignore[method-assign]

    @property
    def in_reasoning(self) -> bool:
        return self._reasoning is not None and self._reasoning.is_open

    @property
    def stopped(self) -> bool:
        return self._stop.found

    def feed(self, text: str) -> list[Segment]:
        """Return every segment that is certain by now."""
        reasoning: list[Reasoning] = []
        if self._reasoning is not None:
            reasoning, text = self._reasoning.feed(text)
        return [*reasoning, *self._apply_stop(self._parser.feed(text))]

    def close(self, *, truncated: bool = False) -> list[Segment]:
        """Return the remaining segments; `truncated` says that the model was stopped before its end."""
        reasoning: list[Reasoning] = []
        text = ""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.close()
        segments = self._apply_stop([*self._parser.feed(text), *self._parser.close(truncated=truncated)])
        return [*reasoning, *segments, *([] if self.stopped else self._stop.release())]

    def _apply_stop(self, segments: Sequence[Segment]) -> list[Segment]:
        """Return the segments before the first stop sequence, with offsets that count the reasoning, too."""
        offset = 0 if self._reasoning is None else self._reasoning.offset
        kept: list[Segment] = []
        for segment in segments:
            if self.stopped:
                break
            if isinstance(segment, Text):
                kept += self._stop.feed(Text(segment.text, offset + segment.offset))
            else:
                kept += [*self._stop.release(), segment]
        return kept
