"""Tables -> objects. `read` returns a Config whose policies, backends and stores are ready to start.

Every error names its key as a path from the top: `policy[0].max_pairs`.
"""

import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr

from backends import Backend
from policies import Policy
from policies.support.globs import is_glob
from proxy.config import consistency
from proxy.config.plugins import load
from proxy.config.route_faults import route_faults
from proxy.config.schema import (
    AdminTable,
    CacheTable,
    CallerTable,
    KeysTable,
    LogTable,
    RelayTable,
    RouteTable,
    SelectorTable,
    ServerTable,
    StateTable,
    UnknownIds,
    has_teams,
)
from proxy.config.validation import ConfigError, M, validate
from proxy.pricing.table import PriceTable
from proxy.routing.relay import Relay
from proxy.routing.routes import Fallback, PoolSettings, Route
from proxy.rules.rule import Rule, compile_selector
from proxy.stores import Store
from proxy.telemetry.audit import AuditTable
from proxy.telemetry.recorder import RecordTable

T = TypeVar("T")
P = ParamSpec("P")


class ConfigFile(BaseModel):
    """The file as it is written; the tables with `use` are validated again by the class that it names."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    server: ServerTable = ServerTable()
    log: LogTable = LogTable()
    admin: AdminTable | None = None
    caller: list[CallerTable] = []
    keys: KeysTable | None = None
    policy: list[dict[str, Any]] = []
    state: dict[str, Any] = {}
    audit: AuditTable | None = None
    record: RecordTable | None = None
    cache: dict[str, Any] | None = None
    backend: list[dict[str, Any]] = []
    route: list[RouteTable] = []
    relay: list[RelayTable] = []
    price: list[PriceTable] = []


class Config(BaseModel):
    """Everything that a gateway is built from. `state` and `cache_store` are not started."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    server: ServerTable
    log: LogTable
    admin: AdminTable | None
    callers: list[CallerTable]
    keys: KeysTable | None
    rules: list[Rule]
    state: Store
    state_settings: StateTable
    state_ttl_s: float
    state_secret: SecretStr | None
    unknown_ids: UnknownIds
    audit: AuditTable | None
    record: RecordTable | None
    cache: CacheTable | None
    cache_store: Store | None
    backends: dict[str, Backend]
    routes: list[Route]
    relays: list[Relay]
    prices: list[PriceTable]
    digest: str | None = None
    """The SHA-256 of the file; None for a config that is in no file."""
    warnings: tuple[str, ...] = ()
    """What has no effect, one sentence each, with the path of its key."""

    @property
    def is_open(self) -> bool:
        """Whether every client is answered, without a key."""
        return not self.callers and self.keys is None

    @property
    def has_teams(self) -> bool:
        """Whether there is more than one team, or may be."""
        return has_teams(self.callers, self.keys)


def read(path: Path) -> Config:
    """Read a config file. Raises ConfigError."""
    try:
        content = path.read_bytes()
        typed = tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return build(typed).model_copy(update={"digest": hashlib.sha256(content).hexdigest()})


def build(typed: Mapping[str, Any]) -> Config:
    """Return the config that these tables describe. Raises ConfigError with all faults that were found."""
    faults: list[str] = []
    tables = _collect(faults, validate, ConfigFile, typed, "")
    parts = _parts(faults, tables or _unchecked(typed))
    if tables is None:
        raise ConfigError("\n".join(faults))
    faults += consistency.caller_faults(tables.caller)
    if parts["backends"] is not None:
        faults += route_faults(tables.route, parts["backends"])
        faults += consistency.relay_faults(tables.relay, parts["backends"])
        faults += consistency.price_faults(tables.price, parts["backends"])
    if parts["rules"] is not None:
        faults += consistency.selector_faults(tables.policy, tables.caller, has_keys=tables.keys is not None)
    faults += consistency.file_faults(tables.audit, tables.record)
    faults += consistency.key_faults(tables.keys, parts["state"])
    faults += consistency.listen_faults(tables.server, tables.admin, is_open=not tables.caller and tables.keys is None)
    faults += consistency.worker_faults(tables.server, parts["state"])
    if faults:
        raise ConfigError("\n".join(faults))
    idle = consistency.idle_policies(parts["rules"], tables.policy, tables.route)
    warnings = (*idle, *consistency.repeated_models(tables.server, parts["backends"].values()))
    callers = [caller if caller.team else caller.model_copy(update={"team": caller.name}) for caller in tables.caller]
    routes = _routes(parts["backends"], tables.route)
    relays = [Relay(relay.path, parts["backends"][relay.backend]) for relay in tables.relay]
    parts["unknown_ids"] = parts["unknown_ids"] or ("deny" if has_teams(callers, tables.keys) else "allow")
    shared = {name: getattr(tables, name) for name in ("server", "log", "admin", "keys", "audit", "record")}
    shared["prices"] = tables.price
    return Config(**shared, **parts, callers=callers, routes=routes, relays=relays, warnings=warnings)


def _parts(faults: list[str], tables: ConfigFile) -> dict[str, Any]:
    """Return what the tables with `use` describe; None for one that has faults."""
    cache = None if tables.cache is None else _collect(faults, _cache, tables.cache)
    rules = _collect(faults, rules_of, tables.policy)
    state = _collect(faults, _state, tables.state)
    return {
        "rules": rules,
        "state": state and state[1],
        "state_settings": state and state[0],
        "state_ttl_s": state and state[0].ttl_s,
        "state_secret": state and state[0].secret,
        "unknown_ids": state and state[0].unknown_ids,
        "cache": cache and cache[0],
        "cache_store": cache and cache[1],
        "backends": _collect(faults, _backends, tables.backend),
    }


