"""The syntax in which a family of models writes tool calls, as data for the grammar, with the parser for it."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from backends.local.speech.segments import ToolKinds
from backends.local.speech.tool_call_parser import ToolCallParser


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The syntax of an answer with calls: text, `tag`, `list_start`, calls joined by `separator`, `list_end`.

    A call is `call_prefix` with the tool's name in it, the arguments as JSON, `call_suffix`. A call with verbatim input
    is the last thing in its answer: text, `tag`, `list_start`, `raw_prefix` with the tool's name in it, the input.
    """

    name: str
    parser: Callable[[ToolKinds], ToolCallParser]
    visible_tags: tuple[str, ...]  # what the detokenizer must not hide when it is a control token
    tag: str
    call_prefix: str
    call_suffix: str
    separator: str
    raw_prefix: str
    list_start: str = ""
    list_end: str = ""
    tag_optional: bool = False  # whether an answer may begin with a call without the tag
    call_id_pattern: re.Pattern[str] | None = None  # the ids that the chat template accepts; None: any

    def convert_call_id(self, call_id: str) -> str:
        """Return the id that chat templates get for a call: its own, or a hash of it where the format restricts ids."""
        if self.call_id_pattern is None or self.call_id_pattern.fullmatch(call_id):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:9]

    def raw_opening(self, name: str) -> str:
        """Return everything that precedes the verbatim input of a call."""
        return self.tag + self.list_start + self.raw_prefix % name
