"""Tables -> objects. `read` returns a Config whose policies, backends and stores are ready to start.

Every error names its key as a path from the top: `policy[0].max_pairs`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr

from backends import Backend
from policies.support.globs import is_glob
from proxy.config import consistency
from proxy.config.admin_table import AdminTable
from proxy.config.difference import with_restarted_tables
from proxy.config.file_tables import ConfigFile, Tables, follows, read_file, read_plain
from proxy.config.plugin_tables import backends_of, cache_of, collect, rules_of, same_or, state_of
from proxy.config.process_tables import LogTable, ServerTable
from proxy.config.route_faults import route_faults
from proxy.config.schema import (
    CacheTable,
    CallerTable,
    KeysTable,
    RouteTable,
    StateTable,
    UnknownIds,
    has_teams,
)
from proxy.config.source_file import SourceFile
from proxy.config.validation import ConfigError
from proxy.identity.issuer_table import IssuerTable
from proxy.pricing.table import PriceTable
from proxy.routing.relay import Relay
from proxy.routing.routes import Fallback, PoolSettings, Route
from proxy.rules.rule import Rule
from proxy.stores import Store
from proxy.telemetry.audit import AuditTable
from proxy.telemetry.recorder import RecordTable
from proxy.telemetry.vocabulary import TraceTable
from proxy.usage.table import UsageTable


class Config(BaseModel):
    """Everything that a gateway is built from. `state` and `cache_store` are not started yet."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    server: ServerTable
    log: LogTable
    trace: TraceTable
    admin: AdminTable | None
    callers: list[CallerTable]
    teamless_callers: frozenset[str]
    """The names of the callers without a team. Each is a team of its own, which no other caller can join."""
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
    usage: UsageTable
    cache: CacheTable | None
    cache_store: Store | None
    backends: dict[str, Backend]
    routes: list[Route]
    relays: list[Relay]
    prices: list[PriceTable]
    tables: dict[str, Any] = {}
    """The tables as written in the file."""
    warnings: tuple[str, ...] = ()
    """Settings without effect, one sentence each, with the path of the key."""
    source: SourceFile | None = None
    """The file; None for a config without one."""

    def locate(self, sentences: Iterable[str]) -> list[str]:
        """Return sentences that begin with the path of a key with their places in the file, if there is one."""
        return [*sentences] if self.source is None else self.source.locate(sentences)

    @property
    def digest(self) -> str | None:
        """The SHA-256 of the file, if there is one."""
        return None if self.source is None else self.source.digest

    @property
    def has_other_callers(self) -> bool:
        """Whether callers may exist that are not in the config: those of issued keys and of tokens."""
        return self.keys is not None or bool(self.issuers)

    @property
    def is_open(self) -> bool:
        """Whether every client is answered, without a key."""
        return not self.callers and not self.has_other_callers

    @property
    def has_teams(self) -> bool:
        """Whether there is more than one team, or may be."""
        return has_teams(self.callers, self.keys, self.issuers)


def read(path: Path, running: Config | None = None, content: str | None = None, first: str | None = None) -> Config:
    """Read a config file, or take this as its content; see `build`. What needs a restart is that of a `first` content.

    Raises ConfigError, whose lines begin with the place in the file.
    """
    source = SourceFile.read(path) if content is None else SourceFile(path, content.encode())
    tables = source.tables()
    kept = tables if first is None else with_restarted_tables(tables, SourceFile(path, first.encode()).tables())
    try:
        config = build(kept, running)
    except ConfigError as error:
        raise ConfigError("\n".join(source.locate(str(error).splitlines()))) from error
    return config.model_copy(update={"source": source, "tables": tables})


