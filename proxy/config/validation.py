"""Tables as typed -> checked tables. Every error names its key as a path from the top: `policy[0].max_pairs`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

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
    for problem in error.errors():
        where = path
        for step in problem["loc"]:
            where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else str(step)
        if problem["type"] == "extra_forbidden":
            keys = _keys_at(kind, problem["loc"][:-1], path)
            yield f"{where}: unknown key{suggest(str(problem['loc'][-1]), keys)}"
        elif problem["type"] == "missing":
            yield f"{where}: missing"
        else:
            yield f"{where}: {problem['msg'].removeprefix('Value error, ')}{_hint(where, problem)}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the known one that is meant, if one is similar."""
    names = sorted(set(known) - {name})
    close = get_close_matches(name, names, 1) or [each for each in names if each.startswith(f"{name}_")]
    return f"; did you mean {close[0]}?" if close else ""


def _hint(where: str, problem: Mapping[str, Any]) -> str:
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
