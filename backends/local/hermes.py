"""Finds function calls in what a model of the Hermes family says, while it is saying it.

    Let me see.                                                     text
    <tool_call>                                                     a call, known when it is whole
    {"name": "get_weather", "arguments": {"location": "Oslo"}}
    </tool_call>

Source: https://github.com/NousResearch/Hermes-Function-Calling#prompt-format-for-function-calling
"""

from collections.abc import Iterator
from dataclasses import dataclass

import orjson

OPEN, CLOSE = "<tool_call>", "</tool_call>"
TAGS = (OPEN, CLOSE)


@dataclass(frozen=True, slots=True)
class FunctionCall:
    name: str
    arguments: str  # a JSON object


class HermesParser:
    """Feed it text, cut anywhere; it gives text that is no call, and calls of the functions in `names`.

    What stands between the tags but is no such call is given as the text that it is. White space around a call is left
    out, so the end of a text is held back until it is known not to lead to one.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._rest = ""
        self._opening = ""  # the tag that a call began with, and the space before it; "" outside of calls
        self._after_call = False

    def feed(self, text: str) -> list[str | FunctionCall]:
        self._rest += text
        return list(self._pieces())

    def close(self) -> list[str | FunctionCall]:
        """What is left when the model has ended. A call that is whole but for its last tag is one."""
        rest, self._rest = self._rest, ""
        if self._opening:
            return [self._call_or_text(rest, "")]
        return [] if not rest or (self._after_call and rest.isspace()) else [rest]

    def _pieces(self) -> Iterator[str | FunctionCall]:
        """All that is known by now; what may still become something else stays in `_rest`."""
        while True:
            if self._opening:
                inner, closing, rest = self._rest.partition(CLOSE)
                if not closing:
                    return
                self._rest = rest
                yield self._call_or_text(inner, closing)
            else:
                before, opening, rest = self._rest.partition(OPEN)
                said = self._said(before, whole=bool(opening))
                if said:
                    yield said
                if not opening:
                    return
                self._rest, self._opening = rest, self._rest + opening

    def _said(self, text: str, *, whole: bool) -> str:
        """The part of a text that can be given now; the part that may belong to a call is left in `_rest`."""
        if self._after_call:
            text = text.lstrip()
        end = len(text) if whole else len(text) - _tag_begun(text)
        end = len(text[:end].rstrip())
        self._rest = text[end:]
        self._after_call = self._after_call and end == 0
        return text[:end]

    def _call_or_text(self, inner: str, closing: str) -> str | FunctionCall:
        opening, self._opening = self._opening, ""
        call = _call(inner)
        self._after_call = call is not None and call.name in self._names
        return call if call is not None and self._after_call else opening + inner + closing


def _tag_begun(text: str) -> int:
    """How many characters at the end of a text may be the beginning of a tag."""
    return next((size for size in range(min(len(OPEN) - 1, len(text)), 0, -1) if text.endswith(OPEN[:size])), 0)


def _call(text: str) -> FunctionCall | None:
    try:
        call = orjson.loads(text)
        arguments = call.get("arguments", {}) if isinstance(call, dict) else None
        if isinstance(arguments, str):
            arguments = orjson.loads(arguments)
        if isinstance(arguments, dict) and isinstance(call.get("name"), str):
            return FunctionCall(call["name"], orjson.dumps(arguments).decode())
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass  # not JSON, or nested deeper than any reader goes
    return None
