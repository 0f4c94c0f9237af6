"""The request's tools: in the form that chat templates take, and as what the model may be made to call.

    function    its arguments are held to its schema, unless it says strict = false
    custom      to the model a function with one text; with a grammar, that text as it stands
    namespace   functions and custom tools whose names begin with its own
    all others  run on a server or in a client of their own: refused by name, or left out where the operator says so

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-tools
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from backends.local.grammar import lark_grammar, refuse_unsupported, regex_grammar
from backends.local.names import BETWEEN, CUSTOM_INPUT, flat_name
from backends.local.request.faults import missing, shown, unsupported, wrong_type, wrong_value
from backends.local.speech import Kind
from proxy.wire.errors import RequestError

JSON = dict[str, Any]

MOST_BYTES = 300_000  # each schema is bounded by itself; many large ones would keep a thread busy for minutes
NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
ANY_OBJECT: JSON = {"type": "object", "properties": {}}
# A schema that says no type may still be an object's where one of these says what.
OF_OBJECTS = ("properties", "additionalProperties", "patternProperties", "required", "$ref", "anyOf", "oneOf", "allOf")
ONE_TEXT: JSON = {
    "type": "object",
    "properties": {CUSTOM_INPUT: {"type": "string"}},
    "required": [CUSTOM_INPUT],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Tool:
    kind: Kind
    name: str
    namespace: str | None
    description: str
    parameters: JSON
    held: bool = False  # whether a call is to be held to its parameters, or to its grammar
    grammar: str = ""  # in Lark, of a custom tool's text

    @property
    def flat_name(self) -> str:
        """As the model knows it."""
        return flat_name(self.name, self.namespace)

    @property
    def definition(self) -> JSON:
        """As chat templates take it."""
        function = {"name": self.flat_name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


def read_tools(body: Mapping[str, Any], *, ignored: list[str] | None) -> list[Tool]:
    """The tools that the model can call. Raises RequestError.

    What it cannot is refused or, given a list, left out and put there.
    """
    if len(orjson.dumps(body.get("tools"))) > MOST_BYTES:
        found = f"The definitions of the tools are too long; the limit is {MOST_BYTES} bytes of JSON in all."
        raise RequestError(found, code="array_above_max_length", param="tools")
    tools = list(_tools(body.get("tools") or [], "tools", None, ignored))
    known: set[str] = set()
    for tool in tools:
        if tool.flat_name in known:
            raise RequestError(f"Duplicate tool name: '{shown(tool.flat_name)}'.", code="invalid_value", param="tools")
        known.add(tool.flat_name)
    return tools


def _tools(given: Any, where: str, namespace: str | None, ignored: list[str] | None) -> Iterator[Tool]:
    if not isinstance(given, list):
        raise wrong_type(where, "an array of objects", given)
    for index, tool in enumerate(given):
        place = f"{where}[{index}]"
        if not isinstance(tool, dict):
            raise wrong_type(place, "an object", tool)
        kind = _text(tool, "type", place, needed=True)
        if kind == "namespace" and namespace is None:
            yield from _tools(tool.get("tools"), f"{place}.tools", _name(tool, place), ignored)
        elif kind in READERS:
            yield READERS[kind](tool, place, namespace)
        elif kind == "namespace":
            raise unsupported(place, "a namespace cannot stand within another one.")
        elif ignored is None:
            raise unsupported(
                place, f"this model has no tools of type '{shown(kind)}'; it has 'function', 'custom' and 'namespace'."
            )
        else:
            ignored.append(f"{place}.{kind[:40]}")


def _function(tool: JSON, where: str, namespace: str | None) -> Tool:
    strict = tool.get("strict")
    if not isinstance(strict, bool | None):
        raise wrong_type(f"{where}.strict", "a boolean", strict)
    parameters = tool.get("parameters")
    if not isinstance(parameters, dict | None):
        raise wrong_type(f"{where}.parameters", "an object", parameters)
    name = _name(tool, where, namespace)
    if parameters:
        _check_root(parameters, f"{where}.parameters", name)
        refuse_unsupported(parameters, f"{where}.parameters", strict=strict is True, of=f"function '{name}'")
    description, held = _text(tool, "description", where), bool(parameters) and strict is not False
    return Tool("function", name, namespace, description, parameters or ANY_OBJECT, held)


def _check_root(parameters: JSON, where: str, name: str) -> None:
    """Arguments have names, so their schema is an object's."""
    kind = parameters.get("type", "object")
    if kind != "object" or not {"type", *OF_OBJECTS}.intersection(parameters):
        found = "None" if "type" not in parameters else str(kind)[:40]
        raise RequestError(
            f"Invalid schema for function '{name}': schema must be a JSON Schema of 'type: \"object\"', "
            f"got 'type: \"{found}\"'.",
            code="invalid_function_parameters", param=where,
        )  # fmt: skip


def _custom(tool: JSON, where: str, namespace: str | None) -> Tool:
    form = tool.get("format") or {"type": "text"}
    if not isinstance(form, dict):
        raise wrong_type(f"{where}.format", "an object", form)
    name, description = _name(tool, where, namespace), _text(tool, "description", where)
    match _text(form, "type", f"{where}.format", needed=True):
        case "text":
            return Tool("custom", name, namespace, description, ONE_TEXT)
        case "grammar":
            syntax, definition = (_text(form, key, f"{where}.format", needed=True) for key in ("syntax", "definition"))
            if syntax not in GRAMMARS:
                raise wrong_value(f"{where}.format.syntax", syntax, "'lark' and 'regex'")
            grammar = GRAMMARS[syntax](definition, f"{where}.format.definition")
            told = f"{description}\n\nThe input must match this {syntax} grammar:\n{definition}".lstrip()
            return Tool("raw", name, namespace, told, ONE_TEXT, held=True, grammar=grammar)
        case other:
            raise wrong_value(f"{where}.format.type", other, "'text' and 'grammar'")


READERS: Mapping[str, Callable[[JSON, str, str | None], Tool]] = {"function": _function, "custom": _custom}
GRAMMARS: Mapping[str, Callable[[str, str], str]] = {"lark": lark_grammar, "regex": regex_grammar}


def _name(tool: JSON, where: str, namespace: str | None = None) -> str:
    name = _text(tool, "name", where, needed=True)
    if not NAME.fullmatch(flat_name(name, namespace)):
        raise RequestError(
            f"Invalid '{where}.name': '{shown(name)}' does not match '^[a-zA-Z0-9_-]{{1,128}}$'"
            + (f", '{shown(namespace)}{BETWEEN}' before it." if namespace else "."),
            code="invalid_value", param=f"{where}.name",
        )  # fmt: skip
    return name


def _text(tool: JSON, key: str, where: str, *, needed: bool = False) -> str:
    text = tool.get(key)
    if needed and (text is None or text == ""):
        raise missing(f"{where}.{key}")
    if not isinstance(text, str | None):
        raise wrong_type(f"{where}.{key}", "a string", text)
    return text or ""
