"""Tool calls as Mistral's models write them; the version of the tokenizer decides between two syntaxes.

    [TOOL_CALLS][{"name": "get_weather", "arguments": {"location": "Oslo"}}, {"name": ...}]         up to v7
    [TOOL_CALLS]get_weather[ARGS]{"location": "Oslo"}[TOOL_CALLS]get_time[ARGS]{}                   from v11 on

Only v11 has [CALL_ID] and an id between name and [ARGS]; without that control token, {...} follows the name directly.
Source: https://github.com/mistralai/mistral-common, tokens/tokenizers/instruct.py
"""

import re
from collections.abc import Sequence

from backends.local.speech.segments import (
    Segment,
    ToolCall,
    ToolKinds,
    build_call,
    build_partial_call,
    parse_partial_call,
)
from backends.local.speech.tool_call_parser import ToolCallParser
from backends.local.speech.tool_format import ToolFormat

TAG, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
CALL_HEAD = re.compile(r"\s*([a-zA-Z0-9_-]{1,128})(?:\[CALL_ID\]\w{0,64})?(?:\[ARGS\])?\s*(?=\{)")
# What may still become a CALL_HEAD.
PARTIAL_CALL_HEAD = re.compile(r"\s*[a-zA-Z0-9_-]{0,128}(?:\[[A-Z_]{0,7}\]?\w{0,64}){0,2}\s*")
NINE_CHARACTERS = re.compile(r"[a-zA-Z0-9]{9}")
COMMA = re.compile(r"\s*,\s*")


class MistralParser(ToolCallParser):
    def __init__(self, tools: ToolKinds) -> None:
        super().__init__(tools, TAG)
        self._name = ""  # of the tool whose arguments are read; "" in a list, where the objects contain it
        self._in_object = False
        self._in_list = False

    def read_text(self) -> Sequence[Segment] | None:
        if self._in_list:
            return self._continue_list()
        return super().read_text()

    def read_call(self) -> Sequence[Segment] | None:
        if not self._in_object:
            return self._read_head()
        rest = self.scanner.scan(self.pending)
        if rest is None:
            return self.continue_call()
        call = self.parse_object()
        self._in_object, self._in_list = False, call is not None and not self._name
        self._name = ""
        return self.close_call(call, rest)

    def parse_object(self) -> ToolCall | None:
        if self._name and self.scanner.complete:
            return build_call(self._name, self.scanner.text, self.tools)
        return super().parse_object()

    def parse_truncated(self, text: str) -> ToolCall | None:
        if self._name:
            return build_partial_call(self._name, text, self.tools)
        return parse_partial_call(text, self.tools)

    def is_droppable(self, text: str) -> bool:
        return not text.strip() or (self._in_list and text.strip() in (",", "]"))

    def _read_head(self) -> Sequence[Segment] | None:
        stripped = self.pending.lstrip()
        if stripped.startswith("["):
            return self._open_object(len(self.pending) - len(stripped) + 1)
        found = CALL_HEAD.match(self.pending)
        if found is not None:
            self._name = found[1]
            return self._open_object(found.end())
        return None if PARTIAL_CALL_HEAD.fullmatch(self.pending) else self.close_call(None, self.pending)

    def _open_object(self, position: int) -> Sequence[Segment]:
        self.open_call((self.opening or "") + self.pending[:position], self.pending[position:])
        self._in_object = True
        return []

    def _continue_list(self) -> Sequence[Segment] | None:
        """Read on between the objects of a list. Anything but a comma ends the list."""
        stripped = self.pending.strip()
        if stripped in ("", ","):
            return None
        self._in_list = False
        if stripped.startswith("]"):
            self.skip(self.pending.index("]") + 1)
            return []
        found = COMMA.match(self.pending)
        if found is None or self.pending[found.end()] != "{":
            return []
        self.opening = ""
        return self._open_object(found.end())


MISTRAL = ToolFormat(
    name="mistral",
    parser=MistralParser,
    visible_tags=(TAG,),
    tag=TAG,
    list_start="[",
    call_prefix='{"name": "%s", "arguments": ',
    call_suffix="}",
    separator=", ",
    list_end="]",
    raw_prefix='{"name": "%s", "input":\n',
    call_id_pattern=NINE_CHARACTERS,
)
MISTRAL_V11 = ToolFormat(
    name="mistral",
    parser=MistralParser,
    visible_tags=(TAG, CALL_ID, ARGS),
    tag=TAG,
    call_prefix="%s" + ARGS,
    call_suffix="",
    separator=TAG,
    raw_prefix="%s" + ARGS,
    call_id_pattern=NINE_CHARACTERS,
)
