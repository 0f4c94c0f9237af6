"""Tells what a model thinks before it answers from the answer.

    <think>                      may stand in the prompt already: then the answer begins within the thought
    The user wants ...           a thought
    </think>

    It is sunny.                 the answer

Only what an answer begins with is a thought: a model that writes <think> later is talking about it.
"""

from dataclasses import dataclass

from backends.local.speech.parser import begun
from backends.local.speech.piece import Thought


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tags between which a model thinks."""

    opens: str = "<think>"
    closes: str = "</think>"

    @property
    def tags(self) -> tuple[str, str]:
        return self.opens, self.closes

    def begun_in(self, prompt: str) -> bool:
        """Whether a prompt ends within a thought; templates that switch thinking off close it again."""
        return prompt.rstrip().endswith(self.opens)


class Thoughts:
    """Feed it text, cut anywhere. Once `over`, all that comes is the answer: `at` is where it begins.

    White space at both ends of a thought is left out, and a thought of nothing else.
    """

    def __init__(self, thinking: Thinking, *, begun: bool) -> None:
        self.inside = begun
        self.over = False
        self.at = 0
        self._opens, self._closes = thinking.tags
        self._rest = ""  # what was fed and is not told
        self._said = False  # whether the thought has begun with more than white space
        self._closed = False

    def feed(self, text: str) -> tuple[list[Thought], str]:
        """What is known by now: thoughts, and the beginning of the answer."""
        if self.over:
            return [], text
        self._rest += text
        if not self.inside and not self._closed:
            self._enter()
        thoughts = self._thoughts() if self.inside else []
        if self._closed and not self.over:
            self._leave_out(len(self._rest) - len(self._rest.lstrip()))
            self.over = bool(self._rest)
        return thoughts, self._answer() if self.over else ""

    def close(self) -> tuple[list[Thought], str]:
        """What is left when the model has ended."""
        if not self.inside:
            return [], self._answer()
        return self._told(len(self._rest)), ""

    def _enter(self) -> None:
        """Begin the thought or, when the answer begins without one, the answer."""
        stripped = self._rest.lstrip()
        if stripped.startswith(self._opens):
            self._leave_out(len(self._rest) - len(stripped) + len(self._opens))
            self.inside = True
        else:
            self.over = not self._opens.startswith(stripped)

    def _thoughts(self) -> list[Thought]:
        before, tag, _ = self._rest.partition(self._closes)
        told = self._told(len(before) if tag else len(self._rest) - begun(self._rest, self._closes))
        if tag:
            self._leave_out(self._rest.index(tag) + len(tag))
            self.inside, self._closed = False, True
        return told

    def _told(self, end: int) -> list[Thought]:
        """The thought up to there, less the white space at its end, which may prove to be the end of the thought."""
        thought = self._rest[:end].rstrip()
        self._leave_out(len(thought))
        thought = thought if self._said else thought.lstrip()
        self._said = self._said or bool(thought)
        return [Thought(thought)] if thought else []

    def _answer(self) -> str:
        rest, self._rest = self._rest, ""
        return rest

    def _leave_out(self, count: int) -> None:
        self._rest = self._rest[count:]
        self.at += count