def build(typed: Mapping[str, Any], running: Config | None = None) -> Config:
    """Return the config that these tables describe. Raises ConfigError with all faults that were found.

    Its backends and the store of its cache are those of a `running` config as far as they are the same.
    """
    faults: list[str] = []
    file = read_file(faults, typed)
    tables, parts = read_plain(faults, file), _parts(faults, file, running)
    lines = "\n".join(faults).splitlines()
    faults += [fault for fault in _faults_between(file, tables, parts) if not follows(fault, lines)]
    if faults:
        raise ConfigError("\n".join(faults))
    backends, route_tables = parts["backends"], [*tables.routes.values()]
    warnings = (
        *consistency.idle_limits(tables.server),
        *consistency.idle_policies(parts["rules"], file.policy, route_tables),
    )
    callers = [
        caller if caller.team else caller.model_copy(update={"team": caller.name}) for caller in tables.callers.values()
    ]
    teamless = frozenset(caller.name for caller in tables.callers.values() if not caller.team)
    relays = [Relay(relay.path, backends[relay.backend]) for relay in tables.relays.values()]
    parts["unknown_ids"] = parts["unknown_ids"] or (
        "deny" if has_teams(callers, tables.keys, tables.issuers) else "allow"
    )
    names = ("server", "log", "trace", "admin", "keys", "audit", "record", "usage")
    shared = {name: getattr(tables, name) for name in names}
    return Config(
        **shared, **parts, callers=callers, teamless_callers=teamless, routes=_routes(backends, route_tables),
        relays=relays, warnings=warnings, issuers=[*tables.issuers.values()], prices=[*tables.prices.values()],
        tables=dict(typed),
    )  # fmt: skip


def _faults_between(file: ConfigFile, tables: Tables, parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults between tables, as far as the tables could be read."""
    backends, has_others = parts["backends"], file.keys is not None or bool(file.issuer)
    faulty = [name for name in _names(file.backend) if name not in backends]
    faulty += _names([table for index, table in enumerate(file.route) if index not in tables.routes])
    if len(_names(file.backend)) < len(file.backend):  # any name may be that of a backend without one
        faulty += [name for route in tables.routes.values() for name in route.backend_names if name not in backends]
        faulty += [relay.backend for relay in tables.relays.values()]
        faulty += [price.backend for price in tables.prices.values()]
    yield from consistency.caller_faults(tables.callers)
    if not file.route:
        yield "route: there is no [[route]]; at least one must name a model and its backend"
    yield from route_faults(tables.routes, backends, faulty)
    yield from consistency.relay_faults(tables.relays, backends, faulty)
    yield from consistency.price_faults(tables.prices, {*backends, *faulty})
    yield from consistency.selector_faults(file.policy, _names(file.caller), has_others=has_others)
    yield from consistency.file_faults(tables.audit, tables.record)
    yield from consistency.key_faults(tables.keys, parts["state"])
    yield from consistency.issuer_faults(tables.issuers)
    yield from consistency.operator_faults(tables.admin, tables.issuers.values())
    yield from consistency.listen_faults(tables.server, tables.admin, is_open=not file.caller and not has_others)
    yield from consistency.worker_faults(tables.server, parts["state"])


def _names(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for table in tables if isinstance(name := table.get("name"), str)]


def _parts(faults: list[str], file: ConfigFile, running: Config | None) -> dict[str, Any]:
    """Return what the tables with `use` describe; None for one that has faults."""
    cache = None if file.cache is None else collect(faults, cache_of, file.cache)
    rules = collect(faults, rules_of, file.policy)
    state = collect(faults, state_of, file.state)
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
        "backends": backends_of(faults, file.backend, known),
    }


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
        strategy=table.strategy, weights=table.weights, affinity_max_per_min=table.affinity_max_per_min,
        attempts=table.attempts or max(2, len(targets)),
        retry_within_s=table.retry_within_s,
        hedge_after_s=None if table.hedge_after_ms is None else table.hedge_after_ms / 1000,
    )  # fmt: skip
    return Route(table.shown_name, table.model, targets, is_default=table.default, pool=pool, cache=table.cache)


def _fallback(route: Route, model: str) -> Fallback:
    return Fallback(route, model or (None if is_glob(route.model) else route.model))
