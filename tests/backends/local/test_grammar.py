"""Schemas of callers: refusals, and the grammars that enforce the others."""

import json
from contextlib import suppress

import pytest

from backends.local.decoding.grammar_matcher import GrammarCompiler
from backends.local.grammar import (
    JsonStyle,
    check_schema,
    combine_grammars,
    json_object_grammar,
    json_rule,
    json_schema_grammar,
    schema_prompt,
)
from backends.training.subjects.objects import ANY_OBJECT, dumped
from backends.training.subjects.schemas import SCHEMA
from proxy.wire.errors import RequestError
from tests.models import END, make_tokenizer
from tests.timeouts import fail_if_stuck

TOKENIZER = make_tokenizer()
GRAMMARS = GrammarCompiler(TOKENIZER.to_str(), TOKENIZER.get_vocab_size(), {TOKENIZER.token_to_id(END)})
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


def matches(grammar, text):
    """Whether a text is a complete answer that follows a grammar."""
    matcher = GRAMMARS.matcher(grammar)
    for number in TOKENIZER.encode(text).ids:
        matcher._matcher.consume_token(number)
    return not matcher.error and bool(matcher._matcher.is_accepting())


def refusal(schema, *, strict=True, param="text.format.schema", **other):
    with pytest.raises(RequestError) as refused:
        check_schema(schema, param, strict=strict, **other)
    return refused.value


def test_a_grammar_follows_the_schema_and_the_style():
    compact = JsonStyle(",", ":")

    assert matches(json_schema_grammar(PERSON), '{"name": "Ann"}')
    assert not matches(json_schema_grammar(PERSON), '{"name":"Ann"}')
    assert matches(json_schema_grammar(PERSON, style=compact), '{"name":"Ann"}')
    assert not matches(json_schema_grammar(PERSON), '{"name": "Ann", "age": 3}')


def test_an_object_grammar_allows_any_object():
    assert matches(json_object_grammar(), '{"a": [1, {"b": null}], "c": "d"}')
    assert not matches(json_object_grammar(), "[1]")


def test_a_schema_can_be_a_rule_of_a_larger_grammar():
    grammar = f'start: "<<" person ">>"\nperson: {json_rule(PERSON)}'

    assert matches(grammar, '<<{"name": "Ann"}>>')


def test_combined_grammars_refer_to_each_other_by_name():
    grammar = combine_grammars('start: "a" @tool "c"', {"tool": "start: /b+/"})

    assert matches(grammar, "abbc")
    assert not matches(grammar, "ac")


def test_the_prompt_equals_the_training_text_of_the_demo_model():
    assert schema_prompt(PERSON) == SCHEMA.format(dumped(PERSON))
    assert schema_prompt(None) == ANY_OBJECT


def test_a_refusal_names_the_keyword_and_its_path():
    error = refusal(
        {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}, owner="response_format 'x'"
    )

    assert error.message == (
        "Invalid schema for response_format 'x': In context=('properties', 'tags'), 'uniqueItems' is not permitted."
    )
    assert (error.status, error.code, error.param) == (400, "invalid_json_schema", "text.format.schema")


def test_a_refused_tool_schema_has_its_own_code():
    error = refusal([], param="tools[0].parameters")

    assert error.message == "Invalid schema for tools[0].parameters: In context=(), a schema must be an object."
    assert (error.code, error.param) == ("invalid_function_parameters", "tools[0].parameters")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strng"}, "'type' must be one of"),
        ({"enum": []}, "'enum' must be"),
        ({"properties": []}, "'properties' must be"),
        ({"properties": {"a": False}, "required": ["a"], "type": "object"}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "Unsatisfiable"),
    ],
)
def test_an_invalid_or_unsatisfiable_schema_is_always_refused(schema, message, strict):
    assert message in refusal(schema, strict=strict).message


LOOSE = {
    "lookahead": ({"type": "string", "pattern": "(?=a)b"}, '"x"', "3"),
    "unknown format": ({"type": "string", "format": "iri"}, '"x"', "3"),
    "not": ({"type": "integer", "not": {"const": 3}}, "3", '"x"'),
    "one of several": ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, '"x"', "3"),
    "far away": ({"type": "object", "properties": {"a": {"$ref": "https://a/b"}}}, '{"b": 1}', "3"),
    "nowhere": ({"$ref": "#/$defs/a"}, "3", "x"),
    "many patterns": ({"type": "string", "allOf": [{"pattern": f"a{n}"} for n in range(20)]}, '"x"', "3"),
    "clashing names": ({"type": "object", "patternProperties": {"^a": {}, "a$": {}}}, '{"b": 1}', "3"),
}


