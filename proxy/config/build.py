"""Tables -> objects. `read` returns a Config whose policies, backends and stores are ready to start.

Every error names its key as a path from the top: `policy[0].max_pairs`.
"""

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr

from backends import Backend
from policies.support.globs import is_glob
from proxy.config import consistency
from proxy.config.plugin_tables import backends_of, cache_of, collect, rules_of, same_or, state_of
from proxy.config.process_tables import AdminTable, LogTable, ServerTable
from proxy.config.route_faults import route_faults
from proxy.config.schema import (
    CacheTable,
    CallerTable,
    KeysTable,
    RelayTable,
    RouteTable,
    StateTable,
    UnknownIds,
    has_teams,
)
from proxy.config.validation import ConfigError, validate
from proxy.identity.issuer_table import IssuerTable
from proxy.pricing.table import PriceTable
from proxy.routing.relay import Relay
from proxy.routing.routes import Fallback, PoolSettings, Route
from proxy.rules.rule import Rule
from proxy.stores import Store
from proxy.telemetry.audit import AuditTable
from proxy.telemetry.recorder import RecordTable
from proxy.telemetry.vocabulary import TraceTable


class ConfigFile(BaseModel):
    """The file as it is written; the tables with `use` are validated again by the class that it names."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    server: ServerTable = ServerTable()
    log: LogTable = LogTable()
    trace: TraceTable = TraceTable()
    admin: AdminTable | None = None
    caller: list[CallerTable] = []
    keys: KeysTable | None = None
    issuer: list[IssuerTable] = []
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
    trace: TraceTable
    admin: AdminTable | None
    callers: list[CallerTable]
    keys: KeysTable | None
    issuers: list[IssuerTable]
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
    tables: dict[str, Any] = {}
    """The tables as they are written."""
    digest: str | None = None
    """The SHA-256 of the file; None for a config that is in no file."""
    warnings: tuple[str, ...] = ()
    """What has no effect, one sentence each, with the path of its key."""

    @property
    def is_open(self) -> bool:
        """Whether every client is answered, without a key."""
        return not self.callers and self.keys is None and not self.issuers

    @property
    def has_teams(self) -> bool:
        """Whether there is more than one team, or may be."""
        return has_teams(self.callers, self.keys, self.issuers)


def read(path: Path, running: Config | None = None) -> Config:
    """Read a config file; see `build`. Raises ConfigError."""
    content = _content(path)
    return build(_tables(path, content), running).model_copy(update={"digest": hashlib.sha256(content).hexdigest()})


def read_tables(path: Path) -> dict[str, Any]:
    """Read the tables of a file, which need not be a config that can be served. Raises ConfigError."""
    return _tables(path, _content(path))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _tables(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path}: not TOML: {error}") from error


def build(typed: Mapping[str, Any], running: Config | None = None) -> Config:
    """Return the config that these tables describe. Raises ConfigError with all faults that were found.

    Its backends and the store of its cache are those of a `running` config as far as they are the same.
    """
    faults: list[str] = []
    tables = collect(faults, validate, ConfigFile, typed, "")
    parts = _parts(faults, tables or _unchecked(typed), running)
    if tables is None:
        raise ConfigError("\n".join(faults))
    faults += consistency.caller_faults(tables.caller)
    if parts["backends"] is not None:
        faults += route_faults(tables.route, parts["backends"])
        faults += consistency.relay_faults(tables.relay, parts["backends"])
        faults += consistency.price_faults(tables.price, parts["backends"])
    if parts["rules"] is not None:
        has_others = tables.keys is not None or bool(tables.issuer)
        faults += consistency.selector_faults(tables.policy, tables.caller, has_others=has_others)
    faults += consistency.file_faults(tables.audit, tables.record)
    faults += consistency.key_faults(tables.keys, parts["state"])
    faults += consistency.issuer_faults(tables.issuer)
    is_open = not tables.caller and tables.keys is None and not tables.issuer
    faults += consistency.listen_faults(tables.server, tables.admin, is_open=is_open)
    faults += consistency.worker_faults(tables.server, parts["state"])
    if faults:
        raise ConfigError("\n".join(faults))
    idle = consistency.idle_policies(parts["rules"], tables.policy, tables.route)
    warnings = (*idle, *consistency.repeated_models(tables.server, parts["backends"].values()))
    callers = [caller if caller.team else caller.model_copy(update={"team": caller.name}) for caller in tables.caller]
    routes = _routes(parts["backends"], tables.route)
    relays = [Relay(relay.path, parts["backends"][relay.backend]) for relay in tables.relay]
    parts["unknown_ids"] = parts["unknown_ids"] or (
        "deny" if has_teams(callers, tables.keys, tables.issuer) else "allow"
    )
    shared = {name: getattr(tables, name) for name in ("server", "log", "trace", "admin", "keys", "audit", "record")}
    shared |= {"prices": tables.price, "issuers": tables.issuer}
    return Config(
        **shared, **parts, callers=callers, routes=routes, relays=relays, warnings=warnings, tables=dict(typed)
    )


def _parts(faults: list[str], tables: ConfigFile, running: Config | None) -> dict[str, Any]:
    """Return what the tables with `use` describe; None for one that has faults."""
    cache = None if tables.cache is None else collect(faults, cache_of, tables.cache)
    rules = collect(faults, rules_of, tables.policy)
    state = collect(faults, state_of, tables.state)
    known_cache = None if running is None else running.cache_store
    known = {} if running is None else running.backends
    return {
        "rules": rules,
        "state": state and state[1],
        "state_settings": state and state[0],
        "state_ttl_s": state and state[0].ttl_s,
        "state_secret": state and state[0].secret,
        "unknown_ids": state and state[0].unknown_ids,
        "cache": cache and cache[0],
        "cache_store": cache and same_or(cache[1], known_cache),
        "backends": collect(faults, backends_of, tables.backend, known),
    }


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
