"""`headgate whois`, `block` and `unblock`: whose identifier an upstream received, and how to refuse it from now on."""

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from policies.support.principal import blocked_key
from proxy.config.build import Config, read
from proxy.config.validation import ConfigError
from proxy.context import Caller
from proxy.identity.directory import ANONYMOUS
from proxy.stores import LONGEST_S, StoreError
from proxy.stores.memory import MemoryStore
from proxy.telemetry.audit import write_operation

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
    command.add_argument("--config", type=Path, required=True)
    command.set_defaults(run=run)
    return command


def _whois(options: argparse.Namespace) -> int:
    config = read(options.config)
    end_users = _read_lines(options.end_users) if options.end_users else []
    callers = [Caller(caller.name, caller.team) for caller in config.callers] or [ANONYMOUS]
    for rule in config.rules:
        found = rule.policy.identify(options.identifier, callers, end_users)
        if found is not None:
            print(found)
            return FOUND
    print("No caller of this config has that identifier under any of its keys.")
    return NOT_FOUND


def _block(options: argparse.Namespace) -> int:
    return asyncio.run(_set_blocked(read(options.config), options.identifier, blocked=True))


def _unblock(options: argparse.Namespace) -> int:
    return asyncio.run(_set_blocked(read(options.config), options.identifier, blocked=False))


async def _set_blocked(config: Config, identifier: str, *, blocked: bool) -> int:
    """Block or unblock an identifier in the state. Raises ConfigError if processes do not share it, or it fails."""
    state = config.state
    if isinstance(state, MemoryStore):
        message = '"memory" is private to the serving process; block needs [state] use = "sqlite" or "redis"'
        raise ConfigError(f"state.use: {message}")
    try:
        await state.start()
    except ValueError as error:
        raise ConfigError(f"state: {error}") from error
    try:
        _record_operation(config, "identifier.blocked" if blocked else "identifier.unblocked", identifier)
        if blocked:
            await state.put(blocked_key(identifier), b"1", ttl_s=LONGEST_S)
        else:
            await state.delete(blocked_key(identifier))
    except StoreError as error:
        raise ConfigError(f"state: {error}") from error
    finally:
        await state.close()
    print(f"{identifier} is {'blocked' if blocked else 'no longer blocked'}.")
    return FOUND


def _record_operation(config: Config, event: str, identifier: str) -> None:
    """Write to the audit, if there is one, what an operator does. Raises ConfigError if that is required and fails."""
    if config.audit is None:
        return
    try:
        write_operation(config.audit, event, {"identifier": identifier})
    except (OSError, ValueError) as error:
        if config.audit.on_failure == "refuse":
            raise ConfigError(f"audit: {error}") from error
        print(f"not recorded: {error}", file=sys.stderr)


def _read_lines(file: Path) -> list[str]:
    """Return the lines of a file without surrounding space; empty ones are left out. Raises ConfigError."""
    try:
        return list(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8: {error}") from error
