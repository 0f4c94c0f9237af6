"""`headgate whois`, `block` and `unblock`: whose identifier an upstream received, and how to refuse it from now on."""

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from policies.support.principal import BLOCKED, blocked_key
from proxy.commands.options import add_config
from proxy.commands.shared_state import callers_of, record_operation, run_with_state
from proxy.config.build import Config, read
from proxy.config.validation import ConfigError
from proxy.identity.directory import ANONYMOUS
from proxy.stores import LONGEST_S, Store

FOUND, NOT_FOUND = 0, 1


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    whois = _add(commands, "whois", _whois, "print whose identifier this is")
    whois.add_argument(
        "--end-users",
        type=Path,
        help="a file of end users, or of values that callers sent for them, one a line, to try",
    )
    block = _add(
        commands, "block", _block, "refuse calls with an identifier on every worker, from the next one on", nargs="?"
    )
    block.add_argument("--list", action="store_true", help="print what is blocked, and since when, instead")
    _add(commands, "unblock", _unblock, "let them pass again")


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], description: str, **more: Any
) -> argparse.ArgumentParser:
    example = f"example: headgate {name} --config my.toml -- IDENTIFIER"
    command: argparse.ArgumentParser = commands.add_parser(name, help=description, epilog=example)
    hint = 'as the upstream receives it; put it after "--", because some begin with a hyphen'
    command.add_argument("identifier", metavar="IDENTIFIER", help=hint, **more)
    add_config(command, required=True)
    command.set_defaults(run=run)
    return command


def _whois(options: argparse.Namespace) -> int:
    config = read(options.config)
    end_users = _read_lines(options.end_users) if options.end_users else []
    callers = callers_of(config, "whois") or [ANONYMOUS]
    for rule in config.rules:
        found = rule.policy.identify(options.identifier, callers, end_users)
        if found is not None:
            print(found)
            return FOUND
    print("No caller of this config has that identifier under any of its keys.")
    return NOT_FOUND


def _block(options: argparse.Namespace) -> int:
    config = read(options.config)
    if options.list == (options.identifier is not None):
        raise ConfigError("give either an identifier or --list")
    return _list(config) if options.list else _block_identifier(config, options.identifier)


def _block_identifier(config: Config, identifier: str) -> int:
    """Block an identifier in the state. Raises ConfigError if no call can have it, or if that fails."""
    if not identifier:
        raise ConfigError("the identifier is empty")
    callers = callers_of(config, "block") or [ANONYMOUS]
    # The names of those who sign in with tokens are not known here.
    if not config.issuers and not any(
        rule.mode != "off" and rule.policy.may_send(identifier, callers) for rule in config.rules
    ):
        reason = "no call of this config can have it"
        raise ConfigError(f"{identifier}: {reason}; give it as the upstream receives it, and as `whois` finds it")

    async def change(state: Store) -> None:
        record_operation(config, "identifier.blocked", {"identifier": identifier})
        await state.put(blocked_key(identifier), orjson.dumps((identifier, int(time.time()))), ttl_s=LONGEST_S)

    run_with_state(config, "block", change)
    print(f"{identifier} is blocked.")
    return FOUND


def _list(config: Config) -> int:
    """Print the blocked identifiers, the oldest first."""

    async def find(state: Store) -> list[tuple[str, bytes]]:
        keys = [key async for key in state.scan(BLOCKED)]
        return [(key, value) for key, value in zip(keys, await state.get_many(keys), strict=True) if value is not None]

    lines = sorted(_listed(key, value) for key, value in run_with_state(config, "block --list", find))
    for since, identifier in lines:
        print(f"{since}  {identifier}")
    if not lines:
        print("No identifier is blocked in [state].")
    return FOUND


def _listed(key: str, value: bytes) -> tuple[str, str]:
    """Return since when and what is blocked."""
    try:
        identifier, at = orjson.loads(value)
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%SZ}", str(identifier)
    except (ValueError, TypeError, OverflowError):
        return "before its identifiers were kept", f"(its hash: {key.removeprefix(BLOCKED)})"


def _unblock(options: argparse.Namespace) -> int:
    """Let calls with an identifier pass. Raises ConfigError if processes do not share the state, or it fails."""
    config, identifier = read(options.config), options.identifier
    if not identifier:
        raise ConfigError("the identifier is empty")

    async def change(state: Store) -> bool:
        key = blocked_key(identifier)
        if await state.get(key) is None:
            return False
        record_operation(config, "identifier.unblocked", {"identifier": identifier})
        await state.delete(key)
        return True

    if run_with_state(config, "block", change):
        print(f"{identifier} is no longer blocked.")
        return FOUND
    print(f"{identifier} is not blocked in [state]; `headgate block --list` prints what is.")
    return NOT_FOUND


def _read_lines(file: Path) -> list[str]:
    """Return the lines of a file without surrounding space; empty ones are left out. Raises ConfigError."""
    try:
        return list(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8: {error}") from error
