"""Tables as typed -> checked tables. Every error names its key as a path from the top: `policy[0].max_pairs`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from policies import Policy
from proxy.config.schema import SelectorTable

M = TypeVar("M", bound=BaseModel)


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
            close = get_close_matches(str(problem["loc"][-1]), _keys_at(kind, problem["loc"][:-1]), 1)
            yield f"{where}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
        elif problem["type"] == "missing":
            yield f"{where}: missing"
        else:
            yield f"{where}: {problem['msg'].removeprefix('Value error, ')}"


def _keys_at(kind: type[BaseModel], place: Sequence[int | str]) -> Iterable[str]:
    """The known keys of the table in which an unknown one was found."""
    for step in place:
        field = kind.model_fields.get(str(step))
        kind = next(_models_in(field.annotation), kind) if field else kind
    return [*kind.model_fields, *(SelectorTable.model_fields if issubclass(kind, Policy) else ())]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
