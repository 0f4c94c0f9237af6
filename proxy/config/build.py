"""Tables -> objects. `read` returns a Config whose policies, backends and stores are ready to start."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr

from backends import Backend
from policies import Policy
from proxy.config.plugins import load
from proxy.config.schema import (
    CacheTable,
    CallerTable,
    RelayTable,
    RouteTable,
    SelectorTable,
    ServerTable,
    StateTable,
    UnknownIds,
)
from proxy.config.validation import ConfigError, M, validate
from proxy.identity.directory import KEY
from proxy.routing.relay import Relay
from proxy.routing.routes import Route
from proxy.rules.rule import Rule, compile_selector
from proxy.stores import Store
from proxy.telemetry.audit import AuditTable
from proxy.telemetry.recorder import RecordTable

DEMO = Path(__file__).resolve().parents[2] / "backends" / "demo"


class ConfigFile(BaseModel):
    """The file as it is written; the tables with `use` are validated again by the class that it names."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    server: ServerTable = ServerTable()
    caller: list[CallerTable] = []
    policy: list[dict[str, Any]] = []
    state: dict[str, Any] = {}
    audit: AuditTable | None = None
    record: RecordTable | None = None
    cache: dict[str, Any] | None = None
    backend: list[dict[str, Any]] = []
    route: list[RouteTable] = []
    relay: list[RelayTable] = []


class Config(BaseModel):
    """Everything that a gateway is built from. `state` and `cache_store` are not started."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    server: ServerTable
    callers: list[CallerTable]
    rules: list[Rule]
    state: Store
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


def read(path: Path) -> Config:
    """Read a config file. Raises ConfigError."""
    try:
        typed = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return build(typed)


def default_config() -> Config:
    """Return the config that is served without a file: the demo model, and OpenAI for all others if its key is set."""
    typed: dict[str, Any] = {
        "policy": [{"use": "metadata_limits"}, {"use": "safety_identifier"}],
        "cache": {"use": "memory"},
        "backend": [{"name": "demo", "use": "local", "path": str(DEMO)}],
        "route": [{"model": "headgate-demo", "backend": "demo"}],
    }
    if os.environ.get("OPENAI_API_KEY"):
        openai = {"name": "openai", "use": "upstream", "base_url": "https://api.openai.com/v1", "keeps_state": True}
        typed["backend"].append(openai | {"api_key": "env:OPENAI_API_KEY"})
        typed["route"].append({"model": "*", "backend": "openai"})
    return build(typed)


def build(typed: Mapping[str, Any]) -> Config:
    """Return the config that these tables describe. Raises ConfigError."""
    tables = validate(ConfigFile, typed, "")
    backends = _backends(tables.backend)
    state, state_store = _state(tables.state)
    cache, cache_store = (None, None) if tables.cache is None else _cache(tables.cache)
    config = Config(
        server=tables.server,
        callers=_callers(tables.caller),
        state=state_store,
        state_ttl_s=state.ttl_s,
        state_secret=state.secret,
        unknown_ids=state.unknown_ids,
        audit=tables.audit,
        record=tables.record,
        rules=rules_of(tables.policy),
        cache=cache,
        cache_store=cache_store,
        backends=backends,
        routes=[_route(backends, route, f"route[{index}]") for index, route in enumerate(tables.route)],
        relays=_relays(backends, tables.relay),
    )
    if not config.routes:
        raise ConfigError("route: there is no [[route]]; at least one must name a model and its backend")
    if len(defaults := [index for index, route in enumerate(config.routes) if route.is_default]) > 1:
        raise ConfigError(f"route[{defaults[1]}].default: route[{defaults[0]}] is the default already; keep one")
    if config.audit and config.record and config.audit.path.resolve() == config.record.path.resolve():
        raise ConfigError(f"audit.path and record.path: both are {config.audit.path}; give each a file of its own")
    if not config.callers and not _is_loopback(config.server.host):
        raise ConfigError(
            f"server.host: {config.server.host} is reachable by others, and there is no [[caller]]; "
            "add one with a name and a key, or listen on 127.0.0.1"
        )
    return config


def _callers(tables: list[CallerTable]) -> list[CallerTable]:
    known: dict[bytes, str] = {}
    for index, caller in enumerate(tables):
        if (caller.key is None) == (caller.key_sha256 is None):
            raise ConfigError(f'caller[{index}]: give either key = "env:NAME" or key_sha256 = "<hex>"')
        if caller.key is not None and not KEY.fullmatch(caller.key.get_secret_value()):
            raise ConfigError(f"caller[{index}].key: a key may contain only letters, digits and -._~+/=")
        if caller.digest in known:
            raise ConfigError(f"caller[{index}]: has the same key as {known[caller.digest]}; give each caller its own")
        known[caller.digest] = caller.name
    _refuse_ambiguous_teams(tables)
    return [caller if caller.team else caller.model_copy(update={"team": caller.name}) for caller in tables]


def _refuse_ambiguous_teams(tables: list[CallerTable]) -> None:
    """Raises ConfigError for a caller whose own name would make it a member of another caller's team."""
    teams = {caller.team: index for index, caller in enumerate(tables) if caller.team}
    names = {caller.name: index for index, caller in enumerate(tables) if not caller.team}
    for name in names.keys() & teams.keys():
        raise ConfigError(
            f"caller[{names[name]}].name: '{name}' is also the team of caller[{teams[name]}]; "
            "give it a team, or it would share that team's cache and budgets"
        )


def rules_of(tables: Sequence[Mapping[str, Any]]) -> list[Rule]:
    """Return the rules that a list of [[policy]] tables describes. Raises ConfigError."""
    return [_rule(table, f"policy[{index}]") for index, table in enumerate(tables)]


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
    for index, table in enumerate(tables):
        path = f"backend[{index}]"
        own = dict(table)
        use = own.pop("use", None)
        if not isinstance(use, str):
            raise ConfigError(f'{path}.use: missing; name the kind of backend, such as use = "upstream"')
        backend = _backend(use, own, path)
        if backend.name in backends:
            raise ConfigError(f"{path}.name: there are two backends called '{backend.name}'")
        backends[backend.name] = backend
    return backends


def _route(backends: Mapping[str, Backend], route: RouteTable, path: str) -> Route:
    backend = _named(backends, route.backend, path)
    return Route(route.name or backend.name, route.model, (backend,), is_default=route.default)


def _relays(backends: Mapping[str, Backend], tables: list[RelayTable]) -> list[Relay]:
    relays: dict[str, Relay] = {}
    for index, relay in enumerate(tables):
        backend = _named(backends, relay.backend, f"relay[{index}]")
        if not backend.can_relay:
            raise ConfigError(f"relay[{index}].backend: '{backend.name}' has no other paths; only an upstream has")
        if relay.path in relays:
            raise ConfigError(f"relay[{index}].path: there are two relays of {relay.path}")
        relays[relay.path] = Relay(relay.path, backend)
    return list(relays.values())


def _named(backends: Mapping[str, Backend], name: str, path: str) -> Backend:
    backend = backends.get(name)
    if backend is None:
        known = ", ".join(backends) or "there is none"
        raise ConfigError(f"{path}.backend: there is no backend called '{name}'; known: {known}")
    return backend


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


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
