"""Names that look like others: like a field of the protocol (`Metadata`), or like one that somebody denies.

A backend that forgives more than we do would read such a field unseen by any policy; so they are refused.
"""

import re
import unicodedata
from collections.abc import Iterable
from fnmatch import translate
from functools import lru_cache

from proxy.wire.errors import RequestError

# The fields that policies, routes and the cache decide by.
FIELDS = frozenset({
    "background", "conversation", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata",
    "model", "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key", "safety_identifier",
    "service_tier", "store", "stream", "text", "tool_choice", "tools", "user",
})  # fmt: skip
_JOINED = {name.replace("_", ""): name for name in FIELDS}  # some backends read maxToolCalls, too
# Letters of other scripts, and small capitals, that are drawn like a Latin one, and what stands for an underscore.
# Source: https://www.unicode.org/reports/tr39/#Confusable_Detection (those that fold to a-z or "_")
_DRAWN_LIKE = str.maketrans(
    "\u0430\u1d00\u03b1\u0441\u03f2\u0501\u0435\u0454\u0261\u04bb\u0456\u03b9\u0131\u0458\u043a\u03ba\u04cf\u043c\u043e\u03bf\u0440\u03c1\u051b\u0433\u0455\u0442\u03c4\u03c5\u057d\u03bd\u0475\u051d\u0445\u03c7\u0443\u03b3\u1d22\u2010\u2011\u2012\u2013\u2212-"
    "\u0299\u1d04\u1d05\u1d07\u0262\u029c\u026a\u1d0a\u1d0b\u029f\u1d0d\u0274\u1d0f\u1d18\u0280\ua731\u1d1b\u1d1c\u1d20\u1d21\u028f\u212e\u044c",
    "aaaccdeeghiiijkklmooppqrsttuuvvwxxyyz______" "bcdeghijklmnoprstuvwyeb",
    "\u115f\u1160\u2800\u3164\uffa0",  # letters that nobody sees
)  # fmt: skip
# Capitals that are drawn like a Latin one, while their small letters are not, or like another.
_CAPITALS = str.maketrans("\u0392\u0395\u0396\u0397\u039c\u039d\u03a5\u0412\u041d\u0422\u04ae\u050c", "BEZHMNYBHTYG")


def refuse_lookalikes(names: Iterable[str]) -> None:
    """Raises RequestError for a name that is not a field but folds to one: case, width, script, unseen characters."""
    for name in names:
        if name not in FIELDS and (field := _JOINED.get(folded(name).replace("_", ""))) is not None:
            shown = name[:64].encode("ascii", "backslashreplace").decode()
            message = f"The body has a field '{shown}', which looks like '{field}' and is not."
            raise RequestError(message, code="lookalike_field", param=shown)


def folded(name: str) -> str:
    """A name as somebody may take it who overlooks case, width, accents, script, and characters that nobody sees."""
    if name.isascii():
        return "".join(filter(str.isprintable, name)).strip().casefold().replace("-", "_")
    seen = "".join(c for c in unicodedata.normalize("NFKD", name) if unicodedata.category(c) not in ("Cf", "Mn", "Cc"))
    return seen.translate(_CAPITALS).casefold().translate(_DRAWN_LIKE).strip()


def plain(text: str) -> str:
    """A text without case, width, space around it, and characters that nobody sees: for lists of what is denied."""
    if text.isascii() and text.isprintable():
        return text.lower().strip()
    return "".join(filter(str.isprintable, unicodedata.normalize("NFKC", text))).casefold().strip()


LONGEST_REMEMBERED = 128  # characters: what is longer is no name, and would only fill the memory


class Globs:
    """What is allowed, and what is denied although it is; `*` and `?` stand for any characters.

    Denied is also what a forgiving upstream may read as it: other case, width and unseen characters do not help.
    """

    def __init__(self, allow: Iterable[str], deny: Iterable[str] = ()) -> None:
        allow, deny = tuple(allow), tuple(deny)
        self._allowed = None if "*" in allow else _pattern(allow)
        self._denied = _pattern((*deny, *map(plain, deny))) if deny else None
        self.open = self._allowed is None and self._denied is None  # everything is allowed
        self._remembered = lru_cache(1024)(self._judged)  # the same few names come again and again

    def allows(self, value: object) -> bool:
        """Whether a value may be given; one that is no string only where everything may."""
        if type(value) is str and len(value) <= LONGEST_REMEMBERED:
            return self._remembered(value)
        return self.open or (isinstance(value, str) and self._judged(value))

    def _judged(self, value: str) -> bool:
        if self._allowed is not None and not self._allowed.match(value):
            return False
        return self._denied is None or not any(map(self._denied.match, (value, plain(value))))


def _pattern(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, dict.fromkeys(globs))) or r"(?!)")
