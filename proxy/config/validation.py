"""Tables as typed -> checked tables. Every error names its key as a path from the top: `policy[0].max_pairs`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from policies import Policy
from proxy.config.schema import CacheTable, SelectorTable, StateTable

M = TypeVar("M", bound=BaseModel)


SHARED_TABLES: Mapping[str, type[BaseModel]] = {"state": StateTable, "cache": CacheTable}
"""The keys that every store has in these tables."""


class ConfigError(ValueError):
    """The faults of a config, one line each, each with the path of its key."""


def validate(kind: type[M], typed: Mapping[str, Any], path: str) -> M:
    """Return a table of this kind. Raises ConfigError."""
    _refuse_large(typed, path)
    try:
        made = kind.model_validate(typed)
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(error, kind, path))) from error
    _refuse_large(vars(made), path)  # a text of digits is an integer after validation
    return made


def _refuse_large(typed: Mapping[str, Any], path: str) -> None:
    """Raises ConfigError for integers that other programs could not read. Source: https://toml.io/en/v1.0.0#integer"""
    if large := list(_large(typed, path)):
        raise ConfigError("\n".join(f"{where}: the integer does not fit in 64 bits" for where in large))


def _large(value: Any, path: str) -> Iterator[str]:
    """The paths of integers that do not fit in 64 bits with a sign."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield path
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _large(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _large(inner, f"{path}[{index}]")


def _problems(error: ValidationError, kind: type[BaseModel], path: str) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for problem in error.errors():
        where = path
        for step in _keys_of(problem["loc"], kind):
            where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else str(step)
        found.setdefault(where, []).append(explain(problem, kind, path, where))
    for where, messages in found.items():
        yield f"{where}: {'; or: '.join(messages)}"


def explain(problem: ErrorDetails, kind: type[BaseModel], path: str, where: str) -> str:
    """Return what is wrong with the key `where` of a table at `path`, and what is allowed."""
    if problem["type"] == "extra_forbidden":
        return f"unknown key{suggest(str(problem['loc'][-1]), _keys_at(kind, problem['loc'][:-1], path))}"
    if problem["type"] == "missing":
        return "missing"
    return f"{problem['msg'].removeprefix('Value error, ')}{_hint(where, problem)}"


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
    names = sorted(set(known) - {name})
    close = get_close_matches(name, names, 1) or [each for each in names if each.startswith(f"{name}_")]
    return f"; did you mean {close[0]}?" if close else ""


def _hint(where: str, problem: ErrorDetails) -> str:
    """Return how a list is written in place of what was found."""
    if problem["type"] not in ("list_type", "tuple_type"):
        return ""
    if isinstance(problem["input"], dict):
        return f"; write [[{where}]], with two brackets" if "." not in where else ""
    return '; write ["..."], with brackets' if isinstance(problem["input"], str) else ""


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
