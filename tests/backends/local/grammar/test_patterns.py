"""Patterns inside JSON strings."""

import json
import random
import re

import pytest
from llguidance import LLMatcher

from backends.local.grammar import json_schema_grammar
from backends.local.grammar.compilation import _byte_tokenizer, check_compiles, select_enforceable
from backends.local.grammar.patterns import adapt_pattern
from backends.local.grammar.schema import SchemaError

END = 256


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("^[a-z]+$", "^[a-z]+$"),
        ('[^"]', r'[^\x00"]'),
        (r"[^\]]", r"[^\x00\]]"),
        (r"\[^a]", r"\[^a]"),
        (r"[\x00-\x1f]", r"[\x01-\x1f]"),
        (r"[^\u0000-\u001f]", r"[^\x00\x01-\u001f]"),
        ("[[&~^]", r"[\[\&\~^]"),
        (r"\p{Lu}\P{L}[\p{Script=Greek}]", r"\p{Lu}\P{L}[\p{Script=Greek}]"),
    ],
)
def test_classes_are_adapted_to_exclude_nul(pattern, expected):
    assert adapt_pattern(pattern) == expected


@pytest.mark.parametrize("pattern", [r"\x00", r"\0", "\x00", r"[\u{0}a]", r"[\x00-]", r"\p{Cc}", r"\P{P}", r"[\p{C}]"])
def test_an_unsupported_pattern_is_refused_if_strict_and_dropped_otherwise(pattern):
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    with pytest.raises(SchemaError, match="'properties', 'a'"):
        check_compiles(schema, strict=True)
    check_compiles(schema, strict=False)

    assert select_enforceable(schema) == {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    "pattern",
    ['^[^"]$', r"^[^\\]+$", r'^[^"\\]*$', r"^[\x00-\x1f]$", r"^[^\x20-\x7e]$", r"^[\x00-\x21]$", r"^(?:[^\"\\]|\\.)$"],
)
def test_generated_strings_match_the_pattern(pattern):
    """For random choices that prefer the quote and the backslash."""
    start = LLMatcher(_byte_tokenizer(), json_schema_grammar({"type": "string", "pattern": pattern}), log_level=0)
    found = 0
    for seed in range(60):
        text = generate(start.deep_copy(), random.Random(seed))
        if text is not None:
            found += 1
            assert re.search(pattern, json.loads(text), re.DOTALL)

    assert found


def generate(matcher, choices):
    text = bytearray()
    while not matcher.is_stopped() and len(text) < 60:
        allowed = [number for number, bias in enumerate(matcher.compute_logit_bias()) if bias]
        if END in allowed:
            return bytes(text)
        preferred = [number for number in allowed if number in b'"\\']
        number = choices.choice(preferred if preferred and choices.random() < 0.5 else allowed)
        matcher.consume_token(number)
        text.append(number)
    return bytes(text) if matcher.is_stopped() else None