def _collect(faults: list[str], make: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
    """Return what a function makes; None, and one fault more, if it raises ConfigError."""
    try:
        return make(*args, **options)
    except ConfigError as error:
        faults.append(str(error))
        return None


def _collect_each(
    make: Callable[[Mapping[str, Any], str], T], tables: Sequence[Mapping[str, Any]], name: str
) -> list[T]:
    """Return what a function makes of each table. Raises ConfigError with the faults of all."""
    faults: list[str] = []
    made = [_collect(faults, make, table, f"{name}[{index}]") for index, table in enumerate(tables)]
    if faults:
        raise ConfigError("\n".join(faults))
    return [part for part in made if part is not None]


def _unchecked(typed: Mapping[str, Any]) -> ConfigFile:
    """Return the tables with `use` of a file that has a fault elsewhere, so that theirs are found as well."""

    def tables(name: str) -> list[dict[str, Any]]:
        found = typed.get(name)
        return [table for table in found if isinstance(table, dict)] if isinstance(found, list) else []

    state, cache = typed.get("state", {}), typed.get("cache")
    return ConfigFile.model_construct(
        policy=tables("policy"),
        backend=tables("backend"),
        state=state if isinstance(state, dict) else {},
        cache=cache if isinstance(cache, dict) else None,
    )


def rules_of(tables: Sequence[Mapping[str, Any]]) -> list[Rule]:
    """Return the rules that a list of [[policy]] tables describes. Raises ConfigError."""
    return _collect_each(_rule, tables, "policy")


def _rule(table: Mapping[str, Any], path: str) -> Rule:
    selectors, own = _split(SelectorTable, table, path)
    policy = _plugin(selectors.use, "policies", Policy, own, path)
    name = selectors.use.rpartition(".")[2]
    callers, models = compile_selector(selectors.callers), compile_selector(selectors.models)
    return Rule(name, policy, selectors.mode, callers, models, selectors.rollout)


def _state(table: Mapping[str, Any]) -> tuple[StateTable, Store]:
    state, own = _split(StateTable, table, "state")
    return state, _store(state.use, own, "state")


def _cache(table: Mapping[str, Any]) -> tuple[CacheTable, Store]:
    cache, own = _split(CacheTable, table, "cache")
    return cache, _store(cache.use, own, "cache")


def _store(use: str, own: Mapping[str, Any], path: str) -> Store:
    return _plugin(use, "proxy.stores", Store, own, path)  # type: ignore[type-abstract]  # for comparison only


def _backend(use: str, own: Mapping[str, Any], path: str) -> Backend:
    return _plugin(use, "backends", Backend, own, path)  # type: ignore[type-abstract]  # for comparison only


def _backends(tables: list[dict[str, Any]]) -> dict[str, Backend]:
    backends: dict[str, Backend] = {}

    def make(table: Mapping[str, Any], path: str) -> Backend:
        own = dict(table)
        use = own.pop("use", None)
        if not isinstance(use, str):
            raise ConfigError(f'{path}.use: missing; name the kind of backend, such as use = "upstream"')
        backend = _backend(use, own, path)
        if backends.setdefault(backend.name, backend) is not backend:
            raise ConfigError(f"{path}.name: there are two backends called '{backend.name}'")
        return backend

    _collect_each(make, tables, "backend")
    return backends


def _routes(backends: Mapping[str, Backend], tables: Sequence[RouteTable]) -> list[Route]:
    """Return the routes in order, each with those that it falls back to."""
    plain = [_route(backends, table) for table in tables]
    by_name = {route.name: route for route in plain}
    routes = []
    for table, route in zip(tables, plain, strict=True):
        fallbacks = [_fallback(by_name[fallback.route], fallback.model) for fallback in table.fallback]
        routes.append(replace(route, fallbacks=tuple(fallbacks)))
    return routes


def _route(backends: Mapping[str, Backend], table: RouteTable) -> Route:
    targets = tuple(backends[name] for name in table.backend_names)
    pool = PoolSettings(
        strategy=table.strategy, weights=table.weights, attempts=table.attempts or max(2, len(targets)),
        retry_within_s=table.retry_within_s,
        hedge_after_s=None if table.hedge_after_ms is None else table.hedge_after_ms / 1000,
    )  # fmt: skip
    return Route(table.shown_name, table.model, targets, is_default=table.default, pool=pool, cache=table.cache)


def _fallback(route: Route, model: str) -> Fallback:
    return Fallback(route, model or (None if is_glob(route.model) else route.model))


def _split(kind: type[M], table: Mapping[str, Any], path: str) -> tuple[M, dict[str, Any]]:
    """The keys that every table of this kind has, and the others, which belong to the class that `use` names."""
    shared = {key: value for key, value in table.items() if key in kind.model_fields}
    own = {key: value for key, value in table.items() if key not in kind.model_fields}
    return validate(kind, shared, path), own


def _plugin(use: str, package: str, kind: type[M], own: Mapping[str, Any], path: str) -> M:
    try:
        plugin = load(use, package, kind)
    except ValueError as error:
        raise ConfigError(f"{path}.use: {error}") from error
    return validate(plugin, own, path)
