"""The pieces that an answer is made of, and how a call is read from JSON."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from backends.local.names import CUSTOM_INPUT

# What may be called, by name: a function with an object of arguments, a custom tool with a text in JSON, or a custom
# tool whose text stands as it is, because a grammar of the caller's holds it in shape.
Kind = Literal["function", "custom", "raw"]
Names = Mapping[str, Kind]

ARGUMENTS = ("arguments", "parameters")
# The way in which models write a call, so that its arguments can be given as they were written.
HEAD = r'\s*\{\s*"name"\s*:\s*"([^"\\]{1,200})"\s*,\s*"(?:arguments|parameters)"\s*:\s*'
CALL = re.compile(HEAD + r"(\{.*\})\s*\}\s*", re.DOTALL)
HALF = re.compile(HEAD + r"(\{.*)", re.DOTALL)
HALF_INPUT = re.compile(r'\{\s*"' + CUSTOM_INPUT + r'"\s*:\s*("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*)')


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    at: int  # where it begins in all that the model said, counted in characters


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


@dataclass(frozen=True, slots=True)
class FunctionCall:
    name: str
    arguments: str  # a JSON object, or a part of one
    whole: bool = True  # False when there is more to come, or would have been


@dataclass(frozen=True, slots=True)
class CustomCall:
    name: str
    input: str
    whole: bool = True


Call = FunctionCall | CustomCall
Piece = Text | Thought | Call


def call_in(text: str, names: Names, *, bare: bool = True) -> Call | None:
    """The call that a JSON object is; `bare` takes one that says no arguments for one that has none."""
    found = CALL.fullmatch(text)
    call = call_of(found[1], found[2], names) if found else None
    if call is not None:
        return call
    told = _object(text)
    name = told.get("name")
    given: Any = next((told[key] for key in ARGUMENTS if key in told), {} if bare else None)
    if isinstance(given, str):
        return call_of(name, given, names) if isinstance(name, str) else None
    return call_of(name, _dumped(given), names) if isinstance(name, str) and isinstance(given, dict) else None


def call_of(name: str, arguments: str, names: Names) -> Call | None:
    """The call of one of these names with these arguments; None when there is no such name, or they are no object."""
    kind = names.get(name)
    if kind is None or not arguments.lstrip().startswith("{"):
        return None
    told = _parsed(arguments)
    if told is None:
        return None
    if kind == "function":
        return FunctionCall(name, arguments.strip())
    given = told.get(CUSTOM_INPUT)
    return CustomCall(name, given) if isinstance(given, str) and len(told) == 1 else None


def half_call_in(text: str, names: Names) -> Call | None:
    """The call that an object would have become had it not been cut off; whole when it lacks nothing but its end."""
    found = HALF.fullmatch(text)
    return half_call_of(found[1], found[2], names) if found else None


def half_call_of(name: str, arguments: str, names: Names) -> Call | None:
    """The same by its name and the beginning of its arguments."""
    whole = call_of(name, arguments, names)
    if whole is not None:
        return whole
    match names.get(name):
        case "function":
            return FunctionCall(name, arguments, whole=False)
        case "custom":
            found = HALF_INPUT.match(arguments)
            return CustomCall(name, _begun(found[1]) if found else "", whole=False)
    return None


def _begun(text: str) -> str:
    """The text of a JSON string whose end is missing; half a pair of surrogates is left out."""
    for end in (len(text), len(text) - len("\\u0000")):
        told = _value(text[:end] + '"')
        if isinstance(told, str):
            return told
    return ""


def _object(text: str) -> dict[str, Any]:
    return _parsed(text) or {}


def _parsed(text: str) -> dict[str, Any] | None:
    told = _value(text)
    return told if isinstance(told, dict) else None


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None  # not JSON, or nested deeper than any reader goes


def _dumped(value: Any) -> str:
    return orjson.dumps(value).decode()
