"""Tells where a JSON object ends while it is still being written, whatever its strings hold."""

import re

IN_STRING = re.compile(r'["\\\x00-\x1f]')
# What changes the depth, begins a string, or has no place outside of one.
OUTSIDE = re.compile(r'["{}\[\]]|[^\s0-9truefalsnE+.,:\-]')


class JsonObject:
    """The object that a text begins with, once white space is passed. `whole` says whether it came to its end.

    It counts brackets and strings and knows nothing of commas: what it finds may still not be JSON.
    """

    def __init__(self) -> None:
        self.whole = False
        self._parts: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def text(self) -> str:
        """All that was read of it."""
        return "".join(self._parts)

    def read(self, text: str) -> str | None:
        """Read on. None while it goes on; else what comes after it, or from where it can be no object any more."""
        place = 0
        if self._depth == 0:
            place = len(text) - len(text.lstrip())
            if place < len(text) and text[place] != "{":
                return self._ended(text, place)
        while place < len(text):
            if self._escaped:
                self._escaped = False
                place += 1
                continue
            found = (IN_STRING if self._in_string else OUTSIDE).search(text, place)
            if found is None:
                break
            place = found.end()
            if not self._goes_on(found[0]):
                self.whole = self._depth == 0
                return self._ended(text, place if self.whole else found.start())
        self._parts.append(text)
        return None

    def _goes_on(self, mark: str) -> bool:
        if self._in_string:
            self._in_string = mark != '"'
            self._escaped = mark == "\\"
            return mark in '"\\'
        self._in_string = mark == '"'
        self._depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(mark, 0)
        return self._depth > 0 and mark in '"{}[]'

    def _ended(self, text: str, place: int) -> str:
        self._parts.append(text[:place])
        return text[place:]
