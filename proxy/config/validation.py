"""Tables as typed -> checked tables. Every error names its key as a path from the top: `policy[0].max_pairs`."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from policies import Policy
from proxy.config.positions import join
from proxy.config.process_tables import ServerTable
from proxy.config.schema import CacheTable, SelectorTable, StateTable

M = TypeVar("M", bound=BaseModel)


SHARED_TABLES: Mapping[str, type[BaseModel]] = {"state": StateTable, "cache": CacheTable}
"""The keys that every store has in these tables."""

TOML_WORDS = {"valid tuple": "valid list", "valid dictionary": "valid table"}
"""TOML's names of types, by pydantic's."""
NAMES_SHOWN = 5
INSTANCE = re.compile(r" or instance of \w+")
UNQUOTED = dict.fromkeys(("int_type", "float_type", "bool_type"), "; write it without quotes")


class ConfigError(ValueError):
    """The faults of a config, one line each, each with the path of its key."""


def validate(kind: type[M], typed: Mapping[str, Any], path: str) -> M:
    """Return a table of this kind. Raises ConfigError."""
    # Other programs could not read such an integer. Source: https://toml.io/en/v1.0.0#integer
    faults = dict.fromkeys(_large(typed, path) if path else (), "the integer does not fit in 64 bits")
    try:
        made = kind.model_validate(typed)
    except ValidationError as error:
        raise ConfigError(_listed({**_problems(error, kind, path), **faults})) from error
    if faults:
        raise ConfigError(_listed(faults))
    return made


def _listed(faults: Mapping[str, str]) -> str:
    return "\n".join(f"{where}: {message}" for where, message in faults.items())


def _large(value: Any, path: str) -> Iterator[str]:
    """The paths of integers that do not fit in 64 bits with a sign."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield path
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _large(inner, join(path, name))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _large(inner, join(path, index))


def _problems(error: ValidationError, kind: type[BaseModel], path: str) -> Mapping[str, str]:
    """Return the faults by the path of the key."""
    found: dict[str, list[str]] = {}
    for problem in error.errors():
        where = path
        for step in _keys_of(problem["loc"], kind):
            where = join(where, step)
        found.setdefault(where, []).append(explain(problem, kind, path, where))
    return {where: "; or: ".join(messages) for where, messages in found.items()}


def explain(problem: ErrorDetails, kind: type[BaseModel], path: str, where: str) -> str:
    """Return a sentence about the fault of the key `where` of a table at `path`, and what is allowed."""
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        if not path and name in ServerTable.model_fields and len(problem["loc"]) == 1:
            return "unknown key; it is one of [server]"
        return f"unknown key{suggest(name, _keys_at(kind, problem['loc'][:-1], path))}"
    if problem["type"] == "missing":
        return "missing"
    message = problem["msg"].removeprefix("Value error, ")
    for word, ours in TOML_WORDS.items():
        message = message.replace(word, ours)
    return f"{INSTANCE.sub('', message)}{_hint(where, problem)}"


def _keys_of(place: Sequence[int | str], kind: type[BaseModel]) -> Iterator[int | str]:
    """A place without the names that pydantic gives to the alternatives of a union, which are no keys of the file."""
    is_alternative = False
    for step in place:
        if is_alternative:
            is_alternative = False
            continue
        yield step
        if field := kind.model_fields.get(str(step)):
            kind = next(_models_in(field.annotation), kind)
            is_alternative = _is_union(field.annotation)


def _is_union(annotation: Any) -> bool:
    """Whether a value may be of several kinds, None apart."""
    kinds = [part for part in get_args(annotation) if part is not NoneType]
    return get_origin(annotation) in (Union, UnionType) and len(kinds) > 1


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the known one that is meant, if one is similar."""
    names = {each.casefold(): each for each in sorted(set(known) - {name}, reverse=True)}
    folded = name.casefold()
    close = get_close_matches(folded, names, 1) or [each for each in names if each.startswith(f"{folded}_")]
    return f"; did you mean {names[close[0]]}?" if close else ""


def suggest_or_list(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the one that is meant, or those that are known."""
    names = [*known]
    shown = ", ".join([*names[:NAMES_SHOWN], *(["..."] if len(names) > NAMES_SHOWN else [])]) or "there is none"
    return suggest(name, names) or f"; known: {shown}"


def no_such(kind: str, name: str, known: Iterable[str]) -> str:
    """Return a sentence about the name of something that does not exist."""
    return f"there is no {kind} called '{name}'{suggest_or_list(name, known)}"


def _hint(where: str, problem: ErrorDetails) -> str:
    """Return a hint how the value is written in TOML."""
    kind, found = problem["type"], problem["input"]
    is_list, is_number = kind in ("list_type", "tuple_type"), isinstance(found, int | float)
    if isinstance(found, str):
        return '; write ["..."], with brackets' if is_list else UNQUOTED.get(kind, "")
    if is_list and isinstance(found, dict) and "." not in where:
        return f"; write [[{where}]], with two brackets"
    if kind == "dict_type" and isinstance(found, list) and "." not in where:
        return f"; write [{where}], with one bracket"
    return "; write it in quotes" if kind == "string_type" and is_number else ""


def _keys_at(kind: type[BaseModel], place: Sequence[int | str], path: str) -> Iterable[str]:
    """The known keys of the table in which an unknown one was found, those of every plug-in of its kind included."""
    for step in place:
        field = kind.model_fields.get(str(step))
        kind = next(_models_in(field.annotation), kind) if field else kind
    shared = SelectorTable if issubclass(kind, Policy) else SHARED_TABLES.get(path)
    return [*kind.model_fields, *(() if shared is None else shared.model_fields)]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
