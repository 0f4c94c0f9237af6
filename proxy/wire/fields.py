"""Names that resemble a field of the protocol, such as `Metadata` or `maxToolCalls`, and how names are normalized.

A lenient backend could accept such a name as the field itself, and no policy would have checked it; the gateway refuses
it.
"""

import unicodedata
from collections.abc import Collection
from functools import lru_cache

from proxy.wire.errors import RequestError
from proxy.wire.loggable import in_ascii

# The fields that policies, routes and the cache read.
FIELDS = frozenset({
    "background", "conversation", "include", "input", "instructions", "items", "max_output_tokens", "max_tool_calls",
    "metadata", "model", "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key",
    "safety_identifier", "service_tier", "store", "stream", "text", "tool_choice", "tools", "user",
})  # fmt: skip
# Fields of the protocol, and of servers that speak it, that resemble none of those: most requests have only known ones.
OTHER_FIELDS = frozenset({
    "context_management", "frequency_penalty", "generate", "logit_bias", "max_tokens", "min_p", "moderation",
    "presence_penalty", "prompt_cache_options", "prompt_cache_retention", "reasoning", "repetition_penalty", "seed",
    "stop", "stream_options", "temperature", "top_k", "top_logprobs", "top_p", "truncation", "type",
})  # fmt: skip
_KNOWN = FIELDS | OTHER_FIELDS
_WITHOUT_UNDERSCORES = {name.replace("_", ""): name for name in FIELDS}  # some backends accept maxToolCalls
MAX_KNOWN_CHARS = 64
"""The longest name, in characters, for which the result is cached."""
# Letters of other scripts and small capitals that look like a Latin letter; characters that look like an underscore.
# Source: https://www.unicode.org/reports/tr39/#Confusable_Detection (those that fold to a-z or "_")
_CONFUSABLES = str.maketrans(
    "\u0430\u1d00\u03b1\u0441\u03f2\u0501\u0435\u0454\u0261\u04bb\u0456\u03b9\u0131\u0458\u043a\u03ba\u04cf\u043c\u043e\u03bf\u0440\u03c1\u051b\u0433\u0455\u0442\u03c4\u03c5\u057d\u03bd\u0475\u051d\u0445\u03c7\u0443\u03b3\u1d22\u2010\u2011\u2012\u2013\u2212-"
    "\u0299\u1d04\u1d05\u1d07\u0262\u029c\u026a\u1d0a\u1d0b\u029f\u1d0d\u0274\u1d0f\u1d18\u0280\ua731\u1d1b\u1d1c\u1d20\u1d21\u028f\u212e\u044c",
    "aaaccdeeghiiijkklmooppqrsttuuvvwxxyyz______" "bcdeghijklmnoprstuvwyeb",
    "\u115f\u1160\u2800\u3164\uffa0",  # invisible letters
)  # fmt: skip
# Capitals that look like a Latin capital although their small letters do not, or look like another letter.
_CONFUSABLE_CAPITALS = str.maketrans(
    "\u0392\u0395\u0396\u0397\u039c\u039d\u03a5\u0412\u041d\u0422\u04ae\u050c", "BEZHMNYBHTYG"
)


def refuse_lookalikes(names: Collection[str]) -> None:
    """Raises RequestError for a name that folds to a field without being one, by case, width, script or visibility."""
    if _KNOWN.issuperset(names):
        return
    for name in names:
        if name in _KNOWN:
            continue
        field = _known_field(name) if len(name) <= MAX_KNOWN_CHARS else resembled_field(name)
        if field is not None:
            shown = in_ascii(name, 64)
            message = f"The body has a field '{shown}', which resembles '{field}'; only '{field}' itself is allowed."
            raise RequestError(message, code="lookalike_field", param=shown)


def resembled_field(name: str) -> str | None:
    """Return the field that a name folds to; None if it folds to none."""
    return _WITHOUT_UNDERSCORES.get(fold_name(name).replace("_", ""))


_known_field = lru_cache(1024)(resembled_field)  # a client sends the same other fields in each of its requests


def fold_name(name: str) -> str:
    """Return a name without case, width, accents, invisible characters and confusable letters of other scripts."""
    if name.isascii():
        return "".join(filter(str.isprintable, name)).strip().casefold().replace("-", "_")
    decomposed = unicodedata.normalize("NFKD", name)
    visible = "".join(c for c in decomposed if unicodedata.category(c) not in ("Cf", "Mn", "Cc"))
    return visible.translate(_CONFUSABLE_CAPITALS).casefold().translate(_CONFUSABLES).strip()


def normalize(text: str) -> str:
    """Return a text without case, width, surrounding space and invisible characters: the form that deny lists match."""
    if text.isascii() and text.isprintable():
        return text.lower().strip()
    return "".join(filter(str.isprintable, unicodedata.normalize("NFKC", text))).casefold().strip()
