"""How a family of models writes calls: as data, for the grammar; and who reads them."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from backends.local.speech.parser import Parser
from backends.local.speech.piece import Names


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """An answer with calls is: text, `tag`, `starts`, calls with `between` between them, `ends`.

    A call is: `head` with the name in it, the arguments as JSON, `tail`. One whose text stands as it is, which is the
    last thing in its answer: text, `tag`, `starts`, `raw` with the name in it, the text of the call.
    """

    name: str
    parse: Callable[[Names], Parser]
    tags: tuple[str, ...]  # what the decoder must show, should they be control tokens
    tag: str
    head: str
    tail: str
    between: str
    raw: str
    starts: str = ""
    ends: str = ""
    bare: bool = False  # whether the tag may be missing when the answer begins with a call
    call_id: re.Pattern[str] | None = None  # what ids of calls must look like

    def parser(self, names: Names) -> Parser:
        return self.parse(names)

    def id_of(self, call_id: str) -> str:
        """The id that templates are given for a call: another one where the format wants other ids, always the same."""
        if self.call_id is None or self.call_id.fullmatch(call_id):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:9]

    def raw_head(self, name: str) -> str:
        """All that stands before the text of such a call."""
        return self.tag + self.starts + self.raw % name
