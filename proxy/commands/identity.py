"""`headgate whois`, `block` and `unblock`: find whose identifier an upstream received, and refuse it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy.admin.api.identifiers import MOST_END_USERS
from proxy.commands.admin_client import AdminClient, add_gateway, client_of, config_of
from proxy.commands.shared_state import callers_of, record_operation, run_with_state
from proxy.config.build import Config
from proxy.config.validation import ConfigError
from proxy.identity.blocking import block, blocked_identifiers, is_blocked, reason_against, unblock
from proxy.identity.directory import ANONYMOUS
from proxy.stores import Store

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
    add_gateway(command)
    command.set_defaults(run=run)
    return command


def _whois(options: argparse.Namespace) -> int:
    end_users = _read_lines(options.end_users) if options.end_users else []
    client = client_of(options)
    if client is not None:
        found = _ask(client, options.identifier, end_users)
    else:
        found = _find(config_of(options), options.identifier, end_users)
    print(found or "No caller of this config has that identifier under any of its keys.")
    return FOUND if found else NOT_FOUND


def _ask(client: AdminClient, identifier: str, end_users: list[str]) -> str | None:
    """Return what a gateway finds, which is asked about some end users after the other. Raises ConfigError."""
    for start in range(0, max(1, len(end_users)), MOST_END_USERS):
        asked = {"identifier": identifier, "end_users": end_users[start : start + MOST_END_USERS]}
        found: str | None = client.ask("POST", "/identifiers/owner", asked)["found"]
        if found is not None:
            return found
    return None


def _find(config: Config, identifier: str, end_users: list[str]) -> str | None:
    callers = callers_of(config, "whois") or [ANONYMOUS]
    found = (rule.policy.identify(identifier, callers, end_users) for rule in config.rules)
    return next((each for each in found if each is not None), None)


def _block(options: argparse.Namespace) -> int:
    if options.list == (options.identifier is not None):
        raise ConfigError("give either an identifier or --list")
    if not options.list and not options.identifier:
        raise ConfigError("the identifier is empty")
    client = client_of(options)
    if options.list:
        return _list(options, client)
    if client is None:
        _block_identifier(config_of(options), options.identifier)
    else:
        client.ask("POST", "/identifiers/block", {"identifier": options.identifier})
    print(f"{options.identifier} is blocked.")
    return FOUND


def _block_identifier(config: Config, identifier: str) -> None:
    """Block an identifier in the state. Raises ConfigError if no call can have it, or if that fails."""
    callers = callers_of(config, "block") or [ANONYMOUS]
    policies = [rule.policy for rule in config.rules if rule.mode != "off"]
    if reason := reason_against(policies, identifier, callers, are_known=not config.issuers):
        raise ConfigError(f"{identifier}: {reason}")

    async def change(state: Store) -> None:
        record_operation(config, "identifier.blocked", {"identifier": identifier})
        await block(state, identifier)

    run_with_state(config, "block", change)


def _list(options: argparse.Namespace, client: AdminClient | None) -> int:
    """Print the blocked identifiers, the oldest first."""
    if client is None:
        lines = run_with_state(config_of(options), "block --list", blocked_identifiers)
    else:
        listed = client.ask("GET", "/identifiers")["identifiers"]
        lines = [(each["since"], each["identifier"]) for each in listed]
    for since, identifier in lines:
        print(f"{since}  {identifier}")
    if not lines:
        print("No identifier is blocked in [state].")
    return FOUND


def _unblock(options: argparse.Namespace) -> int:
    """Accept calls with an identifier again. Raises ConfigError if processes do not share the state, or it fails."""
    identifier = options.identifier
    if not identifier:
        raise ConfigError("the identifier is empty")
    client = client_of(options)
    is_known = (
        _unblock_identifier(config_of(options), identifier) if client is None else _unblock_by(client, identifier)
    )
    if is_known:
        print(f"{identifier} is no longer blocked.")
        return FOUND
    print(f"{identifier} is not blocked in [state]; `headgate block --list` prints what is.")
    return NOT_FOUND


def _unblock_by(client: AdminClient, identifier: str) -> bool:
    if identifier not in {each["identifier"] for each in client.ask("GET", "/identifiers")["identifiers"]}:
        return False
    client.ask("POST", "/identifiers/unblock", {"identifier": identifier})
    return True


def _unblock_identifier(config: Config, identifier: str) -> bool:
    """Return whether an identifier was blocked, and is no longer. Raises ConfigError."""

    async def change(state: Store) -> bool:
        if not await is_blocked(state, identifier):
            return False
        record_operation(config, "identifier.unblocked", {"identifier": identifier})
        await unblock(state, identifier)
        return True

    return run_with_state(config, "block", change)


def _read_lines(file: Path) -> list[str]:
    """Return the lines of a file without surrounding space; empty ones are left out. Raises ConfigError."""
    try:
        return list(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8: {error}") from error
