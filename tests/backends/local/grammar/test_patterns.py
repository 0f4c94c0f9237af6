"""Patterns within JSON."""

import json
import random
import re

import pytest
from llguidance import LLMatcher

from backends.local.grammar import json_schema_grammar
from backends.local.grammar.compiling import _letters, check_compiles, enforceable
from backends.local.grammar.patterns import mended
from backends.local.grammar.schema import Problem

END = 256


@pytest.mark.parametrize(
    ("pattern", "held"),
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
def test_classes_are_held_without_nul(pattern, held):
    assert mended(pattern) == held


@pytest.mark.parametrize("pattern", [r"\x00", r"\0", "\x00", r"[\u{0}a]", r"[\x00-]", r"\p{Cc}", r"\P{P}", r"[\p{C}]"])
def test_what_cannot_be_mended_is_refused_and_dropped_from_what_is_not_strict(pattern):
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    with pytest.raises(Problem, match="'properties', 'a'"):
        check_compiles(schema, strict=True)
    check_compiles(schema, strict=False)

    assert enforceable(schema) == {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    "pattern",
    ['^[^"]$', r"^[^\\]+$", r'^[^"\\]*$', r"^[\x00-\x1f]$", r"^[^\x20-\x7e]$", r"^[\x00-\x21]$", r"^(?:[^\"\\]|\\.)$"],
)
def test_what_is_said_matches(pattern):
    """Whatever is chosen, the quote and the backslash before all."""
    start = LLMatcher(_letters(), json_schema_grammar({"type": "string", "pattern": pattern}), log_level=0)
    found = 0
    for seed in range(60):
        said = walked(start.deep_copy(), random.Random(seed))
        if said is not None:
            found += 1
            assert re.search(pattern, json.loads(said), re.DOTALL)

    assert found


def walked(matcher, choices):
    said = bytearray()
    while not matcher.is_stopped() and len(said) < 60:
        allowed = [number for number, bias in enumerate(matcher.compute_logit_bias()) if bias]
        if END in allowed:
            return bytes(said)
        liked = [number for number in allowed if number in b'"\\']
        number = choices.choice(liked if liked and choices.random() < 0.5 else allowed)
        matcher.consume_token(number)
        said.append(number)
    return bytes(said) if matcher.is_stopped() else None
