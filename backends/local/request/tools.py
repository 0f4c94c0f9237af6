"""The request's tools: as chat templates expect them, and as what the model may be made to call.

    function    its arguments follow its schema, unless it says strict = false
    custom      presented to the model as a function with one text; with a grammar, the text is written verbatim
    namespace   functions and custom tools whose names begin with the namespace's
    others      run on a server or in a special client: refused by name, or ignored if the operator allows it

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-tools
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from backends.local.grammar import check_schema, lark_grammar, regex_grammar
from backends.local.request.conversation import ADDITIONAL_TOOLS
from backends.local.request.validation import (
    invalid_type,
    invalid_value,
    missing_parameter,
    shorten,
    unsupported_value,
)
from backends.local.speech import ToolKind
from backends.local.speech.segments import INPUT_PARAMETER, NAMESPACE_SEPARATOR, flat_name
from proxy.wire.errors import RequestError

JSON = dict[str, Any]

MAX_BYTES = 300_000  # beyond it even reading the definitions takes long
NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
ANY_OBJECT: JSON = {"type": "object", "properties": {}}
# A schema without a type may still be that of an object if it has one of these.
OBJECT_KEYWORDS = (
    "properties", "additionalProperties", "patternProperties", "required", "$ref", "anyOf", "oneOf", "allOf",
)  # fmt: skip
INPUT_SCHEMA: JSON = {
    "type": "object",
    "properties": {INPUT_PARAMETER: {"type": "string"}},
    "required": [INPUT_PARAMETER],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Tool:
    kind: ToolKind
    name: str
    namespace: str | None
    description: str
    parameters: JSON
    constrained: bool = False  # whether calls must follow the parameters' schema, or the grammar
    grammar: str = ""  # in Lark, of a custom tool's input

    @property
    def flat_name(self) -> str:
        """The name by which the model knows it."""
        return flat_name(self.name, self.namespace)

    @property
    def definition(self) -> JSON:
        """The tool as chat templates expect it."""
        function = {"name": self.flat_name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


def read_tools(body: Mapping[str, Any], *, ignored: list[str] | None) -> list[Tool]:
    """Return the tools that the model can call. Raises RequestError.

    Other tools are refused or, if a list is given, left out and appended to it.
    """
    lists = tool_lists(body)
    if is_too_long(lists):
        message = f"The definitions of the tools are too long; the limit is {MAX_BYTES} bytes of JSON in all."
        raise RequestError(message, code="array_above_max_length", param="tools")
    tools = [tool for where, given in lists for tool in _read_list(given, where, None, ignored)]
    names: set[str] = set()
    for tool in tools:
        if tool.flat_name in names:
            message = f"Duplicate tool name: '{shorten(tool.flat_name)}'."
            raise RequestError(message, code="invalid_value", param="tools")
        names.add(tool.flat_name)
    return tools


def tool_lists(body: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return every list of tools that a request gives the model, and where it is: `tools`, and in items of input.

    Empty ones are left out.
    """
    given, own = body.get("input"), body.get("tools")
    return [("tools", own)] * bool(own) + [
        (f"input[{index}].tools", item["tools"])
        for index, item in enumerate(given if isinstance(given, list) else ())
        if isinstance(item, dict) and item.get("type") == ADDITIONAL_TOOLS and item.get("tools")
    ]


def is_too_long(lists: Sequence[tuple[str, Any]]) -> bool:
    """Whether the definitions of the tools are longer than MAX_BYTES."""
    return sum(len(orjson.dumps(given)) for _, given in lists) > MAX_BYTES


def _read_list(given: Any, where: str, namespace: str | None, ignored: list[str] | None) -> Iterator[Tool]:
    if not isinstance(given, list):
        raise invalid_type(where, "an array of objects", given)
    for index, tool in enumerate(given):
        place = f"{where}[{index}]"
        if not isinstance(tool, dict):
            raise invalid_type(place, "an object", tool)
        kind = _read_string(tool, "type", place, required=True)
        if kind == "namespace" and namespace is None:
            yield from _read_list(tool.get("tools"), f"{place}.tools", _read_name(tool, place), ignored)
        elif kind in READERS:
            yield READERS[kind](tool, place, namespace)
        elif kind == "namespace":
            raise unsupported_value(place, "a namespace cannot contain another one.")
        elif ignored is None:
            supported = "it has 'function', 'custom' and 'namespace'"
            remedy = "An operator can have others ignored with ignore_unknown_tools."
            raise unsupported_value(place, f"this model has no tools of type '{shorten(kind)}'; {supported}. {remedy}")
        else:
            ignored.append(f"{place}.{kind[:40]}")


