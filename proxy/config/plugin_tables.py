"""Tables with `use` -> plug-ins: policies, stores and backends. What a running config has already is taken from there.

Every error names its key as a path from the top: `policy[0].max_pairs`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel

from backends import Backend
from policies import Policy
from proxy.config.plugins import load, plugin_names
from proxy.config.positions import join
from proxy.config.schema import CacheTable, SelectorTable, StateTable
from proxy.config.validation import ConfigError, M, suggest, suggest_or_list, validate
from proxy.rules.rule import Rule, compile_selector
from proxy.stores import Store

T = TypeVar("T")
P = ParamSpec("P")


def collect(faults: list[str], make: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
    """Return what a function makes; None, and one fault more, if it raises ConfigError."""
    try:
        return make(*args, **options)
    except ConfigError as error:
        faults.append(str(error))
        return None


def collect_each(
    make: Callable[[Mapping[str, Any], str], T], tables: Sequence[Mapping[str, Any]], name: str
) -> list[T]:
    """Return what a function makes of each table. Raises ConfigError with the faults of all."""
    faults: list[str] = []
    made = [collect(faults, make, table, f"{name}[{index}]") for index, table in enumerate(tables)]
    if faults:
        raise ConfigError("\n".join(faults))
    return [part for part in made if part is not None]


def rules_of(tables: Sequence[Mapping[str, Any]]) -> list[Rule]:
    """Return the rules that a list of [[policy]] tables describes. Raises ConfigError."""
    return collect_each(_rule, tables, "policy")


def _rule(table: Mapping[str, Any], path: str) -> Rule:
    selectors, policy = _split(SelectorTable, table, path, _policy)
    name = selectors.use.rpartition(".")[2]
    callers, models = compile_selector(selectors.callers), compile_selector(selectors.models)
    return Rule(name, policy, selectors.mode, callers, models, selectors.rollout)


def state_of(table: Mapping[str, Any]) -> tuple[StateTable, Store]:
    return _split(StateTable, table, "state", _store)


def cache_of(table: Mapping[str, Any]) -> tuple[CacheTable, Store]:
    return _split(CacheTable, table, "cache", _store)


def _policy(use: str, own: Mapping[str, Any], path: str) -> Policy:
    return _plugin(use, "policies", Policy, own, path)


def _store(use: str, own: Mapping[str, Any], path: str) -> Store:
    return _plugin(use, "proxy.stores", Store, own, path)  # type: ignore[type-abstract]  # for comparison only


def _backend(use: str, own: Mapping[str, Any], path: str) -> Backend:
    return _plugin(use, "backends", Backend, own, path)  # type: ignore[type-abstract]  # for comparison only


def backends_of(
    faults: list[str], tables: Sequence[Mapping[str, Any]], known: Mapping[str, Backend]
) -> dict[str, Backend]:
    """Return backends by their names; one of `known` in place of one that is the same. Others are `faults`."""
    backends: dict[str, Backend] = {}

    def make(table: Mapping[str, Any], path: str) -> Backend:
        own = dict(table)
        use = own.pop("use", None)
        if not isinstance(use, str):
            raise ConfigError(f'{path}.use: missing; name the kind of backend, such as use = "upstream"')
        backend = _backend(use, own, path)
        backend = same_or(backend, known.get(backend.name))
        if backends.setdefault(backend.name, backend) is not backend:
            raise ConfigError(f"{path}.name: there are two backends called '{backend.name}'")
        return backend

    collect(faults, collect_each, make, tables, "backend")
    return backends


def _split(
    kind: type[M], table: Mapping[str, Any], path: str, make: Callable[[str, Mapping[str, Any], str], T]
) -> tuple[M, T]:
    """Return the keys that every table of this kind has, and what is made of the others by the class of `use`."""
    faults: list[str] = []
    shared = {key: value for key, value in table.items() if key in kind.model_fields}
    own = {key: value for key, value in table.items() if key not in kind.model_fields}
    settings = collect(faults, validate, kind, shared, path)
    use = table.get("use", kind.model_fields["use"].default)
    made = collect(faults, make, use, own, path) if isinstance(use, str) else None
    if "use" not in table and made is None:  # which keys it may have is not known, but one may be a misspelt `use`
        meant = {key: suggest(key, kind.model_fields) for key in own}
        faults += [f"{join(path, key)}: unknown key{hint}" for key, hint in meant.items() if hint]
    if settings is None or made is None:
        raise ConfigError("\n".join(faults))
    return settings, made


def _plugin(use: str, package: str, kind: type[M], own: Mapping[str, Any], path: str) -> M:
    try:
        plugin = load(use, package, kind)
    except ValueError as error:
        known = suggest_or_list(use, plugin_names(package)) if "." not in use else ""
        raise ConfigError(f"{path}.use: {error}{known}") from error
    return validate(plugin, own, path)


def same_or(made: M, known: M | None) -> M:
    """Return a part of a running config if it has the class and the settings of a new one, secrets included."""
    return known if known is not None and _settings(known) == _settings(made) else made


def _settings(part: BaseModel) -> tuple[type[BaseModel], dict[str, Any]]:
    """Return the class and the keys of a part: what it has become since it was started does not count."""
    return type(part), {name: getattr(part, name) for name in type(part).model_fields}
