"""Tool calls as Llama 3.1, 3.2 and 3.3 write them: the whole answer, or what follows <|python_tag|>, is a call.

    {"name": "get_weather", "parameters": {"location": "Oslo"}}; {"name": "get_time", "parameters": {}}

Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3_2/text_prompt_format.md
"""

import re
from collections.abc import Sequence

from backends.local.speech.segments import Segment, ToolCall, ToolKinds, parse_call
from backends.local.speech.tool_call_parser import ToolCallParser
from backends.local.speech.tool_format import ToolFormat

TAG = "<|python_tag|>"
SEPARATORS = " \t\r\n;"
# An object that begins differently is an answer in JSON: it is streamed instead of being held back until its end.
CALL_START = re.compile(r'\s*\{\s*"(?:name|type|function|parameters|arguments|id)"')
# How many characters CALL_START needs for a decision.
CALL_START_CHARS = 24


class LlamaParser(ToolCallParser):
    def __init__(self, tools: ToolKinds) -> None:
        super().__init__(tools, TAG)
        self._tag_optional = True  # an object is a call without a tag at the beginning, and after a call
        self._undecided = False  # whether the open object may still prove not to be a call

    def read_text(self) -> Sequence[Segment] | None:
        if self._tag_optional:
            stripped = self.pending.lstrip(SEPARATORS if self.after_call else None)
            if not stripped:
                return None
            self._tag_optional = False
            if stripped.startswith("{"):
                self._undecided = True
                self.open_call(self.pending[: -len(stripped)], stripped)
                return []
        return super().read_text()

    def read_call(self) -> Sequence[Segment] | None:
        rest = self.scanner.scan(self.pending)
        if rest is None:
            if self._may_be_call():
                return self.continue_call()
            rest = ""
        call = self.parse_object()
        self._tag_optional, self._undecided = call is not None, False
        return self.close_call(call, rest)

    def parse_object(self) -> ToolCall | None:
        if not self.scanner.complete:
            return None
        return parse_call(self.scanner.text, self.tools, arguments_optional=False)

    def is_droppable(self, text: str) -> bool:
        return not text.strip(SEPARATORS)

    def _may_be_call(self) -> bool:
        if self._undecided and len(self.scanner.text) >= CALL_START_CHARS:
            self._undecided = False
            return CALL_START.match(self.scanner.text) is not None
        return True


LLAMA = ToolFormat(
    name="llama",
    parser=LlamaParser,
    visible_tags=(TAG,),
    tag=TAG,
    call_prefix='{"name": "%s", "parameters": ',
    call_suffix="}",
    separator="; ",
    raw_prefix='{"name": "%s", "input":\n',
    tag_optional=True,
)
