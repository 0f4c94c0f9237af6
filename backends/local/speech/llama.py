"""Calls as Llama 3.1, 3.2 and 3.3 write them: the whole answer is a call, or what follows <|python_tag|> is.

    {"name": "get_weather", "parameters": {"location": "Oslo"}}; {"name": "get_time", "parameters": {}}

Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3_2/text_prompt_format.md
"""

import re
from collections.abc import Sequence

from backends.local.speech.form import ToolFormat
from backends.local.speech.parser import Parser
from backends.local.speech.piece import Call, Names, Piece, call_in

TAG = "<|python_tag|>"
BETWEEN = " \t\r\n;"
# An object that begins otherwise is an answer in JSON: it is not held back until its end.
CALL_BEGINS = re.compile(r'\s*\{\s*"(?:name|type|function|parameters|arguments|id)"')
KNOWN_BY_CHARS = 24


class LlamaParser(Parser):
    def __init__(self, names: Names) -> None:
        super().__init__(names, TAG)
        self._may_begin = True  # whether an object would be a call without a tag: at the beginning, and after a call
        self._doubted = False  # whether it is still to be seen that the object looks like a call

    def read_text(self) -> Sequence[Piece] | None:
        if self._may_begin:
            stripped = self.rest.lstrip(BETWEEN if self.after_call else None)
            if not stripped:
                return None
            self._may_begin = False
            if stripped.startswith("{"):
                self._doubted = True
                self.begin(self.rest[: -len(stripped)], stripped)
                return []
        return super().read_text()

    def read_call(self) -> Sequence[Piece] | None:
        after = self.object.read(self.rest)
        if after is None:
            if self._may_be_call():
                return self.going_on()
            after = ""
        call = self.read_object()
        self._may_begin, self._doubted = call is not None, False
        return self.judge(call, after)

    def read_object(self) -> Call | None:
        return call_in(self.object.text, self.names, bare=False) if self.object.whole else None

    def is_nothing(self, text: str) -> bool:
        return not text.strip(BETWEEN)

    def _may_be_call(self) -> bool:
        if self._doubted and len(self.object.text) >= KNOWN_BY_CHARS:
            self._doubted = False
            return CALL_BEGINS.match(self.object.text) is not None
        return True


LLAMA = ToolFormat(
    name="llama",
    parse=LlamaParser,
    tags=(TAG,),
    tag=TAG,
    head='{"name": "%s", "parameters": ',
    tail="}",
    between="; ",
    raw='{"name": "%s", "input":\n',
    bare=True,
)
