"""Models of the config file. `read` gives a Config whose policies, backends and stores are ready to start.

Every error names the key it stands at, as a path from the top: `policy[0].max_pairs`.
"""

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from backends import Backend
from policies import Policy
from proxy.telemetry.audit import AuditTable
from proxy.identify import KEY
from proxy.config.plugins import load
from proxy.telemetry.recorder import RecordTable
from proxy.rules import Rule, selector
from proxy.stores import Store
from proxy.config.schema import CacheTable, CallerTable, RouteTable, Selectors, Server, StateTable

M = TypeVar("M", bound=BaseModel)
DEMO = Path(__file__).resolve().parent.parent / "backends" / "demo"


class Tables(BaseModel):
    """The file as it is typed; the tables with `use` are read a second time by the class that they name."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    server: Server = Server()
    caller: list[CallerTable] = []
    policy: list[dict[str, Any]] = []
    state: dict[str, Any] = {}
    audit: AuditTable | None = None
    record: RecordTable | None = None
    cache: dict[str, Any] | None = None
    backend: list[dict[str, Any]] = []
    route: list[RouteTable] = []


class Config(BaseModel):
    """All that the gate is built from."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    server: Server
    callers: list[CallerTable]
    rules: list[Rule]
    state: Store
    audit: AuditTable | None
    record: RecordTable | None
    cache: CacheTable | None
    store: Store | None
    backends: dict[str, Backend]
    routes: list[tuple[str, Backend]]


class ConfigError(ValueError):
    """What is wrong with a config, one line for each thing, each with the path of its key."""


def read(path: Path) -> Config:
    """Read a config file. Raises ConfigError."""
    try:
        typed = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return build(typed)


def embedded() -> Config:
    """What is served without a config: the demo model, and OpenAI for every other name when its key is there."""
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
    """The config that these tables mean. Raises ConfigError."""
    tables = _validated(Tables, typed, "")
    backends = _backends(tables.backend)
    store_and_cache = None if tables.cache is None else _cache(tables.cache)
    config = Config(
        server=tables.server,
        callers=_callers(tables.caller),
        state=_state(tables.state),
        audit=tables.audit,
        record=tables.record,
        rules=rules_of(tables.policy),
        cache=None if store_and_cache is None else store_and_cache[0],
        store=None if store_and_cache is None else store_and_cache[1],
        backends=backends,
        routes=[(route.model, _named(backends, route, i)) for i, route in enumerate(tables.route)],
    )
    if not config.routes:
        raise ConfigError("route: there is no [[route]]; at least one must name a model and its backend")
    if config.audit and config.record and config.audit.path.resolve() == config.record.path.resolve():
        raise ConfigError(f"audit.path and record.path: both are {config.audit.path}; give each a file of its own")
    if not config.callers and not _is_loopback(config.server.host):
        raise ConfigError(
            f"server.host: {config.server.host} is open to others, and there is no [[caller]]; "
            "add one with a name and a key, or listen on 127.0.0.1"
        )
    return config


def _callers(tables: list[CallerTable]) -> list[CallerTable]:
    known: dict[bytes, str] = {}
    for index, caller in enumerate(tables):
        if (caller.key is None) == (caller.key_sha256 is None):
            raise ConfigError(f'caller[{index}]: give either key = "env:NAME" or key_sha256 = "<hex>"')
        if caller.key is not None and not KEY.fullmatch(caller.key.get_secret_value()):
            raise ConfigError(f"caller[{index}].key: a key is made of letters, digits and -._~+/= only")
        if caller.digest in known:
            raise ConfigError(f"caller[{index}]: has the same key as {known[caller.digest]}; give each caller its own")
        known[caller.digest] = caller.name
    return [caller if caller.team else caller.model_copy(update={"team": caller.name}) for caller in tables]


def rules_of(tables: Sequence[Mapping[str, Any]]) -> list[Rule]:
    """The rules that a list of [[policy]] tables means. Raises ConfigError."""
    return [_rule(table, f"policy[{index}]") for index, table in enumerate(tables)]


def _rule(table: Mapping[str, Any], path: str) -> Rule:
    selectors, own = _split(Selectors, table, path)
    policy = _plugged(selectors.use, "policies", Policy, own, path)
    name = selectors.use.rpartition(".")[2]
    return Rule(
        name, policy, selectors.mode, selector(selectors.callers), selector(selectors.models), selectors.rollout
    )


def _state(table: Mapping[str, Any]) -> Store:
    state, own = _split(StateTable, table, "state")
    return _store(state.use, own, "state")


def _cache(table: Mapping[str, Any]) -> tuple[CacheTable, Store]:
    cache, own = _split(CacheTable, table, "cache")
    return cache, _store(cache.use, own, "cache")


def _store(use: str, own: Mapping[str, Any], path: str) -> Store:
    return _plugged(use, "proxy.stores", Store, own, path)  # type: ignore[type-abstract]  # to look for


def _backend(use: str, own: Mapping[str, Any], path: str) -> Backend:
    return _plugged(use, "backends", Backend, own, path)  # type: ignore[type-abstract]  # to look for


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


def _named(backends: Mapping[str, Backend], route: RouteTable, index: int) -> Backend:
    backend = backends.get(route.backend)
    if backend is None:
        known = ", ".join(backends) or "there is none"
        raise ConfigError(f"route[{index}].backend: there is no backend called '{route.backend}'; known: {known}")
    return backend


def _split(kind: type[M], table: Mapping[str, Any], path: str) -> tuple[M, dict[str, Any]]:
    """The keys of a table that every one of its kind has, and those left for the class that `use` names."""
    shared = {key: value for key, value in table.items() if key in kind.model_fields}
    own = {key: value for key, value in table.items() if key not in kind.model_fields}
    return _validated(kind, shared, path), own


def _plugged(use: str, room: str, kind: type[M], own: Mapping[str, Any], path: str) -> M:
    try:
        plugged = load(use, room, kind)
    except ValueError as error:
        raise ConfigError(f"{path}.use: {error}") from error
    return _validated(plugged, own, path)


def _validated(kind: type[M], typed: Mapping[str, Any], path: str) -> M:
    _refuse_large(typed, path)
    try:
        made = kind.model_validate(typed)
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(error, kind, path))) from error
    _refuse_large(vars(made), path)  # a text of digits is an integer, too
    return made


def _refuse_large(typed: Mapping[str, Any], path: str) -> None:
    """Raises ConfigError for integers that other programs could not take. Source: https://toml.io/en/v1.0.0#integer"""
    if large := list(_large(typed, path)):
        raise ConfigError("\n".join(f"{where}: the integer does not fit in 64 bits" for where in large))


def _large(value: Any, path: str) -> Iterator[str]:
    """Where integers stand that do not fit in 64 bits, their sign included."""
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
    """The keys that are known where one is not; in a [[policy]] those that each of them has are among them."""
    for step in place:
        field = kind.model_fields.get(str(step))
        kind = next(_models_in(field.annotation), kind) if field else kind
    return [*kind.model_fields, *(Selectors.model_fields if issubclass(kind, Policy) else ())]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