@pytest.mark.parametrize("name", LOOSE)
def test_an_unenforceable_schema_is_refused_only_if_strict(name):
    """Otherwise it is enforced as far as possible."""
    schema, good, bad = LOOSE[name]

    assert "Invalid schema" in refusal(schema).message

    check_schema(schema, "text.format.schema", strict=False)

    assert matches(json_schema_grammar(schema), good)
    assert not matches(json_schema_grammar(schema), bad)
    assert matches(f"start: {json_rule(schema)}", good)


def test_callers_cannot_set_compiler_options():
    """Their options could disable the constraints."""
    schema = {**PERSON, "x-guidance": {"lenient": True, "whitespace_pattern": " *"}}
    check_schema(schema, "text.format.schema", strict=True)

    assert json.loads(json_schema_grammar(schema)) == json.loads(json_schema_grammar(PERSON))


def refs(count):
    return {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(count)}


HOSTILE = {
    "nested quantifiers": {"type": "string", "pattern": "^((a+)+)+$"},
    "counted": {"type": "string", "pattern": "^(((a{1,1000}){1,1000}){1,1000})$"},
    "exponential": {"type": "string", "pattern": "^(a|b)*a(a|b){40}$"},
    "long pattern": {"type": "string", "pattern": "(a|b)" * 30_000},
    "minLength": {"type": "string", "minLength": 10**9},
    "minLength and pattern": {"type": "string", "minLength": 10**6, "pattern": "^(a|bc)*$"},
    "maxItems": {"type": "array", "items": {"type": "string"}, "minItems": 10**9, "maxItems": 10**9},
    "minProperties": {"type": "object", "minProperties": 10**9},
    "enum": {"enum": [f"value {n}" for n in range(19_000)]},
    "optional": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}},
    "more optional": {"type": "object", "properties": {f"p{n}": {} for n in range(9_000)}},
    "names": {"type": "object", "patternProperties": {f"^(k|j)*{n}[a-z]*z$": {} for n in range(90)}},
    "more names": {"type": "object", "patternProperties": {f"^k{n}_": {} for n in range(1000)}},
    "joined names": {
        "$defs": {"a": {"type": "object", "patternProperties": {f"^(k|j)*{n}z$": {} for n in range(60)}}},
        "anyOf": [{"$ref": "#/$defs/a", "properties": {f"p{n}": {}}} for n in range(1000)],
    },
    "patterns together": {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{n}}}c"} for n in range(30)]},
    "patterns by reference": {
        "$ref": "#/$defs/a0",
        "$defs": {f"a{n}": {"pattern": f"(a|b)*a(a|b){{{n}}}c", "$ref": f"#/$defs/a{n + 1}"} for n in range(30)}
        | {"a30": {}},
    },
    "patterns of a property": {
        "type": "object",
        "allOf": [{"properties": {"k": {"type": "string", "pattern": f"a{n}"}}} for n in range(30)],
    },
    "diamonds": {"$ref": "#/$defs/a0", "$defs": refs(40) | {"a40": {"type": "string"}}},
    "circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "circle of all": {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]}}},
    "product": {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"k{j}_{n}": {"type": "integer"}}} for n in range(10)]}
            for j in range(9)
        ]
    },
    "one of": {
        "oneOf": [{"type": "object", "properties": {"k": {"const": f"p{n}"}}, "required": ["k"]} for n in range(3000)]
    },
    "any of": {"anyOf": [{"type": "object", "properties": {f"p{n}": {"type": "string"}}} for n in range(4000)]},
    "wide": {"allOf": [{"$ref": "#/$defs/x"}] * 300, "$defs": {"x": {"properties": {f"p{n}": {} for n in range(900)}}}},
    "multiples": {"type": "integer", "multipleOf": 4294967291, "minimum": 4294967292, "maximum": 8589934581},
    "huge numbers": {"type": "integer", "minimum": 10**300},
    "long text": {"const": "a" * 10**6},
}


def larger_enum():
    """Return what takes too long to build in every process that imports this file."""
    return {"enum": [f"value {n}" for n in range(10**6)]}


def deep(levels, keyword):
    schema = {}
    for _ in range(levels):
        schema = {keyword: {"a": schema}} if keyword == "properties" else {keyword: [schema]}
    return schema


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "schema",
    [*HOSTILE.values(), deep(40, "properties"), deep(900, "properties"), deep(900, "anyOf"), larger_enum],
    ids=[*HOSTILE, "deep", "deeper", "deeper lists", "larger enum"],
)
def test_no_schema_takes_long_to_check(schema, strict):
    """Each is refused or compiled, most within milliseconds."""
    schema = schema() if callable(schema) else schema
    with fail_if_stuck(), suppress(RequestError):
        check_schema(schema, "text.format.schema", strict=strict)
        json_schema_grammar(schema)