def _read_function(tool: JSON, where: str, namespace: str | None) -> Tool:
    strict = tool.get("strict")
    if not isinstance(strict, bool | None):
        raise invalid_type(f"{where}.strict", "a boolean", strict)
    parameters = tool.get("parameters")
    if not isinstance(parameters, dict | None):
        raise invalid_type(f"{where}.parameters", "an object", parameters)
    name = _read_name(tool, where, namespace)
    if parameters:
        _check_is_object(parameters, f"{where}.parameters", name)
        check_schema(parameters, f"{where}.parameters", strict=strict is True, owner=f"function '{name}'")
    description, constrained = _read_string(tool, "description", where), bool(parameters) and strict is not False
    return Tool("function", name, namespace, description, parameters or ANY_OBJECT, constrained)


def _check_is_object(parameters: JSON, where: str, name: str) -> None:
    """Raises RequestError for a schema that is not an object's, because arguments have names."""
    kind = parameters.get("type", "object")
    if kind != "object" or not {"type", *OBJECT_KEYWORDS}.intersection(parameters):
        found = "None" if "type" not in parameters else str(kind)[:40]
        raise RequestError(
            f"Invalid schema for function '{name}': schema must be a JSON Schema of 'type: \"object\"', "
            f"got 'type: \"{found}\"'.",
            code="invalid_function_parameters", param=where,
        )  # fmt: skip


def _read_custom(tool: JSON, where: str, namespace: str | None) -> Tool:
    given = tool.get("format") or {"type": "text"}
    if not isinstance(given, dict):
        raise invalid_type(f"{where}.format", "an object", given)
    name, description = _read_name(tool, where, namespace), _read_string(tool, "description", where)
    match _read_string(given, "type", f"{where}.format", required=True):
        case "text":
            return Tool("custom", name, namespace, description, INPUT_SCHEMA)
        case "grammar":
            syntax, definition = (
                _read_string(given, key, f"{where}.format", required=True) for key in ("syntax", "definition")
            )
            if syntax not in GRAMMARS:
                raise invalid_value(f"{where}.format.syntax", syntax, "'lark' and 'regex'")
            grammar = GRAMMARS[syntax](definition, f"{where}.format.definition")
            description = f"{description}\n\nThe input must match this {syntax} grammar:\n{definition}".lstrip()
            return Tool("raw", name, namespace, description, INPUT_SCHEMA, constrained=True, grammar=grammar)
        case other:
            raise invalid_value(f"{where}.format.type", other, "'text' and 'grammar'")


READERS: Mapping[str, Callable[[JSON, str, str | None], Tool]] = {"function": _read_function, "custom": _read_custom}
GRAMMARS: Mapping[str, Callable[[str, str], str]] = {"lark": lark_grammar, "regex": regex_grammar}


def _read_name(tool: JSON, where: str, namespace: str | None = None) -> str:
    name = _read_string(tool, "name", where, required=True)
    if not NAME.fullmatch(flat_name(name, namespace)):
        raise RequestError(
            f"Invalid '{where}.name': '{shorten(name)}' does not match '^[a-zA-Z0-9_-]{{1,128}}$'"
            + (f", '{shorten(namespace)}{NAMESPACE_SEPARATOR}' before it." if namespace else "."),
            code="invalid_value", param=f"{where}.name",
        )  # fmt: skip
    return name


def _read_string(tool: JSON, key: str, where: str, *, required: bool = False) -> str:
    text = tool.get(key)
    if required and (text is None or text == ""):
        raise missing_parameter(f"{where}.{key}")
    if not isinstance(text, str | None):
        raise invalid_type(f"{where}.{key}", "a string", text)
    return text or ""
