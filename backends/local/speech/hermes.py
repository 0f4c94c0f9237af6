"""Tool calls as models of the Hermes family write them, Qwen included.

    Let me see.                                                     text
    <tool_call>                                                     a call, complete at the end of its object
    {"name": "get_weather", "arguments": {"location": "Oslo"}}
    </tool_call>

Source: https://github.com/NousResearch/Hermes-Function-Calling#prompt-format-for-function-calling
"""

from collections.abc import Sequence

from backends.local.speech.segments import Segment, ToolKinds
from backends.local.speech.tool_call_parser import ToolCallParser
from backends.local.speech.tool_format import ToolFormat

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(ToolCallParser):
    def __init__(self, tools: ToolKinds) -> None:
        super().__init__(tools, OPEN)
        self._expects_close = False  # whether the closing tag of a call may follow

    def read_call(self) -> Sequence[Segment] | None:
        rest = self.scanner.scan(self.pending)
        if rest is None:
            return self.continue_call()
        call = self.parse_object()
        self._expects_close = call is not None
        return self.close_call(call, rest)

    def read_text(self) -> Sequence[Segment] | None:
        if self._expects_close:
            self.skip(len(self.pending) - len(self.pending.lstrip()))
            if self.pending.startswith(CLOSE):
                self.skip(len(CLOSE))
            elif CLOSE.startswith(self.pending):
                return None
            self._expects_close = False
        return super().read_text()

    def is_droppable(self, text: str) -> bool:
        return super().is_droppable(text) or (self._expects_close and CLOSE.startswith(text))


HERMES = ToolFormat(
    name="hermes",
    parser=HermesParser,
    visible_tags=(OPEN, CLOSE),
    tag=OPEN,
    call_prefix='\n{"name": "%s", "arguments": ',
    call_suffix="}\n" + CLOSE,
    separator="\n" + OPEN,
    raw_prefix='\n{"name": "%s", "input":\n',
)
