"""A checked schema -> the schema that is held while tokens are made, with how its JSON is to be written.

What a caller did not ask to be strict is held as far as it can be: keywords that cannot are left to the model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from backends.local.grammar.complaints import plain
from backends.local.grammar.hardness import check_hardness
from backends.local.grammar.patterns import with_mended_patterns
from backends.local.grammar.schema import JSON, Path, Problem, nodes, without

# What is dropped first from a schema that does not compile: what limits texts, numbers and counts, but not the shape.
LIMITING = frozenset({
    "pattern", "format", "patternProperties", "minLength", "maxLength", "minItems", "maxItems", "minProperties",
    "maxProperties", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
})  # fmt: skip
# Schemas up to this size are remembered by their text: callers send the same ones again with every call.
REMEMBERED, REMEMBERED_CHARS = 128, 64_000
# How much work the patterns of a grammar may be: about 50,000 in a millisecond. The engine itself gives 1,000,000.
FUEL = 400_000
MAX_ITEMS_IN_ROW = 10_000  # as where tokens are made
UNSATISFIABLE = "Unsatisfiable schema"


@dataclass(frozen=True, slots=True)
class Style:
    """How JSON is written between its values: a comma and a colon, each with or without white space around."""

    item_separator: str = ", "
    key_separator: str = ": "

    def __post_init__(self) -> None:
        if self.item_separator.strip(" \n\t") != "," or self.key_separator.strip(" \n\t") != ":":
            raise ValueError("JSON is separated by ',' and ':', with white space around them if any.")


COMMON = Style()


def as_text(value: Any) -> str:
    """JSON as models are trained on it, and as schemas stand in prompts."""
    return json.dumps(value, ensure_ascii=False)


def with_options(schema: Mapping[str, Any], style: Style, *, lenient: bool = True) -> JSON:
    """The schema with the key that llguidance reads its options from."""
    options = {
        "whitespace_flexible": False, "item_separator": style.item_separator, "key_separator": style.key_separator,
        "lenient": lenient,
    }  # fmt: skip
    return {**with_mended_patterns(schema), "x-guidance": options}


def check_compiles(schema: Mapping[str, Any], *, strict: bool) -> None:
    """Raises Problem for a schema that cannot be held, or, unless strict, only for one that no value satisfies."""
    if strict:
        check_hardness(schema)
    elif _is_hard(schema):
        return
    message = refusal(_grammar(schema, lenient=not strict))
    if message and (strict or message.startswith(UNSATISFIABLE)):
        raise Problem(message, _place(schema, message))


def enforceable(schema: Mapping[str, Any]) -> JSON:
    """As much of a checked schema as can be held: all of it, all but LIMITING, or that it is an object."""
    for candidate in (dict(schema), without(dict(schema), LIMITING)):
        if not _is_hard(candidate) and not refusal(_grammar(candidate, lenient=True)):
            return candidate
    return {"type": "object"} if schema.get("type") == "object" or "properties" in schema else {}


def refusal(grammar: str) -> str:
    """What is against following a grammar, in a line; "" for nothing."""
    return (_remembered if len(grammar) <= REMEMBERED_CHARS else _refusal)(grammar)


def _refusal(grammar: str) -> str:
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(initial_lexer_fuel=FUEL, max_items_in_row=MAX_ITEMS_IN_ROW, verbose_errors=False)
    matcher = LLMatcher(_letters(), grammar, log_level=0, limits=limits)
    if not matcher.is_error():  # not all that compiles can begin
        forced = matcher.compute_ff_bytes()
        matcher.consume_tokens(list(forced))
    if not matcher.is_stopped():
        matcher.compute_bitmask()
    return plain(matcher.get_error())


@lru_cache(1)
def _letters() -> Any:
    """A tokenizer in which each byte is a token; the model's own would take long, and is the engine's."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(Letters()), slices=[])


class Letters:
    """As llguidance reads it."""

    eos_token_id, bos_token_id = 256, None
    tokens = (*(bytes([number]) for number in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


_remembered = lru_cache(REMEMBERED)(_refusal)


def _place(schema: Mapping[str, Any], message: str) -> Path:
    """Where the first of the keywords is that a message names."""
    return next((path for path, node in nodes(schema) for word in node if f"'{word}'" in message), ())


def _grammar(schema: Mapping[str, Any], *, lenient: bool) -> str:
    return as_text({"grammars": [{"json_schema": with_options(schema, COMMON, lenient=lenient)}]})


def _is_hard(schema: Mapping[str, Any]) -> bool:
    try:
        check_hardness(schema)
    except Problem:
        return True
    return False
