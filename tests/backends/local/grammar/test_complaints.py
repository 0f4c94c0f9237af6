"""What callers are told."""

import pytest

from backends.local.grammar import refuse_unsupported
from backends.local.grammar.complaints import plain
from backends.local.grammar.custom import lark_grammar, regex_grammar
from proxy.wire.errors import RequestError


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", ""),
        (
            "Unable to determine if regex is empty: (And (SearchRegex",
            "it is too large, or its patterns are too complex.",
        ),
        ("Failed to generate regex for integer range: min=Some(", "'minimum' or 'maximum' is too large, or too exact."),
        ("regex parse error:\n  a(\n   ^\nerror: unclosed group", "a pattern is not valid: unclosed group."),
        ("NoExtensionBias\n<non-verbose/>", "nothing can match it."),
        ("something\n else", "something else"),
    ],
)
def test_it_is_plain(said, told):
    assert plain(said) == told


def test_it_is_told_with_its_place():
    overlapping = {"oneOf": [{"type": "string"}, {"type": "string", "pattern": "a"}]}
    with pytest.raises(RequestError, match=r"'properties', 'a'.*'oneOf' whose choices may overlap") as refused:
        refuse_unsupported({"type": "object", "properties": {"a": overlapping}}, "text.format.schema", strict=True)

    assert "coerce" not in refused.value.message


def test_a_schema_without_end_is_refused():
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    with pytest.raises(RequestError) as refused:
        refuse_unsupported(schema | {"additionalProperties": False}, "text.format.schema", strict=True)

    assert (refused.value.status, refused.value.code) == (400, "invalid_json_schema")


@pytest.mark.parametrize(
    "definition",
    [
        "start: a\na: a",
        'start: "a"~1000000',
        "start: r0\n" + "\n".join(f"r{n}: r{n + 1} r{n + 1}" for n in range(30)) + '\nr30: "a"',
    ],
)
def test_what_cannot_be_followed_is_refused(definition):
    with pytest.raises(RequestError) as refused:
        lark_grammar(definition)

    assert (refused.value.status, refused.value.code) == (400, "invalid_grammar")


def test_a_regex_that_nothing_matches_is_refused():
    with pytest.raises(RequestError, match="nothing can match it"):
        regex_grammar("[^\\s\\S]")
