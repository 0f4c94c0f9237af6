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
        "--config", type=_config, default=default, required=required and default is None, help=f"{text}; or {CONFIG}"
    )


def add_address(command: argparse.ArgumentParser) -> None:
    """Add `--host` and `--port`; a variable stands for each."""
    host, port = os.environ.get(HOST) or None, os.environ.get(PORT) or None
    command.add_argument("--host", default=host, help=f"listen on this address, not the configured one; or {HOST}")
    command.add_argument(
        "--port", type=_port, default=port, help=f"listen on this port instead of the configured one; or {PORT}"
    )


def is_from(variable: str, value: object) -> bool:
    """Whether the variable that stands for an option has its value: a fault in it is then mended there."""
    return value is not None and os.environ.get(variable) == str(value)


def _config(text: str) -> Path:
    """Raises ArgumentTypeError for a variable that names no file; a file of the option is checked where it is read."""
    path = Path(text)
    if is_from(CONFIG, text) and (path.is_dir() or not os.access(path, os.R_OK)):
        raise argparse.ArgumentTypeError(f"{CONFIG} is '{text}', which is no file that can be read")
    return path


def _port(text: str) -> int:
    """Raises ArgumentTypeError for what is not a port."""
    if not (text.isascii() and text.isdecimal() and int(text) <= MAX_PORT):
        where = f" in {PORT}" if is_from(PORT, text) else ""
        allowed = f"it is a number from 0, for a free one, to {MAX_PORT}"
        raise argparse.ArgumentTypeError(f"invalid port '{text}'{where}; {allowed}")
    return int(text)
