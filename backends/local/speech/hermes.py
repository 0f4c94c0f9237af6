"""Calls as the Hermes family writes them, Qwen among it.

    Let me see.                                                     text
    <tool_call>                                                     a call, known when its object is whole
    {"name": "get_weather", "arguments": {"location": "Oslo"}}
    </tool_call>

Source: https://github.com/NousResearch/Hermes-Function-Calling#prompt-format-for-function-calling
"""

from collections.abc import Sequence

from backends.local.speech.form import ToolFormat
from backends.local.speech.parser import Parser
from backends.local.speech.piece import Names, Piece

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(Parser):
    def __init__(self, names: Names) -> None:
        super().__init__(names, OPEN)
        self._closing = False  # whether the tag that ends a call may come

    def read_call(self) -> Sequence[Piece] | None:
        after = self.object.read(self.rest)
        if after is None:
            return self.going_on()
        call = self.read_object()
        self._closing = call is not None
        return self.judge(call, after)

    def read_text(self) -> Sequence[Piece] | None:
        if self._closing:
            self.leave_out(len(self.rest) - len(self.rest.lstrip()))
            if self.rest.startswith(CLOSE):
                self.leave_out(len(CLOSE))
            elif CLOSE.startswith(self.rest):
                return None
            self._closing = False
        return super().read_text()

    def is_nothing(self, text: str) -> bool:
        return super().is_nothing(text) or (self._closing and CLOSE.startswith(text))


HERMES = ToolFormat(
    name="hermes",
    parse=HermesParser,
    tags=(OPEN, CLOSE),
    tag=OPEN,
    head='\n{"name": "%s", "arguments": ',
    tail="}\n" + CLOSE,
    between="\n" + OPEN,
    raw='\n{"name": "%s", "input":\n',
)
