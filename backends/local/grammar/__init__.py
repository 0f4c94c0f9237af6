"""JSON schemas and grammars of callers -> the grammar text that llguidance compiles where tokens are made.

    charge_schema(schema, "text.format.schema", strict=True)     first, for all schemas of a request: their work
    check_schema(schema, "text.format.schema", strict=True)      then: the caller learns what is wrong
    json_schema_grammar(schema)      the whole answer is a value of this schema: `Options.grammar`
    json_rule(schema)                the same as a rule body of a larger grammar in Lark
    lark_grammar, regex_grammar      the grammar of a custom tool, checked
    combine_grammars(main, parts)    a grammar in Lark in which @name refers to another one

    schema.py        keyword types, limits and unsupported keywords, each reported with its path
    complexity.py    limits on what the compiler would take too long for
    recursion.py     whether a recursive schema has a finite value
    patterns.py      regular expressions as they are enforced inside JSON
    compile_cost.py  how much work the compiler has
    compilation.py   which part of a schema is enforced, and the compiler's errors in callers' words
    custom_tools.py  grammars written by callers

Everything here is text and needs no tokenizer. Checking a schema takes milliseconds, and under a second for any input;
it may run in a thread.
Source: https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md
"""  # fmt: skip

from collections.abc import Mapping
from typing import Any

from backends.local.grammar.compilation import (
    DEFAULT_STYLE,
    JsonStyle,
    add_compiler_options,
    check_compiles,
    dump_json,
    estimate_all_units,
    select_enforceable,
)
from backends.local.grammar.custom_tools import estimate_units, invalid_grammar, lark_grammar, regex_grammar
from backends.local.grammar.recursion import check_recursion
from backends.local.grammar.schema import SchemaError, check_keyword_types, check_keywords, check_size
from backends.local.work_budget import WorkLimitReached, current_budget
from proxy.wire.errors import RequestError

__all__ = [
    "DEFAULT_STYLE", "JsonStyle", "charge_grammar", "charge_schema", "check_schema", "combine_grammars",
    "json_object_grammar", "json_rule", "json_schema_grammar", "lark_grammar", "regex_grammar", "schema_prompt",
]  # fmt: skip

# The demo model is trained on exactly these words: backends/training/subjects/schemas.py.
SCHEMA_PROMPT = "Reply with a JSON object that follows this schema:\n{}"
TOO_MUCH_WORK = "the schemas and grammars up to here take too much work in all; simplify them or send fewer."
ANY_OBJECT_PROMPT = "Reply with a JSON object."


def check_schema(schema: Any, param: str, *, strict: bool, owner: str = "") -> None:
    """Raises RequestError for a schema that cannot be enforced, with the keyword and its path.

    `param` is the parameter that contains it; `owner` names it in messages, such as "response_format 'person'". One
    that is not `strict` is refused only when it is no schema, too large, or when no value satisfies it.
    """
    try:
        if not isinstance(schema, Mapping):
            raise SchemaError("a schema must be an object.")  # noqa: TRY301  reported like all other faults
        check_size(schema)
        check_keyword_types(schema)
        check_recursion(schema)
        if strict:
            check_keywords(schema)
        check_compiles(schema, strict=strict)
    except SchemaError as error:
        raise _schema_error(param, owner, error) from error


def charge_schema(schema: Any, param: str, *, strict: bool, owner: str = "") -> None:
    """Spend the work of compiling a schema. Raises RequestError when the request's budget does not suffice."""
    try:
        if not isinstance(schema, Mapping):
            return
        check_size(schema)
        check_keyword_types(schema)
        units = estimate_all_units(schema, strict=strict)
    except SchemaError:  # check_schema reports it
        return
    try:
        current_budget().spend(units)
    except WorkLimitReached as error:
        raise _schema_error(param, owner, TOO_MUCH_WORK) from error


def charge_grammar(definition: str, syntax: str, param: str) -> None:
    """Spend the work of compiling a custom tool's grammar. Raises RequestError, also when it alone takes too much."""
    try:
        current_budget().spend(estimate_units(definition, syntax, param))
    except WorkLimitReached as error:
        raise invalid_grammar(param, TOO_MUCH_WORK) from error


def _schema_error(param: str, owner: str, reason: object) -> RequestError:
    code = "invalid_function_parameters" if param.startswith("tools") else "invalid_json_schema"
    return RequestError(f"Invalid schema for {owner or param}: {reason}", code=code, param=param)


def json_schema_grammar(schema: Mapping[str, Any], *, style: JsonStyle = DEFAULT_STYLE) -> str:
    """Return the grammar of an answer that is a value of a checked schema, as far as it can be enforced."""
    return dump_json({"grammars": [{"json_schema": add_compiler_options(select_enforceable(schema), style)}]})


def json_object_grammar(*, style: JsonStyle = DEFAULT_STYLE) -> str:
    """Return the grammar of an answer that is any JSON object."""
    return json_schema_grammar({"type": "object"}, style=style)


def json_rule(schema: Mapping[str, Any], *, style: JsonStyle = DEFAULT_STYLE) -> str:
    """Return `%json {...}`: a JSON value of a checked schema, as the body of a rule in Lark."""
    return f"%json {dump_json(add_compiler_options(select_enforceable(schema), style))}"


def combine_grammars(main: str, parts: Mapping[str, str]) -> str:
    """Return one grammar of a main one in Lark and those to which it refers as @name."""
    named = [{"name": name, "lark_grammar": part} for name, part in parts.items()]
    return dump_json({"grammars": [{"lark_grammar": main}, *named]})


def schema_prompt(schema: Mapping[str, Any] | None) -> str:
    """Return the instruction that describes a schema, for the end of the system message; None: any object."""
    return ANY_OBJECT_PROMPT if schema is None else SCHEMA_PROMPT.format(dump_json(schema))
