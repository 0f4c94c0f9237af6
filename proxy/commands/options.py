"""Options that several commands have, and the environment variables that stand for them."""

import argparse
import os
from pathlib import Path

DEFAULT_CONFIG = "a TOML file; default: the embedded defaults"
MAX_PORT = 65_535
CONFIG, HOST, PORT = "HEADGATE_CONFIG", "HEADGATE_HOST", "HEADGATE_PORT"


def add_config(command: argparse.ArgumentParser, *, required: bool = False, text: str = "a TOML file") -> None:
    """Add `--config`; the variable stands for it."""
    default = os.environ.get(CONFIG) or None
    command.add_argument(
        "--config", type=Path, default=default, required=required and default is None, help=f"{text}; or {CONFIG}"
    )


def add_address(command: argparse.ArgumentParser) -> None:
    """Add `--host` and `--port`; a variable stands for each."""
    host, port = os.environ.get(HOST) or None, os.environ.get(PORT) or None
    command.add_argument("--host", default=host, help=f"listen on this address, not the configured one; or {HOST}")
    command.add_argument(
        "--port", type=_port, default=port, help=f"listen on this port instead of the configured one; or {PORT}"
    )


def _port(text: str) -> int:
    """Raises ArgumentTypeError for what is not a port."""
    if not (text.isascii() and text.isdecimal() and int(text) <= MAX_PORT):
        raise argparse.ArgumentTypeError(f"invalid port '{text}'; it is a number from 0, for a free one, to {MAX_PORT}")
    return int(text)
