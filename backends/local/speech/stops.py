"""Ends a text where one of the caller's stop strings begins."""

from collections.abc import Sequence

from backends.local.speech.parser import begun
from backends.local.speech.piece import Text


class Stops:
    """Feed it texts; it holds back the end that may begin a stop string. Once `met`, the answer is over."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.met = False
        self._stops = stops
        self._held = Text("", 0)

    def feed(self, said: Text) -> list[Text]:
        """The part of a text, and of what was held back before it, that is known to be wanted."""
        text, at = self._held.text + said.text, self._held.at if self._held.text else said.at
        found = min((place for place in (text.find(stop) for stop in self._stops) if place >= 0), default=-1)
        self.met = found >= 0
        end = found if self.met else len(text) - max((begun(text, stop) for stop in self._stops), default=0)
        self._held = Text("" if self.met else text[end:], at + end)
        return [Text(text[:end], at)] if end else []

    def release(self) -> list[Text]:
        """What was held back, when something else follows than text, or nothing."""
        held, self._held = self._held, Text("", 0)
        return [held] if held.text else []
