"""What an answer must be: JSON schemas and grammars -> the text that llguidance compiles where tokens are made.

    refuse_unsupported(schema, "text.format.schema", strict=True)      first: the caller learns what is wrong
    json_schema_grammar(schema)      the whole answer is a value by this schema: `Options.grammar`
    json_rule(schema)                ... the same as a piece of a larger grammar in Lark
    lark_grammar, regex_grammar      a custom tool's own grammar, checked
    joined(main, parts)              a grammar in Lark in which @name stands for another one

    schema.py     shapes, limits and keywords, each told with its place
    hardness.py   how long a schema may take to compile
    finite.py     whether any value by a schema ends
    patterns.py   patterns as they are held within JSON
    compiling.py  what of a schema is held, and the compiler's word on it
    complaints.py that word, as callers are told
    custom.py     grammars that callers wrote themselves

All of it is text and needs no tokenizer. To check a schema takes milliseconds, and less than a second whatever a caller
may send; a thread may do it.
Source: https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md
"""  # fmt: skip

from collections.abc import Mapping
from typing import Any

from backends.local.grammar.compiling import COMMON, Style, as_text, check_compiles, enforceable, with_options
from backends.local.grammar.custom import lark_grammar, regex_grammar
from backends.local.grammar.finite import check_finite
from backends.local.grammar.schema import Problem, check_keywords, check_shapes, check_size
from proxy.wire.errors import RequestError

__all__ = [
    "COMMON", "Style", "joined", "json_object_grammar", "json_rule", "json_schema_grammar", "lark_grammar",
    "refuse_unsupported", "regex_grammar", "schema_prompt",
]  # fmt: skip

# Word for word what models of ours are trained on: backends/training/subjects/schemas.py.
BY_SCHEMA = "Reply with a JSON object that follows this schema:\n{}"
ANY_OBJECT = "Reply with a JSON object."


def refuse_unsupported(schema: Any, where: str, *, strict: bool, of: str = "") -> None:
    """Raises RequestError for a schema that cannot be held, with the keyword and its place.

    `where` is the parameter it came in; `of` says whose it is, such as "response_format 'person'". One that is not
    `strict` is refused only where it is no schema, too large, or one that no value satisfies.
    """
    try:
        if not isinstance(schema, Mapping):
            raise Problem("a schema must be an object.")  # noqa: TRY301  told like all its other faults
        check_size(schema)
        check_shapes(schema)
        check_finite(schema)
        if strict:
            check_keywords(schema)
        check_compiles(schema, strict=strict)
    except Problem as problem:
        code = "invalid_function_parameters" if where.startswith("tools") else "invalid_json_schema"
        raise RequestError(f"Invalid schema for {of or where}: {problem}", code=code, param=where) from problem


def json_schema_grammar(schema: Mapping[str, Any], *, style: Style = COMMON) -> str:
    """The whole answer is a JSON value by this schema, as far as it can be held. Needs one that was not refused."""
    return as_text({"grammars": [{"json_schema": with_options(enforceable(schema), style)}]})


def json_object_grammar(*, style: Style = COMMON) -> str:
    """The whole answer is a JSON object."""
    return json_schema_grammar({"type": "object"}, style=style)


def json_rule(schema: Mapping[str, Any], *, style: Style = COMMON) -> str:
    """`%json {...}`: a JSON value by this schema, within a rule of a grammar in Lark."""
    return f"%json {as_text(with_options(enforceable(schema), style))}"


def joined(main: str, parts: Mapping[str, str]) -> str:
    """One grammar of a main one in Lark and others, which it names as @name."""
    named = [{"name": name, "lark_grammar": part} for name, part in parts.items()]
    return as_text({"grammars": [{"lark_grammar": main}, *named]})


def schema_prompt(schema: Mapping[str, Any] | None) -> str:
    """What the model is told of the schema, at the end of the system's message; None: any object."""
    return ANY_OBJECT if schema is None else BY_SCHEMA.format(as_text(schema))
