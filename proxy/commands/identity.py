"""`headgate whois`, `block` and `unblock`: whose identifier an upstream received, and how to refuse it from now on."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from policies.support.principal import blocked_key
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
    _add(commands, "block", _block, "refuse calls with an identifier on every worker, from the next one on")
    _add(commands, "unblock", _unblock, "let them pass again")


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], description: str
) -> argparse.ArgumentParser:
    example = f"example: headgate {name} --config my.toml -- IDENTIFIER"
    command: argparse.ArgumentParser = commands.add_parser(name, help=description, epilog=example)
    hint = 'as the upstream receives it; put it after "--", because some begin with a hyphen'
    command.add_argument("identifier", metavar="IDENTIFIER", help=hint)
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
    return _set_blocked(read(options.config), options.identifier, blocked=True)


def _unblock(options: argparse.Namespace) -> int:
    return _set_blocked(read(options.config), options.identifier, blocked=False)


def _set_blocked(config: Config, identifier: str, *, blocked: bool) -> int:
    """Block or unblock an identifier in the state. Raises ConfigError if processes do not share it, or it fails."""
    if not identifier:
        raise ConfigError("the identifier is empty")
    key, event = blocked_key(identifier), "identifier.blocked" if blocked else "identifier.unblocked"

    async def change(state: Store) -> None:
        record_operation(config, event, {"identifier": identifier})
        await (state.put(key, b"1", ttl_s=LONGEST_S) if blocked else state.delete(key))

    run_with_state(config, "block", change)
    print(f"{identifier} is {'blocked' if blocked else 'no longer blocked'}.")
    return FOUND


def _read_lines(file: Path) -> list[str]:
    """Return the lines of a file without surrounding space; empty ones are left out. Raises ConfigError."""
    try:
        return list(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8: {error}") from error
