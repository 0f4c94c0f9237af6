"""`headgate cache`: why two requests do or do not share an entry, and entries that are removed."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from proxy.cache.classification import FIELDS, QUERY, Effect, effect_of_header
from proxy.cache.key import encode_call, name_of_parameter, relevant_fields, relevant_headers, relevant_parameters
from proxy.cache.purge import partitions_of, purge
from proxy.cache.vault import Vault
from proxy.cache.vault_keys import Partition
from proxy.commands.admin_client import add_gateway, client_of, config_of
from proxy.commands.options import DEFAULT_CONFIG, add_config
from proxy.commands.shared_state import callers_of
from proxy.config.build import Config, read
from proxy.config.default import default_config
from proxy.config.validation import ConfigError
from proxy.identity.directory import ANONYMOUS
from proxy.routing.routes import Routes
from proxy.stores import StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call, call_of_body
from proxy.wire.errors import HeadgateError

T = TypeVar("T")
SUCCESS = SHARED = 0
NOT_SHARED = 1


@dataclass(frozen=True, slots=True)
class ExplainedRequest:
    """A request as a file describes it, and its place in the cache."""

    call: Call
    team: str
    route: str
    headers: Mapping[str, str]
    encoded: bytes


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    cache = commands.add_parser("cache", help="what the cache keeps, and why",
                                epilog="example: headgate cache explain first.json second.json")  # fmt: skip
    verbs = cache.add_subparsers(required=True, metavar="VERB")
    explain = verbs.add_parser("explain", help="print why two requests do or do not share an entry",
                               epilog="example: headgate cache explain first.json second.json")  # fmt: skip
    hint = 'a request\'s body in JSON, or {"body": ..., "headers": ..., "query": ..., "team": ...}'
    explain.add_argument("first", type=Path, metavar="A.json", help=hint)
    explain.add_argument("second", type=Path, metavar="B.json", help=hint)
    add_config(explain, text=DEFAULT_CONFIG)
    explain.set_defaults(run=_explain)
    _add_store_commands(verbs)


def _add_store_commands(verbs: Any) -> None:
    """Add the commands that work on the entries in a store."""
    forget = _add_verb(verbs, "forget", _forget, "make all entries of a team unreadable at once, on every machine")
    forget.add_argument("--team", required=True)
    purge = _add_verb(verbs, "purge", _purge, "remove the entries that all of these apply to")
    purge.add_argument("--team")
    purge.add_argument("--model")
    purge.add_argument("--prompt-cache-key")
    _add_verb(verbs, "stats", _stats, "print how many entries each team and model has, and their bytes")


def _add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], description: str
) -> argparse.ArgumentParser:
    example = f"example: headgate cache {name}{' --team search' if name != 'stats' else ''} --config my.toml"
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=description, epilog=example)
    add_gateway(verb)
    verb.set_defaults(run=run)
    return verb


def _explain(options: argparse.Namespace) -> int:
    config = default_config() if options.config is None else read(options.config)
    routes = Routes(config.routes)
    first, second = [_read(file, routes) for file in (options.first, options.second)]
    is_shared = (first.team, first.encoded) == (second.team, second.encoded)
    print("Both requests share an entry." if is_shared else "The requests do not share an entry.")
    for line in _differences(first, second):
        print(line)
    return SHARED if is_shared else NOT_SHARED


def _forget(options: argparse.Namespace) -> int:
    if (client := client_of(options)) is not None:
        client.ask("POST", "/cache/forget", {"team": options.team})
    else:
        asyncio.run(_with_vault(config_of(options), lambda vault: vault.forget(Partition("team", options.team))))
    print(f"The entries of team '{options.team}' cannot be read any more.")
    return SUCCESS


def _purge(options: argparse.Namespace) -> int:
    wanted = {"team": options.team, "model": options.model, "prompt_cache_key": options.prompt_cache_key}
    wanted = {label: value for label, value in wanted.items() if value is not None}
    if not wanted:
        raise ConfigError("cache purge: name what to remove: --team, --model or --prompt-cache-key")
    if (client := client_of(options)) is not None:
        print(f"Entries removed: {client.ask('POST', '/cache/purge', wanted)['removed']}.")
        return SUCCESS
    config = config_of(options)
    partitions = _partitions(config, options.team)

    removed = asyncio.run(_with_vault(config, lambda vault: purge(vault, partitions, wanted)))
    print(f"Entries removed: {removed}.")
    return SUCCESS


def _stats(options: argparse.Namespace) -> int:
    client = client_of(options)
    if client is None:
        lines = _kept(config_of(options))
    else:
        listed = client.ask("GET", "/cache/entries")["entries"]
        lines = [(each["team"], each["model"], each["entries"], each["bytes"]) for each in listed]
    print("team, model, entries, bytes")
    for line in lines:
        print(", ".join(map(str, line)))
    return SUCCESS


def _kept(config: Config) -> list[tuple[str, str, int, int]]:
    """Return how many entries each team and model has, and their bytes. Raises ConfigError."""
    partitions = _partitions(config, None)

    async def count(vault: Vault) -> Mapping[tuple[str, str], list[int]]:
        found: dict[tuple[str, str], list[int]] = {}
        async for entry in vault.entries(partitions):
            labels = entry.labels or {"team": "(unreadable)"}
            sizes = found.setdefault((labels.get("team", ""), labels.get("model", "")), [])
            sizes.append(entry.size_bytes)
        return found

    found = asyncio.run(_with_vault(config, count))
    return [(team, model, len(sizes), sum(sizes)) for (team, model), sizes in sorted(found.items())]


def _partitions(config: Config, team: str | None) -> Sequence[Partition]:
    """Return all those who may share entries by a config, and a team that it may no longer have."""
    return partitions_of(callers_of(config, "cache") or [ANONYMOUS], team)


async def _with_vault(config: Config, work: Callable[[Vault], Awaitable[T]]) -> T:
    """Return what is done with the entries of a config. Raises ConfigError if that fails, or cannot reach them."""
    store = config.cache_store
    if config.cache is None or store is None:
        raise ConfigError("cache: this config has no [cache]")
    if isinstance(store, MemoryStore):
        message = '"memory" is private to the serving process; this needs [cache] use = "sqlite" or "redis"'
        raise ConfigError(f"cache.use: {message}")
    try:
        await store.start()
    except ValueError as error:
        raise ConfigError(f"cache: {error}") from error
    try:
        return await work(Vault(store, config.cache.secrets_in_order))
    except StoreError as error:
        raise ConfigError(f"cache: {error}") from error
    finally:
        await store.close()


def _read(file: Path, routes: Routes) -> ExplainedRequest:
    """Return the request in a file. Raises ConfigError for what is not one."""
    try:
        given = orjson.loads(file.read_bytes())
        whole = given if isinstance(given.get("body"), dict) else {"body": given}
        headers = {name.lower(): str(value) for name, value in whole.get("headers", {}).items()}
        call = call_of_body(whole["body"], headers, whole.get("query", ""), received_bytes=0, needs_model=False)
        route, team = routes.match(call), str(whole.get("team", ""))
        forwarded = route.headers(call)
        return ExplainedRequest(call, team, route.name, forwarded, encode_call(call, route.name, forwarded))
    except HeadgateError as error:
        raise ConfigError(f"{file}: {error.message}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{file}: not a request: a JSON object was expected") from error


def _differences(first: ExplainedRequest, second: ExplainedRequest) -> Iterator[str]:
    """Yield a line for each part of two requests that is not the same."""
    for name in ("team", "route"):
        if getattr(first, name) != getattr(second, name):
            yield f"{name}: differs"
    for name in _changed(dict(first.headers), dict(second.headers)):
        effect, counts = effect_of_header(name), _counts(name, map(_headers_in_key, (first, second)))
        yield _line(f"header {name}", effect, counts=counts)
    for name in _changed(_parameters(first.call.query.split("&")), _parameters(second.call.query.split("&"))):
        counts = _counts(name, (_parameters(relevant_parameters(each.call.query)) for each in (first, second)))
        yield _line(f"query {name}", QUERY.get(name, Effect.ANSWER), counts=counts)
    for name in _changed(_encoded(first.call.body), _encoded(second.call.body)):
        counts = _counts(name, (_encoded(relevant_fields(each.call.body)) for each in (first, second)))
        yield _line(f"field {name}", FIELDS.get(name, Effect.ANSWER), counts=counts)


def _line(part: str, effect: Effect, *, counts: bool) -> str:
    return f"{part}: differs; it {effect.value}{'' if counts else ', so it is not in the key'}"


def _headers_in_key(request: ExplainedRequest) -> Mapping[str, Any]:
    return dict(relevant_headers(request.headers))


def _parameters(pairs: list[str]) -> Mapping[str, Any]:
    found: dict[str, list[str]] = {}
    for pair in filter(None, pairs):
        found.setdefault(name_of_parameter(pair), []).append(pair)
    return found


def _encoded(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: orjson.dumps(value, option=orjson.OPT_SORT_KEYS) for name, value in body.items()}


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names whose values differ, or that only one of both has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _counts(name: str, sides: Any) -> bool:
    one, other = sides
    return bool(one.get(name) != other.get(name))
