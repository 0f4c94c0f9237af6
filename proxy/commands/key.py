"""`headgate key create | list | rotate | revoke`: keys that every gateway with the same `[state]` accepts at once.

A gateway that runs does it; without one it is done on the store.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from proxy.commands.admin_client import AdminClient, add_gateway, client_of, config_of, segment
from proxy.commands.shared_state import record_operation, run_with_state
from proxy.config.build import Config
from proxy.config.validation import ConfigError
from proxy.identity.key_book import IssuedKey, KeyBook, append_created, append_revoked, append_rotated, used_key
from proxy.identity.key_operations import (
    DEFAULT_LIFETIME_S,
    MAX_TAGS,
    NEVER_S,
    TAG,
    KeyOperationError,
    check_name,
    check_team,
    key_in_place_of,
    new_key,
    overlap_end,
    valid_key,
)
from proxy.stores import Store

SUCCESS = 0
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
COLUMNS = ("id", "name", "team", "status", "created", "expires", "last_used", "models", "tags")
_DURATION = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    key = commands.add_parser("key", help="issue keys: create | list | rotate | revoke")
    verbs = key.add_subparsers(required=True, metavar="create | list | rotate | revoke")
    create = _add(verbs, "create", _create, "make a key, and print it once", "--team search --name ada --expires 90d")
    create.add_argument("--team", type=_name, required=True, help="whose cached answers and budgets it shares")
    create.add_argument("--name", type=_name, required=True, help="its caller in logs and the selectors of policies")
    _add_expires(create, f"default: {DEFAULT_LIFETIME_S / UNITS_S['d']:g}d")
    create.add_argument("--models", action="append", default=[], metavar="GLOB",
                        help="a model that it may name, with * and ?; may be repeated; default: any")  # fmt: skip
    create.add_argument("--tag", type=_tag, action="append", default=[], metavar="NAME=VALUE",
                        help="is in the log line of each of its calls; may be repeated")  # fmt: skip
    listing = _add(verbs, "list", _list, "print all keys that were issued, and when each was used last", "")
    listing.add_argument("--format", choices=("table", "json"), default="table")
    rotate = _add(verbs, "rotate", _rotate, "make a key in place of another one", "--overlap 24h key_0123456789ab")
    rotate.add_argument("id", metavar="ID", help="the id of the key, from `list` or the log")
    rotate.add_argument(
        "--overlap", type=_duration, default=0.0, help="how long the old key is still valid; default: it ends at once"
    )
    _add_expires(rotate, "default: as long as the old one was to be valid")
    revoke = _add(verbs, "revoke", _revoke, "refuse a key from now on", "key_0123456789ab")
    revoke.add_argument("id", metavar="ID", help="the id of the key, from `list` or the log")


def _add(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], description: str, example: str
) -> argparse.ArgumentParser:
    epilog = f"example: headgate key {name} --config my.toml {example}".rstrip()
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=description, epilog=epilog)
    add_gateway(verb)
    verb.set_defaults(run=run)
    return verb


def _add_expires(verb: argparse.ArgumentParser, default: str) -> None:
    verb.add_argument("--expires", type=_lifetime, help=f'how long it is valid: "90d", "24h" or "never"; {default}')


def _name(text: str) -> str:
    try:
        return check_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no duration; write a number and s, m, h or d, such as 24h")
    return float(match[1]) * UNITS_S[match[2]]


def _lifetime(text: str) -> float | None:
    return NEVER_S if text == "never" else _duration(text)


def _tag(text: str) -> tuple[str, str]:
    if not TAG.fullmatch(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no tag; write NAME=VALUE in letters, digits and ._-")
    name, _, value = text.partition("=")
    return name, value


def _create(options: argparse.Namespace) -> int:
    tags = dict(options.tag)
    if len(tags) < len(options.tag) or len(tags) > MAX_TAGS:
        raise ConfigError(f"--tag: each name may be given once, and there may be {MAX_TAGS} tags")
    lifetime_s = DEFAULT_LIFETIME_S if options.expires is None else options.expires
    if (client := client_of(options)) is not None:
        order = {"name": options.name, "team": options.team, "models": options.models, "tags": tags}
        return _show_made(client.ask("POST", "/keys", order | {"expires_in_s": _finite(lifetime_s)}))
    config, now = _config(options), time.time()
    secret, key = new_key(options.name, options.team, now, lifetime_s, options.models, tags)

    async def create(store: Store) -> None:
        try:
            configured = ((caller.name, caller.team) for caller in config.callers)
            check_team(configured, config.teamless_callers, await KeyBook().read_on(store), key.name, key.team, now)
        except KeyOperationError as error:
            raise ConfigError(f"--team: {error}") from error
        _record(config, "key.created", key)
        await append_created(store, key)

    run_with_state(config, "key create", create)
    return _show_once(secret, key.id, key.name, key.team, _date(key.expires_at))


def _rotate(options: argparse.Namespace) -> int:
    if (client := client_of(options)) is not None:
        return _rotate_by(client, options)
    config, now = _config(options), time.time()

    async def rotate(store: Store) -> tuple[str, IssuedKey, float]:
        old = _valid_key(await KeyBook().read_on(store), options.id, now)
        secret, new = key_in_place_of(old, now, options.expires)
        _record(config, "key.rotated", old, replaced_by=new.id)
        until = overlap_end(old, now, options.overlap)
        await append_rotated(store, old, new, until)
        return secret, new, until

    secret, new, until = run_with_state(config, "key rotate", rotate)
    _show_once(secret, new.id, new.name, new.team, _date(new.expires_at))
    return _show_old(options.id, _date(until) if until > now else None)


def _rotate_by(client: AdminClient, options: argparse.Namespace) -> int:
    lifetime = "never" if options.expires == NEVER_S else options.expires
    order = {"overlap_s": options.overlap, "expires_in_s": lifetime}
    made = client.ask("POST", f"/keys/{segment(options.id)}/rotate", order)
    _show_made(made)
    old = next((key for key in client.ask("GET", "/keys")["keys"] if key["id"] == options.id), None)
    return _show_old(options.id, _seconds(old["expires"]) if old and old["status"] == "valid" else None)


def _show_old(key_id: str, until: str | None) -> int:
    ended = "has ended: calls with it get 401 from now on; with --overlap 24h it would have stayed valid for a day."
    print(f"{key_id}, the old key, {f'is valid until {until}.' if until else ended}", file=sys.stderr)
    return SUCCESS


def _revoke(options: argparse.Namespace) -> int:
    if (client := client_of(options)) is not None:
        client.ask("POST", f"/keys/{segment(options.id)}/revoke", {})
        print(f"{options.id} is revoked.")
        return SUCCESS
    config, now = _config(options), time.time()

    async def revoke(store: Store) -> None:
        key = _valid_key(await KeyBook().read_on(store), options.id, now)
        _record(config, "key.revoked", key)
        await append_revoked(store, key, now)

    run_with_state(config, "key revoke", revoke)
    print(f"{options.id} is revoked.")
    return SUCCESS


def _list(options: argparse.Namespace) -> int:
    client = client_of(options)
    rows = _kept_rows(_config(options)) if client is None else [*map(_row_of, client.ask("GET", "/keys")["keys"])]
    if options.format == "json":
        print(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
    else:
        _print_table(rows)
    return SUCCESS


def _kept_rows(config: Config) -> list[Mapping[str, Any]]:

    async def find(store: Store) -> list[Mapping[str, Any]]:
        keys = (await KeyBook().read_on(store)).keys.values()
        uses = await store.get_many([used_key(key.id) for key in keys]) if keys else []
        now = time.time()
        return [_row(key, None if use is None else float(use), now) for key, use in zip(keys, uses, strict=True)]

    return run_with_state(config, "key list", find)


def _row_of(key: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row of a key that the API describes."""
    times = {name: _seconds(key[name]) for name in ("created", "expires", "last_used")}
    return {name: times.get(name, key.get(name)) for name in COLUMNS}


