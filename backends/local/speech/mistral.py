"""Calls as Mistral's models write them; which of the two ways depends on the age of their tokenizer.

    [TOOL_CALLS][{"name": "get_weather", "arguments": {"location": "Oslo"}}, {"name": ...}]         up to v7
    [TOOL_CALLS]get_weather[ARGS]{"location": "Oslo"}[TOOL_CALLS]get_time[ARGS]{}                   from v11 on

v11 alone has [CALL_ID] and an id between name and [ARGS]; without the control token, {...} follows the name at once.
Source: https://github.com/mistralai/mistral-common, tokens/tokenizers/instruct.py
"""

import re
from collections.abc import Sequence

from backends.local.speech.form import ToolFormat
from backends.local.speech.parser import Parser
from backends.local.speech.piece import Call, Names, Piece, call_of, half_call_in, half_call_of

TAG, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
NAMED = re.compile(r"\s*([a-zA-Z0-9_-]{1,128})(?:\[CALL_ID\]\w{0,64})?(?:\[ARGS\])?\s*(?=\{)")
# What may yet become the above.
NAME_BEGUN = re.compile(r"\s*[a-zA-Z0-9_-]{0,128}(?:\[[A-Z_]{0,7}\]?\w{0,64}){0,2}\s*")
NINE = re.compile(r"[a-zA-Z0-9]{9}")
COMMA = re.compile(r"\s*,\s*")


class MistralParser(Parser):
    def __init__(self, names: Names) -> None:
        super().__init__(names, TAG)
        self._name = ""  # of the call whose arguments are read; "" in a list, where the objects say it
        self._reading = False
        self._in_list = False

    def read_text(self) -> Sequence[Piece] | None:
        if self._in_list:
            return self._after_object()
        return super().read_text()

    def read_call(self) -> Sequence[Piece] | None:
        if not self._reading:
            return self._read_head()
        after = self.object.read(self.rest)
        if after is None:
            return self.going_on()
        call = self.read_object()
        self._reading, self._in_list = False, call is not None and not self._name
        self._name = ""
        return self.judge(call, after)

    def read_object(self) -> Call | None:
        if self._name and self.object.whole:
            return call_of(self._name, self.object.text, self.names)
        return super().read_object()

    def half_call(self, text: str) -> Call | None:
        return half_call_of(self._name, text, self.names) if self._name else half_call_in(text, self.names)

    def is_nothing(self, text: str) -> bool:
        return not text.strip() or (self._in_list and text.strip() in (",", "]"))

    def _read_head(self) -> Sequence[Piece] | None:
        stripped = self.rest.lstrip()
        if stripped.startswith("["):
            return self._read_on(len(self.rest) - len(stripped) + 1)
        found = NAMED.match(self.rest)
        if found is not None:
            self._name = found[1]
            return self._read_on(found.end())
        return None if NAME_BEGUN.fullmatch(self.rest) else self.judge(None, self.rest)

    def _read_on(self, place: int) -> Sequence[Piece]:
        """An object begins here."""
        self.begin((self.opening or "") + self.rest[:place], self.rest[place:])
        self._reading = True
        return []

    def _after_object(self) -> Sequence[Piece] | None:
        """A list goes on or ends; whatever else follows, it is over."""
        stripped = self.rest.strip()
        if stripped in ("", ","):
            return None
        self._in_list = False
        if stripped.startswith("]"):
            self.leave_out(self.rest.index("]") + 1)
            return []
        found = COMMA.match(self.rest)
        if found is None or self.rest[found.end()] != "{":
            return []
        self.opening = ""
        return self._read_on(found.end())


MISTRAL = ToolFormat(
    name="mistral",
    parse=MistralParser,
    tags=(TAG,),
    tag=TAG,
    starts="[",
    head='{"name": "%s", "arguments": ',
    tail="}",
    between=", ",
    ends="]",
    raw='{"name": "%s", "input":\n',
    call_id=NINE,
)
MISTRAL_V11 = ToolFormat(
    name="mistral",
    parse=MistralParser,
    tags=(TAG, CALL_ID, ARGS),
    tag=TAG,
    head="%s" + ARGS,
    tail="",
    between=TAG,
    raw="%s" + ARGS,
    call_id=NINE,
)
