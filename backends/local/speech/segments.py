"""The segments that model output is parsed into, and how a tool call is read from JSON."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from msgspec import Struct

# "function": takes a JSON object of arguments. "custom": takes a text, which the model writes inside JSON.
# "raw": a custom tool whose text the model writes verbatim, because the caller's grammar constrains it.
ToolKind = Literal["function", "custom", "raw"]
ToolKinds = Mapping[str, ToolKind]
"""The tools that may be called, by the name that the model uses."""

# Models know only functions: a custom tool is presented as a function with this one parameter.
INPUT_PARAMETER = "input"
NAMESPACE_SEPARATOR = "__"

ARGUMENT_KEYS = ("arguments", "parameters")
# The key order that models use; it lets the arguments be returned exactly as they were written.
CALL_HEAD = r'\s*\{\s*"name"\s*:\s*"([^"\\]{1,200})"\s*,\s*"(?:arguments|parameters)"\s*:\s*'
CALL = re.compile(CALL_HEAD + r"(\{.*\})\s*\}\s*", re.DOTALL)
PARTIAL_CALL = re.compile(CALL_HEAD + r"(\{.*)", re.DOTALL)
PARTIAL_INPUT = re.compile(
    r'\{\s*"' + INPUT_PARAMETER + r'"\s*:\s*("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*)'
)


class Text(Struct, gc=False):
    text: str
    offset: int  # where it begins in the model's whole output, in characters


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class FunctionCall:
    name: str
    arguments: str  # a JSON object, or a part of one
    complete: bool = True  # False when more of it follows, or when it was cut off


@dataclass(frozen=True, slots=True)
class CustomCall:
    name: str
    input: str
    complete: bool = True


ToolCall = FunctionCall | CustomCall
Segment = Text | Reasoning | ToolCall


def flat_name(name: str, namespace: str | None) -> str:
    """Return the single name by which a model knows a tool that may belong to a namespace."""
    return f"{namespace}{NAMESPACE_SEPARATOR}{name}" if namespace else name


def parse_call(text: str, tools: ToolKinds, *, arguments_optional: bool = True) -> ToolCall | None:
    """Return the call that a JSON object describes, or None.

    With `arguments_optional`, an object without arguments is a call with none.
    """
    found = CALL.fullmatch(text)
    call = build_call(found[1], found[2], tools) if found else None
    if call is not None:
        return call
    described = _load_object(text) or {}
    name = described.get("name")
    default: dict[str, Any] | None = {} if arguments_optional else None
    given: Any = next((described[key] for key in ARGUMENT_KEYS if key in described), default)
    if not isinstance(name, str):
        return None
    if isinstance(given, str):
        return build_call(name, given, tools)
    return build_call(name, orjson.dumps(given).decode(), tools) if isinstance(given, dict) else None


def build_call(name: str, arguments: str, tools: ToolKinds) -> ToolCall | None:
    """Return the call of a tool with these arguments; None for an unknown tool or arguments that do not suit it."""
    kind = tools.get(name)
    if kind is None or not arguments.lstrip().startswith("{"):
        return None
    parsed = _load_object(arguments)
    if parsed is None:
        return None
    if kind == "function":
        return FunctionCall(name, arguments.strip())
    given = parsed.get(INPUT_PARAMETER)
    return CustomCall(name, given) if isinstance(given, str) and len(parsed) == 1 else None


def parse_partial_call(text: str, tools: ToolKinds) -> ToolCall | None:
    """Return the call in a JSON object that was cut off; it is complete when only the end of the object is missing."""
    found = PARTIAL_CALL.fullmatch(text)
    return build_partial_call(found[1], found[2], tools) if found else None


def build_partial_call(name: str, arguments: str, tools: ToolKinds) -> ToolCall | None:
    """Return the call of a tool whose arguments may have been cut off."""
    complete = build_call(name, arguments, tools)
    if complete is not None:
        return complete
    match tools.get(name):
        case "function":
            return FunctionCall(name, arguments, complete=False)
        case "custom":
            found = PARTIAL_INPUT.match(arguments)
            return CustomCall(name, _load_unterminated(found[1]) if found else "", complete=False)
    return None


def _load_unterminated(text: str) -> str:
    """Return the text of a JSON string without its closing quote; half of a surrogate pair is dropped."""
    for end in (len(text), len(text) - len("\\u0000")):
        value = _load(text[:end] + '"')
        if isinstance(value, str):
            return value
    return ""


def _load_object(text: str) -> dict[str, Any] | None:
    value = _load(text)
    return value if isinstance(value, dict) else None


def _load(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None  # invalid JSON, or nested too deeply to parse
