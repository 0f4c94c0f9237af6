"""What of a schema is held."""

import pytest

from backends.local.grammar import compiling, complaints
from backends.local.grammar.compiling import COMMON, Style, check_compiles, enforceable, refusal, with_options
from backends.local.grammar.schema import Problem


def test_all_of_it_where_that_is_possible():
    schema = {"type": "string", "pattern": "^a+$", "title": "A"}

    assert enforceable(schema) == schema


def test_else_its_shape():
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)"}}, "required": ["a"]}

    assert enforceable(schema) == {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "held"),
    [
        ({"type": "object", "$ref": "#/nowhere"}, {"type": "object"}),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, {"type": "object"}),
        ({"$ref": "#/nowhere"}, {}),
    ],
)
def test_else_that_it_is_an_object(schema, held):
    assert enforceable(schema) == held


@pytest.mark.parametrize("separators", [("", ":"), (",", " "), (", x", ":"), (",,", ":")])
def test_a_style_is_one_of_json(separators):
    """What stands in it is read as a pattern."""
    with pytest.raises(ValueError, match="JSON is separated by"):
        Style(*separators)


def test_our_options_stand_at_the_top():
    options = with_options({"x-guidance": {"whitespace_flexible": True}}, COMMON)["x-guidance"]

    assert options == {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}


def test_a_refusal_is_one_short_line():
    message = refusal("start: b\n" + "\n".join(f"c{n}: /c/" for n in range(99)))

    assert "unknown name" in message
    assert "\n" not in message
    assert len(message) <= complaints.SHOWN_CHARS
    assert refusal('start: "a"') == ""


def test_numbers_beyond_json_are_refused():
    """Python writes them; no reader of JSON takes them."""
    assert refusal('{"grammars": [{"json_schema": {"const": NaN}}]}') != ""


@pytest.mark.parametrize(
    ("schema", "strict"), [({"not": {}}, True), (({"type": "integer", "minimum": 2, "maximum": 1}), False)]
)
def test_what_does_not_compile_is_a_problem(schema, strict):
    with pytest.raises(Problem):
        check_compiles(schema, strict=strict)


def test_the_same_schema_is_compiled_once(monkeypatch):
    """Callers send the same ones again and again."""
    schema = {"const": "asked twice"}
    enforceable(schema)
    before = compiling._remembered.cache_info().misses
    enforceable(schema)

    assert compiling._remembered.cache_info().misses == before
