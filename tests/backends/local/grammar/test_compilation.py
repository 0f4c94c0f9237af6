"""The part of a schema that is enforced, and the compiler's errors in callers' words."""

import pytest

from backends.local.grammar import check_schema, compilation
from backends.local.grammar.compilation import (
    DEFAULT_STYLE,
    JsonStyle,
    add_compiler_options,
    check_compiles,
    compile_error,
    select_enforceable,
    translate_error,
)
from backends.local.grammar.schema import SchemaError
from proxy.wire.errors import RequestError


def test_a_whole_schema_is_enforced_if_possible():
    schema = {"type": "string", "pattern": "^a+$", "title": "A"}

    assert select_enforceable(schema) == schema


def test_limits_are_dropped_from_a_schema_that_does_not_compile():
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)"}}, "required": ["a"]}

    assert select_enforceable(schema) == {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object", "$ref": "#/nowhere"}, {"type": "object"}),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, {"type": "object"}),
        ({"$ref": "#/nowhere"}, {}),
    ],
)
def test_only_the_type_remains_of_a_schema_that_never_compiles(schema, expected):
    assert select_enforceable(schema) == expected


@pytest.mark.parametrize("separators", [("", ":"), (",", " "), (", x", ":"), (",,", ":")])
def test_a_style_has_the_separators_of_json(separators):
    """The compiler reads them as patterns."""
    with pytest.raises(ValueError, match="The separators of JSON are"):
        JsonStyle(*separators)


def test_compiler_options_replace_those_of_the_caller():
    options = add_compiler_options({"x-guidance": {"whitespace_flexible": True}}, DEFAULT_STYLE)["x-guidance"]

    assert options == {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}


def test_a_compile_error_is_one_short_line():
    message = compile_error("start: b\n" + "\n".join(f"c{n}: /c/" for n in range(99)))

    assert "unknown name" in message
    assert "\n" not in message
    assert len(message) <= compilation.MAX_MESSAGE_CHARS
    assert compile_error('start: "a"') == ""


def test_numbers_beyond_json_are_refused():
    """Python serialises them, but JSON does not allow them."""
    assert compile_error('{"grammars": [{"json_schema": {"const": NaN}}]}') != ""


@pytest.mark.parametrize(
    ("schema", "strict"), [({"not": {}}, True), (({"type": "integer", "minimum": 2, "maximum": 1}), False)]
)
def test_a_schema_that_does_not_compile_is_refused(schema, strict):
    with pytest.raises(SchemaError):
        check_compiles(schema, strict=strict)


def test_the_same_schema_is_compiled_once(monkeypatch):
    """Callers send the same schemas with every call."""
    schema = {"const": "compiled twice"}
    select_enforceable(schema)
    before = compilation._cached_compile.cache_info().misses
    select_enforceable(schema)

    assert compilation._cached_compile.cache_info().misses == before


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("", ""),
        (
            "Unable to determine if regex is empty: (And (SearchRegex",
            "it is too large, or its patterns are too complex.",
        ),
        (
            "Failed to generate regex for integer range: min=Some(",
            "'minimum' or 'maximum' is too large or too precise.",
        ),
        ("regex parse error:\n  a(\n   ^\nerror: unclosed group", "a pattern is not valid: unclosed group."),
        ("NoExtensionBias\n<non-verbose/>", "nothing can match it."),
        ("something\n else", "something else"),
    ],
)
def test_compiler_messages_are_translated_for_callers(message, expected):
    assert translate_error(message) == expected


def test_a_compile_error_is_reported_with_its_path():
    overlapping = {"oneOf": [{"type": "string"}, {"type": "string", "pattern": "a"}]}
    with pytest.raises(RequestError, match=r"'properties', 'a'.*'oneOf' whose choices may overlap") as refused:
        check_schema({"type": "object", "properties": {"a": overlapping}}, "text.format.schema", strict=True)

    assert "coerce" not in refused.value.message
