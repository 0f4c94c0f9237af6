"""`headgate whois`, `block` and `unblock`: who is behind a safety_identifier, and that it goes no further."""

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from policies.safety_identifier import SafetyIdentifier, known_as
from policies.support.principal import blocked_key, hashed
from proxy.config import Config, ConfigError, read
from proxy.context import Caller
from proxy.identify import ANYBODY
from proxy.stores import StoreError
from proxy.stores.memory import Memory

FOUND, NOT_FOUND = 0, 1
YEARS_S = 10 * 365 * 86_400.0


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    for name, run, told in (
        ("whois", _whois, "tell whose safety_identifier this is"),
        ("block", _block, "refuse calls under an identifier, on every worker, from the next one on"),
        ("unblock", _unblock, "let them pass again"),
    ):
        example = f"example: headgate {name} --config my.toml -- IDENTIFIER"
        command = commands.add_parser(name, help=told, epilog=example)
        shown = 'as it goes out to the upstream; behind "--", as some begin with a hyphen'
        command.add_argument("identifier", metavar="IDENTIFIER", help=shown)
        command.add_argument("--config", type=Path, required=True)
        if name == "whois":
            command.add_argument(
                "--end-users",
                type=Path,
                help="a file of end users, or of what callers name them by, one a line, to look among",
            )
        command.set_defaults(run=run)


def _whois(options: argparse.Namespace) -> int:
    config = read(options.config)
    end_users = list(_lines(options.end_users)) if options.end_users else []
    callers = [Caller(caller.name, caller.team) for caller in config.callers] or [ANYBODY]
    for policy in _policies(config):
        found = _principal(policy, options.identifier, callers, ["", *end_users])
        found = found or _value(policy, options.identifier, callers, end_users)
        if found is not None:
            print(found)
            return FOUND
    print("No caller of this config has that identifier under any of its keys.")
    return NOT_FOUND


def _principal(
    policy: SafetyIdentifier, identifier: str, callers: Sequence[Caller], end_users: Sequence[str]
) -> str | None:
    """The caller and end user that an identifier was derived from."""
    for caller, end_user in product(callers, end_users):
        if known_as(policy, identifier, caller, end_user):
            return f"{caller.name} (team {caller.team})" + (f", for its end user {end_user}" if end_user else "")
    return None


def _value(policy: SafetyIdentifier, identifier: str, callers: Sequence[Caller], values: Sequence[str]) -> str | None:
    """The team whose callers named somebody by a value that was hashed (`pii`), and that value."""
    teams = dict.fromkeys(caller.team for caller in callers)
    for team, value, key in product(teams, values, policy.all_keys):
        if hashed(key, team, value) == identifier:
            names = ", ".join(caller.name for caller in callers if caller.team == team)
            return f"{names} (team {team}), hashed from {value}"
    return None


def _block(options: argparse.Namespace) -> int:
    return asyncio.run(_set(read(options.config), options.identifier, blocked=True))


def _unblock(options: argparse.Namespace) -> int:
    return asyncio.run(_set(read(options.config), options.identifier, blocked=False))


async def _set(config: Config, identifier: str, *, blocked: bool) -> int:
    """Raises ConfigError when the state is not one that a running gate shares."""
    state = config.state
    if isinstance(state, Memory):
        raise ConfigError('state.use: "memory" is the serving process\'s own; block needs [state] use = "redis"')
    await state.start()
    try:
        if blocked:
            await state.put(blocked_key(identifier), b"1", ttl_s=YEARS_S)
        else:
            await state.delete(blocked_key(identifier))
    except StoreError as error:
        raise ConfigError(f"state: {error}") from error
    finally:
        await state.close()
    print(f"{identifier} is {'blocked' if blocked else 'no longer blocked'}.")
    return FOUND


def _lines(file: Path) -> Iterator[str]:
    try:
        return filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines()))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8: {error}") from error


def _policies(config: Config) -> Iterator[SafetyIdentifier]:
    return (rule.policy for rule in config.rules if isinstance(rule.policy, SafetyIdentifier))