def _row(key: IssuedKey, used_at: float | None, now: float) -> Mapping[str, Any]:
    values = (
        key.id, key.name, key.team, key.status(now), _date(key.created_at), _date(key.expires_at), _date(used_at),
        list(key.models), dict(key.tags),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows in columns as wide as their longest value."""
    table = [COLUMNS, *(tuple(map(_cell, row.values())) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name}={inner}" for name, inner in value.items()]
    return (",".join(value) if isinstance(value, list) else value) or "-"


def _config(options: argparse.Namespace) -> Config:
    """Return the config of the gateways. Raises ConfigError if it accepts no issued keys."""
    config = config_of(options)
    if config.keys is None:
        raise ConfigError("keys: this config has no [keys]; with that table, which may be empty, issued keys are valid")
    return config


def _valid_key(book: KeyBook, key_id: str, now: float) -> IssuedKey:
    try:
        return valid_key(book, key_id, now)
    except KeyOperationError as error:
        raise ConfigError(str(error)) from error


def _record(config: Config, event: str, key: IssuedKey, **more: str) -> None:
    record_operation(config, event, {"key_id": key.id, "name": key.name, "team": key.team, **more})


def _show_made(made: Mapping[str, Any]) -> int:
    """Print a new key as the API returns it."""
    key = made["key"]
    return _show_once(made["secret"], key["id"], key["name"], key["team"], _seconds(key["expires"]))


def _show_once(secret: str, key_id: str, name: str, team: str, expires: str | None) -> int:
    """Print a new key, by itself on stdout, so that a script can keep it."""
    print(secret)
    print(f"{key_id} of {name} (team {team}), expires: {expires or 'never'}. The key is shown only now.",
          file=sys.stderr)  # fmt: skip
    return SUCCESS


def _finite(lifetime_s: float) -> float | None:
    return None if lifetime_s == NEVER_S else lifetime_s


def _seconds(time_of_api: str | None) -> str | None:
    """Return a time of the API as the command writes times."""
    return None if time_of_api is None else _date(datetime.fromisoformat(time_of_api).timestamp())


def _date(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
