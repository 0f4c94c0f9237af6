"""A checked schema -> the schema that is enforced while tokens are made, with the style of its JSON.

Unless the caller asks for strictness, a schema is enforced as far as possible: other keywords are left to the model.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from backends.local.grammar.compile_cost import MAX_UNITS, estimate_schema
from backends.local.grammar.complexity import check_complexity
from backends.local.grammar.patterns import adapt_schema_patterns
from backends.local.grammar.schema import JSON, Path, SchemaError, iterate_schemas, remove_keywords
from backends.local.work_budget import current_budget

# What is dropped first from a schema that does not compile: limits of texts, numbers and counts, but not the structure.
LIMIT_KEYWORDS = frozenset({
    "pattern", "format", "patternProperties", "minLength", "maxLength", "minItems", "maxItems", "minProperties",
    "maxProperties", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
})  # fmt: skip
# Results are cached for grammars up to this size, because callers send the same schemas with every call.
CACHED_GRAMMARS, MAX_CACHED_CHARS = 128, 64_000
# How much work the patterns of a grammar may take: about 50,000 in a millisecond. The default is 1,000,000.
LEXER_FUEL = 400_000
# A schema is compiled as often as this: to report its faults, and to find what of it can be enforced.
COMPILATIONS = 2
MAX_ITEMS_IN_ROW = 10_000  # the same limit as where tokens are made
UNSATISFIABLE = "Unsatisfiable schema"

MAX_MESSAGE_CHARS = 200
TOO_COMPLEX = "it is too large, or its patterns are too complex."
# Messages of the compiler name its internals, so these are replaced for callers.
MESSAGES = (
    (r"coerce_one_of", "'oneOf' whose choices may overlap is not supported; use 'anyOf'."),
    (r"NoExtensionBias|NoExtension", "nothing can match it."),
    (r"Unable to determine if regex is empty", TOO_COMPLEX),
    (r"Failed to generate regex for .* range", "'minimum' or 'maximum' is too large or too precise."),
    (r"multipleOf' has too many digits", "'multipleOf' has too many digits."),
    (r"^panic", TOO_COMPLEX),
    (r"(?i)too (?:many|large|big|complex)|fuel|limit", TOO_COMPLEX),
    (r"(?s)regex parse error:.*\nerror: (?P<reason>[^\n]*)", "a pattern is not valid: {}."),
)


@dataclass(frozen=True, slots=True)
class JsonStyle:
    """How JSON is written between its values: a comma and a colon, each with or without white space around it."""

    item_separator: str = ", "
    key_separator: str = ": "

    def __post_init__(self) -> None:
        if self.item_separator.strip(" \n\t") != "," or self.key_separator.strip(" \n\t") != ":":
            raise ValueError("The separators of JSON are ',' and ':', with optional white space around them.")


DEFAULT_STYLE = JsonStyle()


def dump_json(value: Any) -> str:
    """Return JSON in the style that models are trained on and that prompts use."""
    return json.dumps(value, ensure_ascii=False)


def add_compiler_options(schema: Mapping[str, Any], style: JsonStyle, *, lenient: bool = True) -> JSON:
    """Return the schema with the key from which llguidance reads its options."""
    options = {
        "whitespace_flexible": False, "item_separator": style.item_separator, "key_separator": style.key_separator,
        "lenient": lenient,
    }  # fmt: skip
    return {**adapt_schema_patterns(schema), "x-guidance": options}


def check_compiles(schema: Mapping[str, Any], *, strict: bool) -> None:
    """Raises SchemaError for a schema that cannot be enforced; unless strict, only for one that no value satisfies."""
    try:
        estimate_units(schema)
    except SchemaError:
        if strict:
            raise
        return
    message = compile_error(_schema_grammar(schema, lenient=not strict))
    if message and (strict or message.startswith(UNSATISFIABLE)):
        raise SchemaError(message, _find_path(schema, message))


def estimate_units(schema: Mapping[str, Any]) -> int:
    """Return the work of one compilation. Raises SchemaError when it is too much. Requires checked types."""
    check_complexity(schema)
    return estimate_schema(dict(schema))


def estimate_all_units(schema: Mapping[str, Any], *, strict: bool) -> int:
    """Return the work of `check_compiles` and `select_enforceable` together. Requires checked keyword types."""
    units = 0
    for candidate in _candidates(schema):
        try:
            return units + COMPILATIONS * estimate_units(candidate)
        except SchemaError:
            units += MAX_UNITS // 2  # of the estimates
        if strict:
            break
    return units


def _candidates(schema: Mapping[str, Any]) -> Iterator[JSON]:
    yield dict(schema)
    yield remove_keywords(dict(schema), LIMIT_KEYWORDS)


def select_enforceable(schema: Mapping[str, Any]) -> JSON:
    """Return as much of a checked schema as can be enforced: all, all but LIMIT_KEYWORDS, or that it is an object."""
    for candidate in _candidates(schema):
        if not _is_too_complex(candidate) and not compile_error(_schema_grammar(candidate, lenient=True)):
            return candidate
    return {"type": "object"} if schema.get("type") == "object" or "properties" in schema else {}


def compile_error(grammar: str) -> str:
    """Return why a grammar cannot be followed, in one line; "" when it can."""
    return (_cached_compile if len(grammar) <= MAX_CACHED_CHARS else _compile)(grammar)


def translate_error(message: str) -> str:
    """Return a message of the compiler as one line for callers; "" for ""."""
    message = message.replace("<non-verbose/>", "").strip()
    for pattern, replacement in MESSAGES:
        found = re.search(pattern, message)
        if found is not None:
            return replacement.format(found.groupdict().get("reason", "").strip()[:MAX_MESSAGE_CHARS])
    return " ".join(message.split())[:MAX_MESSAGE_CHARS]


def _compile(grammar: str) -> str:
    from llguidance import LLMatcher, LLParserLimits

    current_budget().check()
    limits = LLParserLimits(initial_lexer_fuel=LEXER_FUEL, max_items_in_row=MAX_ITEMS_IN_ROW, verbose_errors=False)
    matcher = LLMatcher(_byte_tokenizer(), grammar, log_level=0, limits=limits)
    if not matcher.is_error():  # a grammar that compiles may still fail at its first token
        forced = matcher.compute_ff_bytes()
        matcher.consume_tokens(list(forced))
    if not matcher.is_stopped():
        matcher.compute_bitmask()
    return translate_error(matcher.get_error())


_cached_compile = lru_cache(CACHED_GRAMMARS)(_compile)


@lru_cache(1)
def _byte_tokenizer() -> Any:
    """Return a tokenizer with one token for each byte; the model's own is slower, and belongs to the engine."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(ByteVocabulary()), slices=[])


class ByteVocabulary:
    """A vocabulary of bytes in the form that llguidance reads."""

    eos_token_id, bos_token_id = 256, None
    tokens = (*(bytes([number]) for number in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _find_path(schema: Mapping[str, Any], message: str) -> Path:
    """Return the path of the first keyword that a message names."""
    return next((path for path, node in iterate_schemas(schema) for key in node if f"'{key}'" in message), ())


def _schema_grammar(schema: Mapping[str, Any], *, lenient: bool) -> str:
    return dump_json({"grammars": [{"json_schema": add_compiler_options(schema, DEFAULT_STYLE, lenient=lenient)}]})


def _is_too_complex(schema: Mapping[str, Any]) -> bool:
    try:
        estimate_units(schema)
    except SchemaError:
        return True
    return False
