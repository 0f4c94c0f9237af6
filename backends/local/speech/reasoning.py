"""Separates the reasoning at the beginning of an answer from the answer.

    <think>                      may be the end of the prompt: then the answer starts inside the reasoning
    The user wants ...           reasoning
    </think>

    It is sunny.                 the answer

Only the beginning of an answer can be reasoning: a <think> further on is part of the text.
"""

from dataclasses import dataclass

from backends.local.speech.segments import Reasoning
from backends.local.speech.tool_call_parser import partial_tag_length


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The tags around a model's reasoning."""

    opening: str = "<think>"
    closing: str = "</think>"

    @property
    def both(self) -> tuple[str, str]:
        return self.opening, self.closing

    def are_open_in(self, prompt: str) -> bool:
        """Whether a prompt ends inside the reasoning; templates that disable reasoning close the tags again."""
        return prompt.rstrip().endswith(self.opening)


class ReasoningParser:
    """Splits output into reasoning and answer. Output may be fed in chunks of any size.

    Once `ended`, everything that follows is the answer, which begins at `offset`. White space at both ends of the
    reasoning is dropped, and so is reasoning that consists of nothing else.
    """

    def __init__(self, tags: ReasoningTags, *, is_open: bool) -> None:
        self.is_open = is_open
        self.ended = False
        self.offset = 0
        self._opening, self._closing = tags.both
        self._pending = ""  # output that was fed and not returned
        self._has_content = False  # whether the reasoning has more than white space
        self._closed = False

    def feed(self, text: str) -> tuple[list[Reasoning], str]:
        """Return what is certain by now: reasoning, and the beginning of the answer."""
        if self.ended:
            return [], text
        self._pending += text
        if not self.is_open and not self._closed:
            self._read_opening()
        reasoning = self._read_reasoning() if self.is_open else []
        if self._closed and not self.ended:
            self._skip(len(self._pending) - len(self._pending.lstrip()))
            self.ended = bool(self._pending)
        return reasoning, self._take_pending() if self.ended else ""

    def close(self) -> tuple[list[Reasoning], str]:
        """Return what remains when the output has ended."""
        if not self.is_open:
            return [], self._take_pending()
        return self._take_reasoning(len(self._pending)), ""

    def _read_opening(self) -> None:
        """Enter the reasoning or, without an opening tag, the answer."""
        stripped = self._pending.lstrip()
        if stripped.startswith(self._opening):
            self._skip(len(self._pending) - len(stripped) + len(self._opening))
            self.is_open = True
        else:
            self.ended = not self._opening.startswith(stripped)

    def _read_reasoning(self) -> list[Reasoning]:
        before, tag, _ = self._pending.partition(self._closing)
        certain = len(before) if tag else len(self._pending) - partial_tag_length(self._pending, self._closing)
        reasoning = self._take_reasoning(certain)
        if tag:
            self._skip(self._pending.index(tag) + len(tag))
            self.is_open, self._closed = False, True
        return reasoning

    def _take_reasoning(self, end: int) -> list[Reasoning]:
        """Return the reasoning up to there, less the white space at its end, which may precede the closing tag."""
        text = self._pending[:end].rstrip()
        self._skip(len(text))
        text = text if self._has_content else text.lstrip()
        self._has_content = self._has_content or bool(text)
        return [Reasoning(text)] if text else []

    def _take_pending(self) -> str:
        pending, self._pending = self._pending, ""
        return pending

    def _skip(self, count: int) -> None:
        self._pending = self._pending[count:]
        self.offset += count
