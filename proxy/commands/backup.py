"""`headgate backup`: copy the file of `[state]` while gateways use it."""

import argparse
from pathlib import Path
from typing import Any

from proxy.commands.options import add_config
from proxy.config.build import read
from proxy.config.validation import ConfigError
from proxy.stores.sqlite import SqliteStore

SUCCESS = 0


def add_to(commands: Any) -> None:
    """Add this subject's command to a parser."""
    backup = commands.add_parser("backup", help="copy the file of [state] while gateways use it",
                                 epilog="example: headgate backup --config my.toml state-2026-11-30.db")  # fmt: skip
    add_config(backup, required=True)
    backup.add_argument("file", type=Path, metavar="FILE", help="the new file, on any disk")
    backup.set_defaults(run=_back_up)


def _back_up(options: argparse.Namespace) -> int:
    state = read(options.config).state
    if not isinstance(state, SqliteStore):
        reason = 'only use = "sqlite" has a file; Redis has backups of its own: see deploy/operations.md'
        raise ConfigError(f"state.use: {reason}")
    try:
        state.back_up(options.file)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(f"{state.path} was copied to {options.file}: {options.file.stat().st_size:,} bytes.")
    return SUCCESS
